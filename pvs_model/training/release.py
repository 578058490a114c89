"""Put trained networks into a weights folder: files, checksums, thresholds and where they come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pvs_model.config import MANIFEST, SLICES, TRAINED_RANGE, NetworkConfig, shipped_weights
from pvs_model.errors import WeightsError
from pvs_model.files import sha256_of, write_atomically, write_text
from pvs_model.inference.weights import COMBINE, FORMAT
from pvs_model.nets import checkpoint

#: Embeddings of the standard prompts, beside the shipped weights.
SHIPPED_TEXT = shipped_weights() / "text.safetensors"


def release(
    folder: Path,
    kind: str,
    networks: Sequence[Path],
    threshold: float,
    window: int,
    overlap: float,
    data: str,
    scores: dict[str, Any],
    groups: Sequence[str] | None = None,
    combine: str = "mean",
) -> None:
    """Copy networks into a weights folder as one ensemble and write its entry in the manifest.

    Args:
        folder: the weights folder; other entries of its manifest are kept.
        kind: "3d" or "2d".
        networks: files that ``checkpoint.save`` wrote, one per fold.
        threshold: probability from which a voxel is PVS.
        window: side of the sliding window.
        overlap: of neighbouring windows, a share.
        data: what it was trained on, in words.
        scores: what was measured, in any JSON.
        groups: of each network; probabilities are averaged within a group. None: all are one.
        combine: "mean" or "maximum" of the groups' probabilities.

    Raises:
        ValueError: when there is not one group per network, or groups cannot be combined so.
        WeightsError: when a file holds no trained network, or one for other scans.
    """
    if groups is not None and len(groups) != len(networks):
        raise ValueError(f"groups must be one per network, got {len(groups)} for {len(networks)}")
    if combine not in COMBINE:
        raise ValueError(f"combine must be one of {COMBINE}, got {combine!r}")
    described = [_described(source) for source in networks]
    _check_kind(kind, networks, [config for config, _, _ in described])
    manifest = _manifest(folder)
    members = []
    for fold, (source, (config, training, facts)) in enumerate(zip(networks, described, strict=True)):
        target = folder / f"{kind}_fold{fold}.safetensors"
        _copy(source, target)
        members.append(
            {
                "file": target.name,
                "sha256": sha256_of(target),
                "network": json.loads(config.to_json()),
                "steps": int(facts["steps"]),
                "batch": training["batch"],
                "patch": training["patch"],
                "seed": training["seed"],
            }
        )
        if groups is not None:
            members[-1]["group"] = groups[fold]
    (low, high), (thin, thick) = TRAINED_RANGE[kind]
    manifest["ensembles"][kind] = {
        "members": members,
        "threshold": threshold,
        "window": window,
        "overlap": overlap,
        "spacing_mm": [low, high],
        "thickness_mm": [thin, thick],
        "data": data,
        "scores": scores,
    }
    if combine != "mean":
        manifest["ensembles"][kind]["combine"] = combine
    text = folder / SHIPPED_TEXT.name
    if not text.is_file():  # a new folder: the prompts are the same for every network
        _copy(SHIPPED_TEXT, text)
    manifest["text"] = {"file": text.name, "sha256": sha256_of(text)}
    _write_manifest(folder, manifest)


def add_anatomy(folder: Path) -> None:
    """Copies the shipped anatomy network into a weights folder that has none: without it no skull is taken off.

    Raises:
        WeightsError: it cannot be written.
    """
    manifest = _manifest(folder)
    shipped = SHIPPED_TEXT.parent
    entry = _manifest(shipped).get("anatomy")
    if "anatomy" in manifest or entry is None:
        return
    _copy(shipped / entry["file"], folder / entry["file"])
    _write_manifest(folder, {**manifest, "anatomy": entry})


def _described(path: Path) -> tuple[NetworkConfig, dict[str, Any], dict[str, Any]]:
    """The configuration of a trained network, how it was trained, and what came of it."""
    metadata = checkpoint.read_metadata(path)
    try:
        config = NetworkConfig.from_json(metadata[checkpoint.CONFIG_KEY])
        return config, json.loads(metadata["training"]), json.loads(metadata["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: expected a network that `train` wrote (network.safetensors), found other weights"
        ) from error


def _check_kind(kind: str, paths: Sequence[Path], configs: Sequence[NetworkConfig]) -> None:
    """Refuse networks that cannot see the scans that an ensemble is for."""
    for path, config in zip(paths, configs, strict=True):
        if kind == "3d" and config.dimensions == 2 and not config.view:
            raise WeightsError(
                f"{path}: expected a 3D network, or a 2D one of a view, for slices {SLICES[kind]}, found a 2D network "
                "of slices as acquired: release it with --network 2d"
            )
    if kind == "2d" and all(config.dimensions == 3 for config in configs):
        raise WeightsError(
            f"{paths[0]}: expected a 2D network for slices {SLICES[kind]}, found a 3D one: release it with --network 3d"
        )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        return {"format": FORMAT, "ensembles": {}}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: expected the manifest of the weights, found {error!r}") from error


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n", WeightsError)


def _copy(source: Path, target: Path) -> None:
    """Copy a file for everybody to read; one that lies there already stays."""

    def fill(part: Path) -> None:
        shutil.copyfile(source, part)
        part.chmod(0o644)

    if not (target.exists() and target.samefile(source)):
        write_atomically(target, fill, WeightsError)
