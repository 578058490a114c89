"""The log of a run: its rows, the clock behind it, and its picture."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pvs_model.training import run_log
from pvs_model.training.run_log import AFTER, BEFORE, CsvLog, Throughput, can_plot, plot, read_rows

SCORES = ("dice_at_0.5", "best_dice", "best_threshold")
COLUMNS = (*BEFORE, *SCORES, *AFTER)


def filled(path: Path, steps: list[int]) -> CsvLog:
    book = CsvLog(path, 0, SCORES)
    for step in steps:
        book.add({name: step if name == "step" else step / 1000 for name in COLUMNS})
    return book


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    filled(tmp_path / "log.csv", [200, 400])
    rows = read_rows(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["200", "400"] and rows[1]["loss"] == "0.4"
    assert read_rows(tmp_path / "none.csv") == []
    assert (tmp_path / "log.csv").read_text().splitlines()[0].split(",") == list(COLUMNS)


def test_a_resumed_log_ends_where_the_state_does(tmp_path: Path) -> None:
    filled(tmp_path / "log.csv", [200, 400, 600])
    book = CsvLog(tmp_path / "log.csv", 400, SCORES)
    book.add(dict.fromkeys(COLUMNS, 500))
    assert [row["step"] for row in read_rows(tmp_path / "log.csv")] == ["200", "400", "500"]


def test_a_log_with_fewer_columns_or_none_goes_on(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n200,0.5\n")
    CsvLog(tmp_path / "log.csv", 200, SCORES).add(dict.fromkeys(COLUMNS, 400))
    first, second = read_rows(tmp_path / "log.csv")
    assert (first["step"], first["loss"], first["data_share"]) == ("200", "0.5", "") and second["data_share"] == "400"
    (tmp_path / "empty.csv").touch()
    CsvLog(tmp_path / "empty.csv", 0, SCORES)
    assert (tmp_path / "empty.csv").read_text().strip() == ",".join(COLUMNS)


@pytest.mark.parametrize(
    "end", ["4", "400,0.4", "400,0.4,1e-", "x,1,2", ",,", "\0\0\0\0", "\udcff\udc80", "400.5,1", '40"']
)
def test_a_log_that_a_crash_has_cut_off_goes_on(end: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    filled(path, [200])
    with path.open("a", errors="surrogateescape") as file:
        file.write(end)
    book = CsvLog(path, 400, SCORES)
    book.add(dict.fromkeys(COLUMNS, 600))
    steps = [row["step"] for row in read_rows(path)]
    assert steps[0] == "200" and steps[-1] == "600" and set(steps) <= {"4", "200", "400", "600"}
    if can_plot():
        plot(path, tmp_path / "log.png")


def test_the_share_of_time_that_data_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    throughput = Throughput()
    for _ in range(2):
        with throughput.waiting(4):
            now[0] += 1.0
        now[0] += 3.0
    assert throughput.measured() == {"samples_per_second": 8 / 8.0, "data_share": 2 / 8.0}
    throughput.restart()
    now[0] += 2.0
    assert throughput.measured() == {"samples_per_second": 0.0, "data_share": 0.0}


def test_the_picture_can_be_read_without_colours(tmp_path: Path) -> None:
    from matplotlib.image import imread

    filled(tmp_path / "log.csv", [200, 400, 600])
    plot(tmp_path / "log.csv", tmp_path / "log.png")
    pixels = imread(tmp_path / "log.png")[..., :3]
    assert pixels.shape[0] > 300 and pixels.shape[1] > 1000
    assert np.ptp(pixels, axis=2).max() == 0, "grey only: curves differ by line and marker"
    halves = np.array_split(pixels[..., 0], 2, axis=1)
    assert all(0.01 < float((half < 0.9).mean()) < 0.5 for half in halves)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "log.png"]


def test_a_log_of_one_row_or_with_gaps_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n200,0.5\n")
    plot(tmp_path / "log.csv", tmp_path / "log.png")
    assert (tmp_path / "log.png").stat().st_size > 1000


def test_without_matplotlib_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert can_plot() and caplog.text == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not can_plot() and caplog.text.count("\n") == 1 and "matplotlib is not installed" in caplog.text
