"""Show versions, weights with their checksums, thresholds and trained ranges, and available backends."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pvs_model.config import default_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``info``."""
    parser.add_argument("--weights", type=Path, default=default_weights(), help="folder with MANIFEST.json")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the information, and on stderr each file of the weights that is missing or differs from its checksum.

    Returns:
        Exit status: 0 when the weights are complete, else 1.

    Raises:
        WeightsError: The manifest is missing or damaged.
    """
    from pvs_model.inference.provenance import backends, versions, weights_files, weights_summary

    weights = weights_summary(args.weights, check=True)
    info = {"versions": versions(), "weights": weights, "backends": backends()}
    print(json.dumps(info, indent=2) if args.json else text(info))
    invalid = [file for file in weights_files(weights) if file["state"] != "valid"]
    for file in invalid:
        print(f"error: {args.weights / file['file']}: expected sha256 {file['sha256']}, got a file that is "
              f"{file['state']}", file=sys.stderr)  # fmt: skip
    return 1 if invalid else 0


def text(info: dict[str, Any]) -> str:
    """Returns the information as lines of text."""
    weights, backends = info["weights"], info["backends"]
    lines = ["  ".join(f"{name} {version}" for name, version in info["versions"].items() if version is not None)]
    lines.append(f"weights {weights['folder']}  (manifest {weights['manifest_sha256'][:12]})")
    for name, ensemble in weights["ensembles"].items():
        in_plane, through_plane = (" to ".join(f"{mm:g}" for mm in ensemble[f"{axis}_mm"]) for axis in _AXES)
        lines.append(
            f"  {name}: thresholds {ensemble['threshold']:g} and {ensemble['low_threshold']:g}, trained on "
            f"{in_plane} mm in plane and {through_plane} mm through plane"
        )
        lines += [_line(file) for file in ensemble["files"]]
    lines += [_line(weights[name]) for name in ("anatomy", "text") if weights[name] is not None]
    devices = ", ".join(backends["cuda"]) or "no device"
    lines.append(f"backends: cuda ({devices}), openvino ({backends['openvino'] or 'not installed'}), torch")
    return "\n".join(lines)


_AXES = ("in_plane", "through_plane")


def _line(file: dict[str, Any]) -> str:
    return f"    {file['file']}  sha256 {file['sha256']}  {file['state']}"
