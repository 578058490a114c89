"""``pvs-model longitudinal``: files, order of visits, failures. Networks and registration are stood in for."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pvs_model.cli import main
from pvs_model.errors import VolumeError
from pvs_model.pipeline import SegmentationResult, Segmenter
from pvs_model.preprocessing.prepare import PreparedImages
from pvs_model.types import Case, Volume
from pvs_model.volume import registration
from pvs_model.volume.geometry import to_ras
from pvs_model.volume.io import read, write_volume

SHAPE = (40, 48, 36)


@pytest.fixture
def visits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three visits of a head of 3 mm, the second moved by 6 mm; the tenth is the last. PVS are where T2w is above 9."""
    x, y, z = (np.arange(n)[tuple(slice(None) if k == a else None for k in range(3))] for a, n in enumerate(SHAPE))
    head = ((x - 20) / 18) ** 2 + ((y - 24) / 20) ** 2 + ((z - 18) / 15) ** 2 < 1
    tissue = np.where(head, 2 + np.sin(x / 3) * np.cos(y / 4) + np.sin(z / 3 + x / 7), 0)
    for name, places in (("ses-2", ((15, 20, 15), (25, 20, 15))), ("ses-1", ((15, 20, 15),)), ("ses-10", ())):
        image = tissue.copy()
        for place in places:
            image[place] = 10
        affine = np.diag([3.0, 3.0, 3.0, 1.0])
        affine[0, 3] = 6.0 if name == "ses-2" else 0.0
        write_volume(tmp_path / "in" / f"{name}_T2w.nii.gz", image.astype(np.float32), affine)

    def segment(self: Segmenter, case: Case) -> SegmentationResult:
        if case.images["T2w"].stat().st_size < 100:
            raise VolumeError(f"{case.images['T2w']}: expected a complete image, got a damaged one")
        volume = read(case.images["T2w"])
        canonical, reorientation = to_ras(volume)
        image = np.zeros((3, *SHAPE), np.float32)
        image[1] = canonical.data
        mask = (image[1] > 9).astype(np.uint8)
        prepared = PreparedImages(image, image[1] != 0, canonical.grid, "T2w", reorientation, ())
        return SegmentationResult(mask, mask.astype(np.float32), "T2w", {}, prepared, mask)

    def register(fixed: Volume, moving: Volume) -> registration.SymmetricFit:
        return registration.SymmetricFit(fixed.affine @ np.linalg.inv(moving.affine), 0.3)

    monkeypatch.setattr(Segmenter, "segment", segment)
    monkeypatch.setattr(registration, "register_symmetric", register)
    return tmp_path / "in"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_visits_are_compared_in_order_of_names(visits: Path, own_weights: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(["longitudinal", str(visits), str(out), "--weights", str(own_weights), "--no-viewer"]) == 0
    table = rows(out / "longitudinal.csv")
    assert [(r["from"], r["to"]) for r in table] == [("ses-1", "ses-2"), ("ses-2", "ses-10"), ("ses-1", "ses-10")]
    counts = ("count_from", "count_to", "stable_from", "gone", "new")
    assert [[r[name] for name in counts] for r in table] == [
        ["1", "2", "1", "0", "1"], ["2", "0", "0", "2", "0"], ["1", "0", "0", "1", "0"],
    ]  # fmt: skip
    assert table[0]["volume_change_mm3"] == "27.0"
    assert [r["status"] for r in rows(out / "pvs_changes.csv")] == ["stable", "stable", "new", "gone", "gone", "gone"]
    assert (out / "longitudinal.html").is_file() and (out / "reports" / "cases" / "ses-10.html").is_file()
    assert len(list((out / "masks").glob("*_pred.nii.gz"))) == 3
    assert "longitudinal.html" in capsys.readouterr().out


def test_a_visit_that_fails_is_reported_and_the_others_compared(
    visits: Path, own_weights: Path, tmp_path: Path, capsys: Any
) -> None:
    (visits / "ses-2_T2w.nii.gz").write_bytes(b"damaged")
    arguments = [str(visits), str(tmp_path / "out"), "--weights", str(own_weights), "--no-viewer"]
    assert main(["longitudinal", *arguments]) == 1
    assert [(r["from"], r["to"]) for r in rows(tmp_path / "out" / "longitudinal.csv")] == [("ses-1", "ses-10")]
    assert "ses-2: " in capsys.readouterr().err


def test_an_unexpected_error_in_a_visit_leaves_the_others(
    visits: Path, own_weights: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segmenter.segment
    arguments = ["longitudinal", str(visits), str(tmp_path / "out"), "--weights", str(own_weights), "--no-viewer"]

    def fails(error: type[BaseException]) -> None:
        def broken(self: Segmenter, case: Case) -> SegmentationResult:
            if case.name == "ses-10":
                raise error("a bug")
            return segment(self, case)

        monkeypatch.setattr(Segmenter, "segment", broken)

    fails(RuntimeError)
    assert main(arguments) == 1
    assert "ses-10: unexpected RuntimeError: a bug" in capsys.readouterr().err
    assert [(r["from"], r["to"]) for r in rows(tmp_path / "out" / "longitudinal.csv")] == [("ses-1", "ses-2")]
    fails(KeyboardInterrupt)
    assert main(arguments) == 130
    assert capsys.readouterr().err == "error: stopped; masks already written are complete\n"


def test_visits_of_several_subjects_are_not_compared(
    visits: Path, own_weights: Path, tmp_path: Path, capsys: Any
) -> None:
    for number, path in enumerate(sorted(visits.iterdir())):
        path.rename(visits / f"sub-{number % 2}_{path.name}")
    assert main(["longitudinal", str(visits), str(tmp_path / "out"), "--weights", str(own_weights)]) == 2
    assert "expected visits of one subject, got 2: sub-0, sub-1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_visit_is_not_enough(visits: Path, own_weights: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = [str(tmp_path / "out"), "--weights", str(own_weights), "--no-viewer"]
    (visits / "ses-2_T2w.nii.gz").write_bytes(b"damaged")
    (visits / "ses-1_T2w.nii.gz").write_bytes(b"damaged")
    assert main(["longitudinal", str(visits), *arguments]) == 2
    assert "expected two or more visits that can be segmented, got 1" in capsys.readouterr().err
    for name in ("ses-1", "ses-2"):
        (visits / f"{name}_T2w.nii.gz").unlink()
    assert main(["longitudinal", str(visits), *arguments]) == 2
    assert "expected two or more visits, one case each, got 1" in capsys.readouterr().err
