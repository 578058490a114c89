"""``pvs-model bids``: the command line of BIDS Apps, and a derivative that the BIDS validator accepts."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pvs_model import pipeline
from pvs_model.anatomy.regions import Anatomy, label_table
from pvs_model.cli import main

WriteBody = Callable[..., dict[str, Path]]
BIN = str(Path(sys.executable).parent)
VALIDATOR = shutil.which("bids-validator-deno") or shutil.which("bids-validator-deno", path=BIN)
STEM = "sub-01/ses-a/anat/sub-01_ses-a_space-orig"
DEVICE = ("--device", "cpu", "--backend", "torch")


def half_brains(volumes: dict[str, Any], *_: Any) -> Anatomy:
    """White matter on both sides of the middle, in RAS order; stands in for the network."""
    shape = volumes["T2w"].data.shape
    labels = np.full(shape, 2, np.uint8)
    labels[shape[0] // 2 :] = 41
    return Anatomy(labels, np.ones(shape, bool))


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """Runs the command with small networks, and a stand-in for the anatomy network."""
    own = Path(shutil.copytree(weights, tmp_path_factory.mktemp("bids") / "weights"))
    (own / "anatomy.safetensors").write_bytes(b"stands in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "estimate_anatomy", half_brains)
        patch.setattr("pvs_model.inference.openvino.compiled", lambda networks, required=False: None)
        yield lambda *words: main(["bids", *map(str, words), "--weights", str(own), *DEVICE])


@pytest.fixture(scope="module")
def dataset(write_body: WriteBody, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for session, sequences in (("a", ("T1w", "T2w")), ("b", ("T2w",))):
        name = f"sub-01_ses-{session}"
        write_body(root / "sub-01" / f"ses-{session}" / "anat" / f"{name}_{{}}.nii.gz", sequences, signs=(-1, 1, 1))
    write_body(root / "sub-02" / "anat" / "sub-02_acq-fast_{}.nii.gz", ("T2w",))
    write_body(root / "sub-02" / "anat" / "sub-02_acq-slow_{}.nii.gz", ("T2w",))
    (root / "filter.json").write_text('{"t2w": {"acquisition": "slow"}}')
    return root


@pytest.fixture(scope="module")
def derivative(run: Callable[..., int], dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both participants, each by a job of its own, and then the group level."""
    output = tmp_path_factory.mktemp("derivative") / "pvs"
    assert run(dataset, output, "participant", "--participant-label", "01") == 0
    chosen = ("--participant_label", "sub-02", "--bids-filter-file", dataset / "filter.json", "--probability")
    assert run(dataset, output, "participant", *chosen) == 0
    assert not (output / "reports" / "burden.csv").exists()
    assert run(dataset, output, "group") == 0
    return output


def test_the_files_of_a_session(derivative: Path, dataset: Path) -> None:
    names = {f"{STEM}_{end}" for end in ("label-PVS_mask", "label-brain_mask", "seg-regions_dseg")}
    present = {path.relative_to(derivative).as_posix() for path in (derivative / "sub-01" / "ses-a").rglob("*.*")}
    assert present == {f"{name}{extension}" for name in names for extension in (".nii.gz", ".json")}
    reference = nib.load(dataset / "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz")
    for name in names:
        image = nib.load(derivative / f"{name}.nii.gz")
        np.testing.assert_array_equal(image.affine, reference.affine)
        sidecar = json.loads((derivative / f"{name}.json").read_text())
        sources = [f"bids:raw:sub-01/ses-a/anat/sub-01_ses-a_{sequence}.nii.gz" for sequence in ("T1w", "T2w")]
        assert sidecar["Sources"] == sources and sidecar["SpatialReference"] == "orig" and sidecar["Description"]
    regions = np.asarray(nib.load(derivative / f"{STEM}_seg-regions_dseg.nii.gz").dataobj)
    middle = len(regions) - len(regions) // 2  # the file is stored from right to left
    assert (regions[:middle] == 41).all() and (regions[middle:] == 2).all()


def test_the_files_of_the_data_set(derivative: Path, dataset: Path) -> None:
    description = json.loads((derivative / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "pvs_model"
    assert description["DatasetLinks"] == {"raw": str(dataset)}
    assert (derivative / ".bidsignore").read_text() == "reports\n"
    with (derivative / "seg-regions_dseg.tsv").open(newline="") as file:
        indices = [int(row["index"]) for row in csv.DictReader(file, delimiter="\t")]
    assert indices == [row.value for row in label_table()]


def test_the_filter_chose_an_image(derivative: Path) -> None:
    sidecar = json.loads((derivative / "sub-02/anat/sub-02_space-orig_label-PVS_mask.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-02/anat/sub-02_acq-slow_T2w.nii.gz"]
    assert (derivative / "reports" / "probability" / "sub-02_prob.nii.gz").is_file()


def test_the_group_level_joins_tables_and_writes_the_index(derivative: Path) -> None:
    with (derivative / "reports" / "burden.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with (derivative / "reports" / "burden.csv").open(newline="") as file:
        cases = [row["case"] for row in csv.DictReader(file)]
    labels = [(row["participant_id"], row["session_id"]) for row in rows]
    assert set(labels) == {("sub-01", "ses-a"), ("sub-01", "ses-b"), ("sub-02", "n/a")}
    assert ["_".join(part for part in label if part != "n/a") for label in labels] == cases
    assert all(f">{case}<" in (derivative / "reports" / "index.html").read_text() for case in set(cases))
    assert len(list((derivative / "reports" / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--participant-label", "01", "03", "04"), "expected an anat folder of sub-03, sub-04, got sub-01, sub-02"),
        (("--session-label", "ses-c"), "expected an anat folder of ses-c, got ses-a, ses-b"),
        (
            ("--participant-label", "02", "--session-label", "a"),
            "expected an anat folder of sub-02, got sub-01, sub-02",
        ),
    ],
)
def test_labels_that_do_not_exist(
    run: Callable[..., int], dataset: Path, tmp_path: Path, capsys: Any, words: tuple[str, ...], expected: str
) -> None:
    assert run(dataset, tmp_path / "out", "participant", *words) == 2
    assert capsys.readouterr().err == f"error: {dataset}: {expected}\n"
    assert not (tmp_path / "out").exists()


def test_labels_choose_participants_and_sessions(
    run: Callable[..., int], dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    chosen = ("--participant-label", "sub-01", "--session-label", "b", "--dry-run")
    assert run(dataset, tmp_path / "out", "participant", *chosen) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{dataset}: 1 case (bids)" and lines[1].startswith("sub-01_ses-b: ")
    assert lines[-1].startswith("  filter.json") and not any("sub-02" in line for line in lines)


def test_the_group_level_before_the_participants(
    run: Callable[..., int], dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    assert run(dataset, tmp_path, "group") == 2
    assert "expected the reports of the analysis level participant, got none: run it first" in capsys.readouterr().err
    assert run(dataset, tmp_path, "group", "--participant-label", "01") == 2
    assert "expected the analysis level participant, got group" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
def test_the_bids_validator_accepts_the_derivative(derivative: Path, tmp_path: Path) -> None:
    def errors(folder: Path) -> list[str]:
        command = [str(VALIDATOR), str(folder), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        issues = json.loads(done.stdout)["issues"]["issues"]
        return [f"{issue['code']} {issue.get('location')}" for issue in issues if issue["severity"] == "error"]

    assert errors(derivative) == []
    damaged = Path(shutil.copytree(derivative, tmp_path / "damaged"))
    (damaged / ".bidsignore").unlink()
    assert any(error.startswith("NOT_INCLUDED /reports") for error in errors(damaged))
