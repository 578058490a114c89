"""``rank`` and ``agreement`` as a user calls them (``evaluate`` is in test_evaluate)."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pvs_model.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def teams(tmp_path: Path) -> Path:
    """Seven cases in two phases; team ``good`` is right, ``half`` finds every other voxel, ``late`` lacks a case."""
    for phase, cases in (("validation", range(7)), ("test", range(7, 14))):
        for k in cases:
            truth = np.zeros((10, 6, 6), np.uint8)
            truth[1:7, 1 + k % 3, 1 + k % 4] = 1
            half = truth.copy()
            half[4:] = 0
            half[k % 4 + 1, 5, 5] = 1  # not equal for all, so that the tests have ranks
            for name, mask in (("truth", truth), ("good", truth), ("half", half), ("late", half)):
                if name != "late" or k != 7:
                    path = tmp_path / name / phase / f"c{k}" / f"c{k}_{'PVS' if name == 'truth' else 'pred'}.nii.gz"
                    path.parent.mkdir(parents=True)
                    nib.save(nib.Nifti1Image(mask, np.eye(4)), path)  # type: ignore[attr-defined]
    return tmp_path


def test_teams_are_ranked_over_phases(teams: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rank", "--regions", "none", "--workers", "1", "--bootstrap", "50"]
    command += [f"--team={name}={teams / name}" for name in ("good", "half", "late")]
    command += [f"--truth={phase}={teams / 'truth' / phase}" for phase in ("validation", "test")]
    out = [teams / "out" / name for name in ("rank.json", "rank.csv", "rank.svg")]
    out[0].parent.mkdir()
    assert main([*command, "--json", str(out[0]), "--csv", str(out[1]), "--plot", str(out[2])]) == 0
    output = capsys.readouterr()
    assert "| good |     1 |" in output.out and "## Significantly better" in output.out and "## Stability" in output.out
    assert "warning: late: 1 of 7 cases have no prediction and get the worst scores: c7" in output.err
    content = json.loads(out[0].read_text())
    assert set(content) == {"ranking", "significance", "stability"}
    assert out[1].read_text().count("\n") > 3 and "<svg" in out[2].read_text()


def test_what_evaluate_has_written_is_ranked_the_same(teams: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = []
    for name, ending in (("good", "csv"), ("half", "json")):
        file = teams / f"{name}.{ending}"
        command = ["evaluate", "--truth", str(teams / "truth" / "test"), "--pred", str(teams / name / "test")]
        assert main([*command, "--workers", "1", f"--{ending}", str(file)]) == 0
        written.append(f"--scores={name}:test={file}")
    capsys.readouterr()
    assert main(["rank", *written, "--bootstrap", "0"]) == 0
    from_files = capsys.readouterr().out
    direct = [f"--team={name}={teams / name / 'test'}" for name in ("good", "half")]
    assert main(["rank", *direct, "--truth", f"test={teams / 'truth' / 'test'}", "--bootstrap", "0"]) == 0
    assert capsys.readouterr().out == from_files


def test_the_challenges_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", "--table", str(ROOT / "docs" / "challenge_table_6_7.csv")]) == 0
    output = capsys.readouterr().out
    places = [line.split("|")[1].strip() for line in output.splitlines()[4:11]]
    assert places == ["BIG_AEHRC", "CCNU_CS_24", "SHIVA", "HufsAim", "nic-vicorob", "bear_walker", "GDVL"]
    assert "means over cases" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected scores of two teams or more, got none"),
        (["--team", "a=b"], "--team, --reference: expected both"),
        (["--team", "b", "--truth", "c"], "--team: expected NAME=DIR, got b"),
        (["--scores", "x"], "--scores: expected NAME[:PHASE]=FILE, got x"),
        (["--truth", "c", "--truth", "d", "--team", "a=b"], "expected a unique name for each of several phases"),
        (["--bootstrap", "-1"], "--bootstrap: expected 0 or more, got -1"),
        (["--team", "b", "--plot", "x.gif"], "x.gif: expected a name that ends in .png or .svg, got .gif"),
        (["--table", str(ROOT / "docs" / "challenge_table_6_7.csv"), "--plot", "x.png"], "expected scores per case"),
    ],
)
def test_what_cannot_be_ranked_is_told(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_negative_seed_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", "--scores=A=missing.csv", "--seed", "-1"]) == 2
    output = capsys.readouterr()
    assert output.err == "error: --seed: expected 0 or more, got -1\n" and output.out == ""


def test_what_cannot_be_written_is_told(teams: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = teams / "a file"
    blocked.write_text("in the way")
    folders = ["--truth", str(teams / "truth" / "test"), "--workers", "1"]
    for option, name in (("--html", "x.html"), ("--json", "x.json"), ("--csv", "x.csv")):
        command = ["evaluate", *folders, "--pred", str(teams / "good" / "test"), option, str(blocked / name)]
        assert main(command) == 2
        assert f"error: {blocked / name}: expected to write it" in capsys.readouterr().err
    both = [f"--team={name}={teams / name / 'test'}" for name in ("good", "half")]
    assert main(["rank", *both, *folders, "--bootstrap", "9", "--plot", str(blocked / "x.png")]) == 2
    assert f"error: {blocked / 'x.png'}: expected to write it" in capsys.readouterr().err


def test_agreement_of_volumes_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"s{k},{100 * k + k % 3},{1 + k // 6},{'GE' if k % 2 else 'Siemens'}" for k in range(18)]
    table = tmp_path / "volumes.csv"
    table.write_text("subject,pvs_mm3,score,scanner\n" + "\n".join(lines) + "\n")
    out = tmp_path / "out.json"
    assert main(["agreement", str(table), "--volume", "pvs_mm3", "--group", "scanner", "--json", str(out)]) == 0
    assert "Spearman" in capsys.readouterr().out or "rho" in out.read_text()
    assert len(json.loads(out.read_text())["against"]) == 3  # all, GE, Siemens
    assert main(["agreement", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: expected a table" in capsys.readouterr().err
