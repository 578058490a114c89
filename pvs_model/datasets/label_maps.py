"""Loads head models from label maps with FreeSurfer ids, and caches them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from scipy import ndimage

from pvs_model.errors import VolumeError
from pvs_model.files import write_tensors
from pvs_model.simulation.head import BUILD_VERSION, HeadModel, build_head_model
from pvs_model.volume.geometry import to_ras
from pvs_model.volume.io import read

#: Arrays of a head model.
TENSORS = ("tissues", "regions", "field", "histogram")


def find_label_maps(folder: Path) -> list[Path]:
    """Lists the label map files of a folder, sorted by name.

    Raises:
        VolumeError: The folder is missing or holds no label map.
    """
    visible = (p for p in folder.glob("*") if not p.name.startswith("."))  # macOS leaves ._NAME beside each file
    paths = sorted(p for p in visible if p.name.lower().endswith((".nii", ".nii.gz", ".mgz")))
    if not paths:
        raise VolumeError(f"{folder}: expected label maps (.nii.gz with FreeSurfer ids), got none")
    return paths


def load_head_model(path: Path, cache: Path | None = None) -> HeadModel:
    """Loads a head model from a label map with FreeSurfer ids, of any orientation and spacing.

    Args:
        path: ``.nii``, ``.nii.gz`` or ``.mgz`` file.
        cache: Folder for prepared head models (building one takes about 10 s).

    Raises:
        VolumeError: The file cannot be read or holds no FreeSurfer ids.
    """
    digest = hashlib.sha256(b"%d" % BUILD_VERSION + path.read_bytes()).hexdigest()[:12]
    cached = cache / f"{path.name}-{digest}.safetensors" if cache else None
    if cached is not None and cached.is_file():
        return replace(load_cached(cached), name=path.name)
    volume, _ = to_ras(read(path))
    labels = np.rint(volume.data).astype(np.int32)
    spacing = np.asarray(volume.spacing_mm)
    if not np.allclose(spacing, 1.0, atol=0.02):
        labels = ndimage.zoom(labels, spacing, order=0, grid_mode=True, mode="nearest")
    head = build_head_model(labels, path.name)
    if cached is not None:
        save_cached(cached, head)
    return head


def save_cached(path: Path, head: HeadModel) -> None:
    """Writes a prepared head model as safetensors."""
    tensors = {name: getattr(head, name) for name in TENSORS}
    metadata = {"name": head.name, "whole_head": str(int(head.whole_head))}
    write_tensors(path, tensors, metadata)


def load_cached(path: Path) -> HeadModel:
    """Loads what ``save_cached`` wrote; its arrays stay memory-mapped until they are used."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tissues, regions, field, histogram = (file.get_tensor(name) for name in TENSORS)
    return HeadModel(metadata.get("name", path.stem), tissues, regions, field, histogram, metadata["whole_head"] == "1")
