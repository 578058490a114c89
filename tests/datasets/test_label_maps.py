"""Label maps: which files of a folder they are, how they are read and cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pvs_model.datasets.label_maps import find_label_maps, load_cached, load_head_model, save_cached
from pvs_model.errors import VolumeError
from pvs_model.simulation.head import HeadModel
from pvs_model.volume.io import write_volume


def test_an_anatomy_from_a_file_is_the_one_from_its_labels(
    small_labels: npt.NDArray[np.int32], anatomy: HeadModel, tmp_path: Path
) -> None:
    # Stored from left to right: it comes out RAS-oriented, and from the cache as from the file.
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    path = tmp_path / "labels" / "toy.nii.gz"
    write_volume(path, small_labels[::-1].astype(np.float32), affine)
    first = load_head_model(path, tmp_path / "cache")
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 1 and kept[0].name.startswith("toy.nii.gz-")
    cached = load_head_model(path, tmp_path / "cache")
    for loaded in (first, cached):
        assert loaded.whole_head and loaded.name == "toy.nii.gz"
        for name in ("tissues", "regions", "field", "histogram"):
            assert torch.equal(getattr(loaded, name), getattr(anatomy, name)), name
    assert find_label_maps(tmp_path / "labels") == [path]


def test_a_folder_without_label_maps(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"expected label maps .* got none"):
        find_label_maps(tmp_path)
    with pytest.raises(VolumeError, match=r"expected label maps .* got none"):
        find_label_maps(tmp_path / "none")


def test_an_anatomy_is_cached_whole(anatomy: HeadModel, tmp_path: Path) -> None:
    save_cached(tmp_path / "a.safetensors", anatomy)
    loaded = load_cached(tmp_path / "a.safetensors")
    assert (loaded.name, loaded.whole_head) == (anatomy.name, anatomy.whole_head)
    for name in ("tissues", "regions", "field", "histogram"):
        assert torch.equal(getattr(loaded, name), getattr(anatomy, name))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_hidden_files_are_no_label_maps(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "B.NII.GZ", "c.mgz", "._a.nii.gz", ".DS_Store", "notes.txt"):
        (tmp_path / name).write_bytes(b"1234")
    assert [path.name for path in find_label_maps(tmp_path)] == ["B.NII.GZ", "a.nii.gz", "c.mgz"]
