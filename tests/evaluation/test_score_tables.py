"""Scores from an evaluation and from files: every spelling that is taken, every mistake that is reported."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from challenge_tables import SCORES

from pvs_model.errors import PVSError
from pvs_model.evaluation.metrics import all_sets
from pvs_model.evaluation.ranking import Score, rank
from pvs_model.evaluation.results import Evaluation, Row
from pvs_model.evaluation.score_tables import read_scores, scores_of
from pvs_model.evaluation.summary import as_csv, as_json
from pvs_model.evaluation.tables import csv_text, read_csv

DOCS = Path(__file__).parents[2] / "docs"


def write(folder: Path, text: str, name: str = "scores.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def row(case: str, region: str, site: str = "") -> Row:
    """One true voxel, found, and one too many: recall 1, precision 1/2, Dice 2/3, AVD 1."""
    truth, prediction = np.zeros((2, 5, 5, 5), bool)
    truth[1, 1, 1] = prediction[1, 1, 1] = prediction[4, 4, 4] = True
    counts, sets = all_sets(prediction, truth, (1.0, 1.0, 1.0))
    return Row(case, site, "1 x 1 x 1 mm", region, "scored", counts, sets, Path("truth.nii.gz"))


def test_the_table_of_the_docs_is_the_papers() -> None:
    assert read_scores(DOCS / "challenge_table_6_7.csv") == SCORES


def test_columns_in_any_order_case_and_spelling(tmp_path: Path) -> None:
    expected = [Score("A", "test", "BG", "s 1", 0.1, 1.5, 0.3, 0.4), Score("B", "test", "BG", "s 1", None, 0, None, 1)]
    plain = "team,phase,region,case,recall,precision,dice,avd\nA,test,BG,s 1,.1,1.5,.3,.4\nB,test,BG,s 1,,0,nan,1\n"
    other = "\ufeffDSC;AVD; Recall ;PRECISION;Region;Team;Case;Phase\n\n"
    other += ".3;.4;1e-1;1.5;BG;A;s 1;test\r\nNA;1;-;0;BG;B;s 1;test\n"
    assert read_scores(write(tmp_path, plain)) == expected
    assert read_scores(write(tmp_path, other)) == expected
    assert read_scores(write(tmp_path, plain.replace(",", "\t"))) == expected


def test_a_table_without_cases_and_phases(tmp_path: Path) -> None:
    path = write(tmp_path, "team,region,recall,precision,dice,avd\nA,BG,.1,.2,.3,.4\n")
    assert read_scores(path) == [Score("A", "all", "BG", None, 0.1, 0.2, 0.3, 0.4)]
    assert read_scores(path, phase="test")[0].phase == "test"
    assert read_scores(path, team="Ours")[0].team == "Ours"


EVALUATED = """\
case,site,protocol,region,status,official.dice,official.avd,official.avd_capped,official.recall,official.precision,voxels.dice
1,Edin,1 mm,CSO,scored,0.5,3.5,1,0.25,1.25,0.5
1,Edin,1 mm,BG,scored,,,1,0,0,
1,Edin,1 mm,all,scored,0.6,0.5,0.5,0.2,0.3,0.6
2,,1 mm,all,scored,0.6,0.5,0.5,0.2,0.3,0.6
"""


def test_the_csv_of_an_evaluation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, EVALUATED)
    with caplog.at_level(logging.WARNING):
        assert read_scores(path, team="Ours", phase="test") == [
            Score("Ours", "test", "CSO", "Edin/1", 0.25, 1.25, 0.5, 1),
            Score("Ours", "test", "BG", "Edin/1", 0, 0, None, 1),
        ]
    assert "2 left out, which have no scores of CSO or BG" in caplog.text
    with pytest.raises(PVSError, match="or a name for the team.*got no team in"):
        read_scores(path)


def test_without_the_challenges_regions_all_count(tmp_path: Path) -> None:
    lines = EVALUATED.splitlines(keepends=True)
    assert [s.region for s in read_scores(write(tmp_path, lines[0] + lines[3] + lines[4]), "A")] == ["all", "all"]


def test_json_in_three_forms(tmp_path: Path) -> None:
    expected = [Score("A", "all", "BG", "1", 0.1, 0.2, None, 0.4)]
    plain = [{"Team": "A", "region": "BG", "case": 1, "recall": 0.1, "precision": 0.2, "DSC": None, "AVD": 0.4}]
    official = {"recall": 0.1, "precision": 0.2, "dice": None, "avd": 9, "avd_capped": 0.4}
    nested = {"rows": [{"team": "A", "region": "BG", "case": "1", "sets": {"official": official}}]}
    for content in (plain, {"scores": plain}, nested):
        assert read_scores(write(tmp_path, json.dumps(content), "scores.json")) == expected


def test_scores_of_an_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    report = Evaluation((row("1", "CSO", "Edin"), row("1", "BG", "Edin"), row("1", "all", "Edin")), ())
    expected = [Score("Ours", "test", region, "Edin/1", 1, 1 / 2, 2 / 3, 1) for region in ("CSO", "BG")]
    assert scores_of(report, "Ours", "test") == expected
    assert rank(scores_of(report, "Ours")).rows[0].position == 1
    assert [s.region for s in scores_of(Evaluation((row("1", "all"),), ()), "Ours")] == ["all"]
    assert caplog.text == ""


HEAD = "team,region,case,recall,precision,dice,avd\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a table, got an empty file"),
        (HEAD, "its first line only"),
        ("team,region,recall,dice\nA,BG,1,1\n", "got no precision, avd in dice, recall, region, team"),
        (
            HEAD + "A,BG,1,1.2,.5,.5,.5\n",
            "line 2: A, phase all, region BG, case 1: expected recall of 0 to 1, got 1.2",
        ),
        (HEAD + "A,BG,1,.2,.5,.5,2.5\n", "line 2.*expected avd of 0 to 1, got 2.5"),
        (HEAD + "A,BG,1,.2,-1,.5,.5\n", "expected precision of 0 or more, got -1"),
        (HEAD + "A,BG,1,.2,inf,.5,.5\n", "expected a number in column precision, got inf"),
        (HEAD + "A,BG,1,.2,0.5 (3),.5,.5\n", "line 2: expected a number in column precision, got 0.5 .3."),
        (HEAD + "A,BG,1,.2,.5,.5,.5\nA,BG,1,.2,.5,.5,.5\n", "line 3: expected A.*case 1 once, got it in .*line 2"),
        (HEAD + "A,,1,.2,.5,.5,.5\n", "line 2: expected a region in column region, got an empty cell"),
        (HEAD + ",BG,1,.2,.5,.5,.5\n", "expected a team in column team, got an empty cell"),
        (HEAD + "A,BG,,.2,.5,.5,.5\n", "expected a case in column case, got an empty cell"),
        (HEAD + "A,BG,1,.2\n", "line 2: expected 7 cells as in the first line, got 4"),
        (HEAD + 'A,BG,1,.2,.5,.5,".5\n', "line 2: expected a CSV table, got"),
        (HEAD.replace("dice", "recall"), "expected each column once, got recall twice"),
    ],
)
def test_mistakes_in_a_csv_are_told_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(PVSError, match=said) as caught:
        read_scores(write(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "scores.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "[1]", '{"scores": {}}', "3"])
def test_mistakes_in_json_are_told_in_a_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(PVSError, match=r"scores.json: expected"):
        read_scores(write(tmp_path, text, "scores.json"))


def test_one_name_cannot_stand_for_several_teams(tmp_path: Path) -> None:
    path = write(tmp_path, HEAD + "A,BG,1,.2,.5,.5,.5\nB,BG,1,.2,.5,.5,.5\n")
    with pytest.raises(PVSError, match="expected one team, to be named Ours, got A, B"):
        read_scores(path, team="Ours")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PVSError, match="none.csv: expected a table, got No such file"):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(PVSError, match="got Is a directory"):
        read_scores(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PVSError, match="expected text in UTF-8"):
        read_csv(tmp_path / "bytes.csv")


def test_an_evaluation_is_ranked_alike_from_any_file(tmp_path: Path) -> None:
    """Scores that differ in the seventh digit; a rounded file would make two teams equal, or reverse their order."""
    teams = {"A": 2 / 3 + 1e-7, "B": 2 / 3, "C": 1e-9}
    scores: dict[str, list[Score]] = {"memory": [], "csv": [], "json": []}
    for team, dice in teams.items():
        sets = row("1", "CSO").sets
        values = {**sets, "official": {**sets["official"], "dice": dice}}
        report = Evaluation(tuple(replace(row(case, "CSO"), sets=values) for case in "123"), ())
        scores["memory"] += scores_of(report, team)
        scores["csv"] += read_scores(write(tmp_path, as_csv(report.rows)), team)
        scores["json"] += read_scores(write(tmp_path, json.dumps(as_json(report)), "scores.json"), team)
    assert scores["csv"] == scores["json"] == scores["memory"]
    assert [entry.team for entry in rank(scores["csv"]).rows] == ["A", "B", "C"]


def test_csv_has_four_decimals_empty_cells_and_no_formulas() -> None:
    rows = [{"name": "=1+1", "x": 2 / 3, "n": 3}, {"name": "a, b", "x": float("nan"), "n": None}]
    assert csv_text(["name", "x", "n"], rows) == 'name,x,n\n =1+1,0.6667,3\n"a, b",,\n'
    assert csv_text(["name"], []) == "name\n"
