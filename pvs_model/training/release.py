"""Put trained networks into a weights folder: files, checksums, thresholds and where they come from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pvs_model.inference.ensemble import COMBINE, FORMAT, MANIFEST
from pvs_model.nets import checkpoint

#: Voxel spacing that ``synth.engine.draw_voxel`` covers: within slices and across them, mm.
TRAINED_RANGE = {"3d": ((0.45, 1.25), (0.45, 2.5)), "2d": ((0.34, 1.1), (2.5, 8.0))}

#: Embeddings of the standard prompts, beside the shipped weights.
SHIPPED_TEXT = Path(__file__).resolve().parents[2] / "weights" / "text.safetensors"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    """
    if groups is not None and len(groups) != len(networks):
        raise ValueError(f"groups must be one per network, got {len(groups)} for {len(networks)}")
    if combine not in COMBINE:
        raise ValueError(f"combine must be one of {COMBINE}, got {combine!r}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    manifest: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"format": FORMAT, "ensembles": {}}
    members = []
    for fold, source in enumerate(networks):
        target = folder / f"{kind}_fold{fold}.safetensors"
        shutil.copyfile(source, target)
        target.chmod(0o644)
        metadata = checkpoint.read_metadata(target)
        training, facts = json.loads(metadata["training"]), json.loads(metadata["facts"])
        members.append(
            {
                "file": target.name,
                "sha256": sha256_of(target),
                "network": json.loads(metadata[checkpoint.CONFIG_KEY]),
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
        shutil.copyfile(SHIPPED_TEXT, text)
        text.chmod(0o644)
    manifest["text"] = {"file": text.name, "sha256": sha256_of(text)}
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
