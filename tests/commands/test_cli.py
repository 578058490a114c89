"""``python -m pvs_model``: the commands around the main job, and the demo's picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pvs_model.cli import main
from pvs_model.commands import train as train_command
from pvs_model.commands.demo import AGREED, FALSE, MISSED, overlay
from pvs_model.layouts import choose
from pvs_model.training import segmentation
from pvs_model.training.config import TrainingConfig
from pvs_model.volume.io import read_grid, write_volume
from tests.processes import Python


@pytest.fixture
def label_maps(small_labels: npt.NDArray[np.int32], tmp_path: Path) -> Path:
    folder = tmp_path / "maps"
    for name in ("a", "b"):
        write_volume(folder / f"{name}.nii.gz", small_labels, np.eye(4))
    return folder


def test_simulate_writes_cases_that_the_container_reads(
    label_maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cases"
    arguments = ["simulate", "--anatomies", str(label_maps), "--count", "2", "--voxel-mm", "1.5", "1.5", "3"]
    assert main([*arguments, "--output", str(output)]) == 0
    cases = choose(output).find_cases(output)
    assert [case.name for case in cases] == ["sim0000", "sim0001"]
    for case in cases:
        assert case.problem is None and set(case.images) == {"T1w", "T2w", "FLAIR"}
        grids = [read_grid(path) for path in case.images.values()]
        grids.append(read_grid(output / case.name / f"{case.name}_PVS.nii.gz"))
        assert {grid.shape for grid in grids} == {grids[0].shape}
        assert all(np.allclose(grid.affine, grids[0].affine) for grid in grids)
        assert np.allclose(grids[0].spacing_mm, (1.5, 1.5, 3.0))
        record = json.loads((output / case.name / f"{case.name}_simulation.json").read_text())
        assert record["source"] in ("a.nii.gz", "b.nii.gz") and record["protocol"] == "1.5 x 1.5 x 3 mm"
    assert "2 cases made, 0 already present" in capsys.readouterr().out
    assert (output / "contact_sheet.png").is_file()


#: Runs ``python -m pvs_model`` with a command that is stopped while a thread preprocesses without end.
STOPPED = """
import runpy, threading
from concurrent.futures import ThreadPoolExecutor
from pvs_model import cli
ThreadPoolExecutor(1).submit(threading.Event().wait)
cli.main = lambda: 130
runpy.run_module("pvs_model", run_name="__main__")
"""


def test_a_stopped_command_does_not_wait_for_preprocessing() -> None:
    with Python(STOPPED, []) as ran:
        ran.process.join(30)
        assert ran.process.exitcode == 130


def test_errors_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nowhere"
    assert main(["simulate", "--anatomies", str(missing), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and str(missing) in message and "Traceback" not in message


@pytest.mark.parametrize(
    "wrong",
    [
        ["simulate", "--voxel-mm", "0", "1", "1", "--output", "OUT"],
        ["simulate", "--voxel-mm", "nan", "1", "1", "--output", "OUT"],
        ["simulate", "--count", "0", "--output", "OUT"],
        ["simulate", "--protocol", "1mm", "--voxel-mm", "1", "1", "1", "--output", "OUT"],
        ["simulate", "--protocol", "sg71", "--output", "OUT"],
        ["simulate", "--contrast", "0.7", "0.2", "--backgrounds", "MAPS", "--output", "OUT"],
        ["simulate", "--backgrounds", "OUT", "--anatomies", "MAPS", "--output", "OUT"],
        ["simulate", "--replay", "nowhere.json", "--output", "OUT"],
        ["simulate", "--replay", "nowhere.json", "--protocol", "sg70", "--output", "OUT"],
        ["train", "--network", "3d", "--patch", "47", "--output", "OUT", "--anatomies", "MAPS", "--encoder", "OUT"],
        ["release", "nowhere", "--network", "3d", "--threshold", "0.5", "--window", "96", "--weights", "OUT"],
    ],
)
def test_impossible_numbers_and_missing_files_are_told(
    wrong: list[str], label_maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"OUT": str(tmp_path / "out"), "MAPS": str(label_maps)}
    assert main([places.get(word, word) for word in wrong]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "expected" in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_folds_must_leave_something_to_train_on(
    label_maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--anatomies", str(label_maps), "--network", "3d", "--output", str(tmp_path / "run")]
    assert main([*arguments, "--encoder", str(tmp_path), "--fold", "5"]) == 2
    assert "fold < folds <= 2" in capsys.readouterr().err


@pytest.mark.parametrize(("network", "patch"), [("3d", 32), ("2d", 96)])
def test_a_training_has_small_patches_in_large_batches_unless_told_otherwise(
    network: str, patch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[TrainingConfig] = []

    def train(config: object, training: TrainingConfig, *_: object, **__: object) -> dict[str, float]:
        seen.append(training)
        return {}

    monkeypatch.setattr(segmentation, "train", train)
    monkeypatch.setattr(train_command, "_load_data", lambda *_: None)
    command = ["train", "--network", network, "--anatomies", str(tmp_path), "--output", str(tmp_path / "run")]
    assert main(command) == 0 and main([*command, "--patch", "64", "--batch", "2"]) == 0
    assert [(training.patch, training.batch) for training in seen] == [(patch, 8), (64, 2)]
    capsys.readouterr()


def test_segment_is_the_containers_entry_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "--input", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_overlay_shows_what_was_missed_found_and_agreed(tmp_path: Path) -> None:
    from matplotlib.image import imread

    image = np.ones((40, 40, 30), np.float32)
    truth, mask = np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    truth[10:20, 10:20], mask[10:20, 15:25] = True, True
    overlay(image, truth, mask, tmp_path / "overlay.png")
    pixels = imread(tmp_path / "overlay.png")[..., :3].reshape(-1, 3)
    for colour in (MISSED, FALSE, AGREED):
        assert (np.abs(pixels - colour).max(1) < 0.02).mean() > 0.005
