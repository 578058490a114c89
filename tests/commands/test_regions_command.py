"""``python -m pvs_model regions``: which scan of a case is looked at, and what is reported. No network runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvs_model.anatomy import inference
from pvs_model.cli import main
from pvs_model.errors import VolumeError

WriteBody = Callable[..., dict[str, Path]]


@pytest.fixture
def seen(own_weights: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """(scan, folder) of every call, from a weights folder that has the network."""
    (own_weights / "anatomy.safetensors").write_bytes(b"stands in")
    calls: list[tuple[str, Path]] = []

    def write(scan: Path, folder: Path, weights: Path, device: Any) -> inference.RegionFiles:
        if scan.read_bytes() == b"broken":
            raise VolumeError(f"{scan}: expected a complete image, got a damaged one")
        calls.append((scan.name, folder))
        return inference.RegionFiles(folder / "brain", folder / "regions", {})

    monkeypatch.setattr(inference, "write_regions", write)
    return calls


def test_one_scan(seen: list[Any], own_weights: Path, write_body: WriteBody, tmp_path: Path, capsys: Any) -> None:
    write_body(tmp_path / "a_{}.nii.gz", ("T1w",))
    assert main(["regions", str(tmp_path / "a_T1w.nii.gz"), str(tmp_path / "out"), "--weights", str(own_weights)]) == 0
    assert seen == [("a_T1w.nii.gz", tmp_path / "out")]
    assert "a_T1w.nii.gz: " in capsys.readouterr().out


def test_of_each_case_the_thinnest_slices(
    seen: list[Any], own_weights: Path, write_body: WriteBody, tmp_path: Path, capsys: Any
) -> None:
    write_body(tmp_path / "in" / "s" / "a" / "a_{}.nii.gz", ("T1w", "FLAIR"))
    write_body(tmp_path / "in" / "s" / "b" / "b_{}.nii.gz", ("T1w",), spacing_mm=(1, 1, 5))
    write_body(tmp_path / "in" / "s" / "b" / "b_{}.nii.gz", ("T2w",), spacing_mm=(1, 1, 2))
    for name in ("c", "d"):
        (tmp_path / "in" / "s" / name).mkdir()
        (tmp_path / "in" / "s" / name / f"{name}_T2w.nii.gz").write_bytes(b"broken")
    write_body(tmp_path / "in" / "s" / "d" / "d_{}.nii.gz", ("T1w",))
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(own_weights)]
    assert main(["regions", *arguments]) == 1  # two files are broken
    assert seen == [(f"{name}.nii.gz", tmp_path / "out" / "s" / name[0]) for name in ("a_T1w", "b_T2w", "d_T1w")]
    message = capsys.readouterr().err
    assert (
        "c_T2w.nii.gz" in message and "d_T2w.nii.gz" in message and "s/c: expected an image that can be read" in message
    )


def test_a_weights_folder_without_the_network(weights: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["regions", str(tmp_path), str(tmp_path / "out"), "--weights", str(weights)]) == 2
    assert "expected the anatomy network (anatomy.safetensors), got none" in capsys.readouterr().err
