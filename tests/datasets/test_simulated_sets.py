"""Sets of cases: made once, made again bit for bit from their records, shown on a page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pvs_model.cli import main
from pvs_model.datasets import simulated_cases
from pvs_model.datasets import simulated_sets as sets
from pvs_model.datasets.simulated_cases import CaseSpec, digest, read_record, replay, save
from pvs_model.errors import PVSError
from pvs_model.simulation.contact_sheet import case_row, write_contact_sheet
from pvs_model.simulation.parameters import draw_scan
from pvs_model.simulation.protocols import TABLE_2, Protocol, on_grid
from pvs_model.simulation.subject import SimulatedCase
from pvs_model.types import SEQUENCES
from pvs_model.volume.io import read, write_volume

MASKS, MAPS = ("PVS", "BG", "CSO", "IGNORE"), ("FLUID", "CNR", "DIAMETER")
FILES = (*(f"{name}.nii.gz" for name in (*SEQUENCES, *MASKS, *MAPS)), "simulation.json")


@pytest.fixture(scope="module")
def maps(small_labels: npt.NDArray[np.int32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    for name in ("a", "b"):
        write_volume(folder / f"{name}.nii.gz", small_labels, np.eye(4))
    return folder


@pytest.fixture(scope="module")
def made(maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases on a coarse grid."""
    folder = tmp_path_factory.mktemp("made")
    arguments = ["simulate", "--anatomies", str(maps), "--count", "2", "--voxel-mm", "2", "2", "2"]
    assert main([*arguments, "--cache", str(folder / ".cache"), "--output", str(folder)]) == 0
    return folder


def write_set_of(maps: Path, folder: Path, sequences: tuple[str, ...]) -> int:
    plan = sets.plan_simulated(2, 0, on_grid((2.0, 2.0, 2.0)), sets.HeadModels(maps, None), sequences=sequences)
    return sets.write_set(folder, plan)


def contents(folder: Path, case: str) -> dict[str, bytes]:
    return {name: (folder / case / f"{case}_{name}").read_bytes() for name in FILES}


def test_a_case_is_replayed_bit_for_bit(made: Path, maps: Path, tmp_path: Path) -> None:
    record = made / "sim0001" / "sim0001_simulation.json"
    arguments = ["simulate", "--replay", str(record), "--anatomies", str(maps), "--output", str(tmp_path / "again")]
    assert main(arguments) == 0
    assert contents(tmp_path / "again", "sim0001") == contents(made, "sim0001")
    assert not (tmp_path / "again" / "contact_sheet.png").exists()
    # Also over itself, also when something of it is lost.
    (made / "sim0001" / "sim0001_T2w.nii.gz").unlink()
    assert main([*arguments[:-1], str(made)]) == 0
    assert contents(made, "sim0001") == contents(tmp_path / "again", "sim0001")


def test_a_replay_that_differs_is_told(
    made: Path, maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((made / "sim0000" / "sim0000_simulation.json").read_text())
    arguments = ["simulate", "--anatomies", str(maps), "--output", str(tmp_path / "out"), "--replay"]
    for changed, message in (
        ({"source": "c.nii.gz"}, "expected the label map c.nii.gz, got none of that name"),
        ({"sha256": "0" * 64}, "sim0000: expected the arrays of its record, got others"),
        ({"scene": 3}, "expected the record of a simulated case"),
        ({"format": 1}, "expected a record of format 2, got format 1 of another version of this program: simulate"),
    ):
        path = tmp_path / "record.json"
        path.write_text(json.dumps(record | changed))
        assert main([*arguments, str(path)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    path.write_text(json.dumps(record))
    assert main([*arguments, str(path), str(path)]) == 2
    assert "expected records of different cases, got 1 doubled" in capsys.readouterr().err


def test_a_set_goes_on_where_it_stopped(made: Path, maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", "--anatomies", str(maps), "--voxel-mm", "2", "2", "2", "--cache", str(made / ".cache")]
    before = contents(made, "sim0000")
    (made / "sim0001" / "sim0001_simulation.json").unlink()  # as if it was stopped while writing
    assert main([*arguments, "--count", "2", "--output", str(made)]) == 0
    assert "1 cases made, 1 already present" in capsys.readouterr().out
    assert contents(made, "sim0000") == before
    # Another case of the same name is not taken for this one, nor lost, unless it is asked for.
    assert main([*arguments[:-5], "3", "3", "3", "--output", str(made)]) == 2
    message = capsys.readouterr().err
    assert "expected a case of a.nii.gz, 3 x 3 x 3 mm, seed 0, got one of a.nii.gz, 2 x 2 x 2 mm, seed 0" in message
    assert contents(made, "sim0000") == before


def test_a_seed_has_its_case_in_every_set(maps: Path) -> None:
    heads = sets.HeadModels(maps, None)
    table = sets.plan_simulated(13, 5, "table2", heads).specs
    assert [order.protocol for order in table] == [TABLE_2[k % 11].name for k in range(5, 18)]
    eighth = CaseSpec("sim0008", "a.nii.gz", TABLE_2[8].name, 8)
    assert table[3] == sets.plan_simulated(1, 8, "table2", heads).specs[0] == eighth
    custom = sets.plan_simulated(2, 0, on_grid((1.0, 1.0, 4.0)), heads).specs
    assert [spec.protocol for spec in custom] == ["1 x 1 x 4 mm"] * 2
    assert sets.plan_simulated(1, 7, "random", sets.HeadModels(None, None)).specs == [
        CaseSpec("sim0007", "phantom-7", "random", 7)
    ]
    with pytest.raises(PVSError, match="expected the label map phantom, got none"):
        heads.find("phantom")


def test_a_random_case_draws_all_there_is_and_saves_what_it_has(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = sets.HeadModels(maps, None)
    monkeypatch.setattr(simulated_cases, "draw_voxel", lambda seed, dimensions: ((2.0, 2.0, 2.4), "coronal"))
    seed = next(s for s in range(99) if 0 < sum(draw_scan(s).present) < 3)
    plan = sets.plan_simulated(1, seed, "random", heads)
    assert sets.write_set(tmp_path, plan) == 1
    case = plan.make(plan.specs[0])
    written = {p.name.split("_")[1].split(".")[0] for p in (tmp_path / plan.specs[0].case).glob("*.nii.gz")}
    assert written - {*MASKS, *MAPS} == {
        n for n, there in zip(("T1w", "T2w", "FLAIR"), case.present, strict=True) if there
    }
    assert read_record(tmp_path / plan.specs[0].case / f"{plan.specs[0].case}_simulation.json").sha256 == digest(case)


def test_what_is_known_of_the_pvs_lies_beside_the_labels(maps: Path, tmp_path: Path) -> None:
    import nibabel

    heads = sets.HeadModels(maps, None)
    plan = sets.plan_simulated(1, 3, on_grid((2.0, 2.0, 2.0)), heads, subject="wide")
    (order,) = plan.specs
    case = plan.make(order)
    save(tmp_path, order, case)
    fields = dict(zip((*MASKS, *MAPS), (
        case.pvs.label, case.basal_ganglia, case.centrum_semiovale, case.pvs.ignore, case.pvs.pvs_fraction,
        case.pvs.cnr, case.pvs.diameter_mm,
    ), strict=True))  # fmt: skip
    for name, expected in fields.items():
        file = nibabel.load(tmp_path / order.case / f"{order.case}_{name}.nii.gz")
        stored = np.asarray(file.dataobj)  # type: ignore[attr-defined]
        assert stored.dtype == expected.dtype == (np.uint8 if name in MASKS else np.float32), name
        np.testing.assert_array_equal(stored, expected, err_msg=name)
        np.testing.assert_allclose(file.affine, case.affine, atol=1e-6)  # type: ignore[attr-defined]
    assert case.pvs.label.any() and not (case.pvs.label & case.pvs.ignore).any()
    assert 0 <= case.pvs.pvs_fraction.min() < case.pvs.pvs_fraction.max() <= 1
    np.testing.assert_array_equal(case.pvs.diameter_mm[case.pvs.pvs_fraction > 0] > 0, True)
    seen = (case.pvs.label | case.pvs.ignore) > 0
    assert (case.pvs.cnr[seen] > 0.5).all() and case.reference is case.pvs.label
    # From its record: bit for bit, maps included; another PVS fraction is another case.
    record = read_record(tmp_path / order.case / f"{order.case}_simulation.json")
    again = replay(record, heads.find, lambda name: pytest.fail("no scan is asked for"))
    assert digest(again) == digest(case) == record.sha256
    changed = dataclasses.replace(case, pvs=dataclasses.replace(case.pvs, pvs_fraction=case.pvs.pvs_fraction / 2))
    assert digest(changed) != record.sha256


@pytest.mark.parametrize("protocol", [on_grid((2.0, 2.0, 2.4)), "random"], ids=["own", "random"])
def test_a_set_may_hold_one_kind_of_subject(
    maps: Path, monkeypatch: pytest.MonkeyPatch, protocol: str | Protocol
) -> None:
    heads = sets.HeadModels(maps, None)
    monkeypatch.setattr(simulated_cases, "draw_voxel", lambda seed, dimensions: ((2.0, 2.0, 2.4), "coronal"))
    medians = []
    for subject in ("thin", "wide"):
        plan = sets.plan_simulated(1, 4, protocol, heads, subject)
        assert plan.specs[0].protocol.endswith(f", {subject} PVS")
        case = plan.make(plan.specs[0])
        assert isinstance(case, SimulatedCase)
        medians.append(case.scene.pvs_basal_diameter_mm)
    assert medians[0] < medians[1]
    named = sets.plan_simulated(2, 4, "table2", heads, "thin").specs
    assert [order.protocol for order in named] == [f"{TABLE_2[k].name}, thin PVS" for k in (4, 5)]


def test_labels_follow_the_sequences_that_are_acquired(made: Path, maps: Path, tmp_path: Path) -> None:
    arguments = ["simulate", "--anatomies", str(maps), "--count", "2", "--voxel-mm", "2", "2", "2"]
    assert main([*arguments, "--sequences", "T1w", "--output", str(tmp_path)]) == 0
    folder = tmp_path / "sim0001"
    assert [name for name in SEQUENCES if (folder / f"sim0001_{name}.nii.gz").exists()] == ["T1w"]
    alone, complete = ({name: read(path / "sim0001" / f"sim0001_{name}.nii.gz").data for name in ("FLUID", "CNR")}
                       for path in (tmp_path, made))  # fmt: skip
    np.testing.assert_array_equal(alone["FLUID"], complete["FLUID"])
    assert (alone["CNR"] <= complete["CNR"] * 1.001).all()
    assert 0 < alone["CNR"].sum() < complete["CNR"].sum()
    assert read_record(folder / "sim0001_simulation.json").spec.protocol == "2 x 2 x 2 mm, T1w alone"
    with pytest.raises(PVSError, match="T2w alone"):  # a set of other sequences is another set
        write_set_of(maps, tmp_path, ("T2w",))


@pytest.mark.parametrize("option", [("--protocol", "random"), ("--backgrounds", "scans"), ("--replay", "a.json")])
def test_sequences_that_others_define_cannot_be_left_out(
    option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--sequences", "T1w", *option, "--output", str(tmp_path)]) == 2
    assert "--sequences: expected" in capsys.readouterr().err


def test_masks_are_bytes_on_the_grid_of_the_images(made: Path) -> None:
    import nibabel

    folder = made / "sim0000"
    image = read(folder / "sim0000_T2w.nii.gz")
    for name in MASKS:
        mask = nibabel.load(folder / f"sim0000_{name}.nii.gz")
        assert mask.get_data_dtype() == np.uint8 and mask.shape == image.data.shape  # type: ignore[attr-defined]
        np.testing.assert_allclose(mask.affine, image.affine)  # type: ignore[attr-defined]


# ---- the page ------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_slices_with_most_to_see(tmp_path: Path) -> None:
    images = np.zeros((3, 12, 10, 8), np.float32)
    images[:, 2:10, 1:9, 1:7] = 100.0
    images[1, 5, 4, 3] = 900.0
    truth, cso, bg = np.zeros((3, 12, 10, 8), np.uint8)
    cso[2:10, 1:9, 1:7] = 1
    bg[4:7, 3:6, 2:4] = 1
    truth[5, 4, 2:5] = 1
    truth[6, 5, 4] = 1  # slice 4 has two
    shown = case_row("one", images, (True, True, False), truth, (cso, bg), (1.0, 1.0, 1.0))
    assert len(shown.panels) == 8 and [p.image is None for p in shown.panels] == [False, False, True, False] * 2
    assert (
        shown.panels[0].reference.shape == (8, 8) and not shown.panels[0].reference.any()
    )  # cut to what is shown, RAS-oriented
    assert shown.panels[3].reference.sum() == 2 and shown.panels[7].reference.sum() == 1
    assert shown.panels[3].reference[8 - 1 - (4 - 1), 5 - 2]  # rows run down, y up
    # Thick slices are shown as they were acquired, whichever way they lie.
    coronal = case_row("two", images, (True, True, True), truth, (cso, bg), (1.0, 5.0, 1.2))
    assert coronal.panels[0].reference.shape == (6, 8) and coronal.panels[0].aspect == 1.2
    path = tmp_path / "deep" / "page.png"
    write_contact_sheet([shown, coronal], path)
    from matplotlib.image import imread

    page = imread(path)
    assert page.shape[1] > 8 * 100 and page[..., :3].max() > 0.9
