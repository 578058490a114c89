"""What a result depends on: versions of packages, checksums of weights, and the inference engines of this machine."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pvs_model import __version__
from pvs_model.errors import WeightsError
from pvs_model.files import sha256_of
from pvs_model.inference.weights import Manifest

#: Packages whose versions can change a mask.
PACKAGES = ("torch", "openvino", "monai", "numpy", "scipy", "scikit-image", "simpleitk", "nibabel", "transformers")


def versions() -> dict[str, str | None]:
    """Returns the versions of this package, of Python, and of ``PACKAGES``; None for one that is not installed.

    Example:
        >>> sorted(versions())[-3:]
        ['simpleitk', 'torch', 'transformers']
    """
    installed: dict[str, str | None] = {"pvs_model": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def backends() -> dict[str, Any]:
    """Returns the inference engines of this machine: names of CUDA devices, and versions of PyTorch and OpenVINO.

    Example:
        >>> list(backends())
        ['cuda', 'torch', 'openvino']
    """
    import torch

    devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {"cuda": devices, "torch": torch.__version__, "openvino": versions()["openvino"]}


def weights_summary(folder: Path, check: bool = False) -> dict[str, Any]:
    """Returns what a weights folder contains, by ensemble.

    Args:
        folder: Weights folder.
        check: Whether to compare each file with its checksum: every file then has a ``state``, "valid", "damaged" or
            "missing".

    Returns:
        JSON values: ``folder``, ``manifest_sha256``, ``ensembles`` (both thresholds, range of spacings in mm in plane
        and through plane, files with their SHA-256), and the files of ``anatomy`` and ``text``, None without one.

    Raises:
        WeightsError: The manifest is missing or damaged.
    """
    manifest = Manifest.read(folder)

    def file_of(entry: dict[str, Any]) -> dict[str, Any]:
        summary = {"file": entry["file"], "sha256": entry["sha256"]}
        if check:
            summary["state"] = _state(manifest.resolve(str(entry["file"])), str(entry["sha256"]))
        return summary

    try:
        return {
            "folder": str(folder),
            "manifest_sha256": sha256_of(manifest.path),
            "ensembles": {
                name: {
                    "threshold": entry["threshold"],
                    "low_threshold": entry.get("low_threshold", entry["threshold"]),
                    "in_plane_mm": entry["spacing_mm"],
                    "through_plane_mm": entry["thickness_mm"],
                    "files": [file_of(member) for member in entry["members"]],
                }
                for name, entry in sorted(manifest.content["ensembles"].items())
            },
            **{
                name: file_of(manifest.content[name]) if name in manifest.content else None
                for name in ("anatomy", "text")
            },
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise WeightsError(f"{manifest.path}: expected the manifest of the weights, got {error!r}") from error


def weights_files(summary: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Yields the entry of every file of a ``weights_summary``."""
    for ensemble in summary["ensembles"].values():
        yield from ensemble["files"]
    yield from (summary[name] for name in ("anatomy", "text") if summary[name] is not None)


def _state(path: Path, sha256: str) -> str:
    try:
        return "valid" if sha256_of(path) == sha256 else "damaged"
    except OSError:
        return "missing"
