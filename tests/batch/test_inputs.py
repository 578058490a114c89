"""Which files a run uses, which part of the cases it takes, and which images a mask was made from."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from pvs_model import cli
from pvs_model.batch import Part, inputs
from pvs_model.batch.outputs import image_digest
from pvs_model.commands import cohort, segment, validate
from pvs_model.config import BatchConfig
from pvs_model.types import Case
from tests import processes

ROOT = Path(__file__).parents[2]
WriteBody = Callable[..., dict[str, Path]]


def run(source: Path, output: Path, weights: Path, *more: str) -> int:
    given = ["--input", str(source), "--output", str(output), "--weights", str(weights), "--device", "cpu"]
    return segment.main([*given, "--backend", "torch", *more])


def test_options_of_the_inference_are_those_given(tmp_path: Path) -> None:
    for command, positional in ((segment, []), (cohort, ["IN", "OUT"]), (validate, ["IN"])):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        options = ["--weights", str(tmp_path), "--no-anatomy", "--n4", "--resume", "--workers", "3"]
        args = parser.parse_args([*positional, *options])
        assert inputs.batch_config(args) == BatchConfig(tmp_path, anatomy=False, n4=True, resume=True)
        assert inputs.batch_config(args, args.workers).workers == 3


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- --dry-run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name in (
        "P1/3_t1_mprage.nii.gz", "P1/7_t2_spc_da-fl.nii.gz", "P1/5_t1_tra_KM.nii.gz", "P1/9_t2_GRE.nii.gz",
        "P1/dwi.nii.gz", "P1/P1_PVS.nii.gz", "P1/dwi.bval", "P1/._3_t1_mprage.nii.gz", "derivatives/x/P1/T1.nii.gz",
        "P2/T1.nii", "P2/T1.nii.gz", "notes.txt",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "P3").symlink_to("/outside")
    (root / "P1" / "FLAIR").mkdir()
    return root


def test_a_dry_run_says_what_would_be_done_and_why(odd: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert segment.main(["--input", str(odd), "--output", str(out), "--weights", "none", "--dry-run"]) == 1
    messages = capsys.readouterr().out.splitlines()
    assert messages[0] == f"{odd}: 3 cases (epvs)"
    assert messages[1:4] == [
        f"P1: {out / 'P1' / 'P1_pred.nii.gz'}",
        '  T1w   P1/3_t1_mprage.nii.gz  ("t1")',
        '  FLAIR P1/7_t2_spc_da-fl.nii.gz  ("da fl")',
    ]
    assert messages[4].startswith("P2: cannot be run: ") and "T1.nii, T1.nii.gz for T1w" in messages[4]
    assert messages[5].startswith("P3: cannot be run: ") and "a broken link to /outside" in messages[5]
    assert sorted(messages[7:]) == sorted([
        "  derivatives  (other data)",
        "  notes.txt  (no image)",
        "  P1/FLAIR  (empty)",
        "  P1/._3_t1_mprage.nii.gz  (hidden)",
        '  P1/5_t1_tra_KM.nii.gz  (after contrast agent ("km"))',
        '  P1/9_t2_GRE.nii.gz  (T2* or susceptibility ("gre"))',
        "  P1/dwi.bval  (no image)",
        '  P1/dwi.nii.gz  (another scan type ("dwi"))',
        '  P1/P1_PVS.nii.gz  (a mask, label or map ("pvs"))',
    ])  # fmt: skip
    assert messages[6] == "unused: 9" and not out.exists()


def test_a_dry_run_of_good_cases_and_of_none(write_body: WriteBody, tmp_path: Path, capsys: Any) -> None:
    write_body(tmp_path / "in" / "sub-1" / "anat" / "sub-1_{}.nii.gz", ("T2w",))
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--dry-run"]
    assert cli.main(["cohort", *words]) == 0
    assert "sub-1_T2w.nii.gz" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert cli.main(["cohort", str(tmp_path / "empty"), *words[1:]]) == 2
    assert "got an empty folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_of_many_files_and_names_of_all_kinds(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "in"
    for name in ("Ü 1/T1.nii", "Ü 1/a\nb.txt", *(f"dicom/IM{n:04}" for n in range(30))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "loop").symlink_to(root)
    assert segment.main(["--input", str(root), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    messages = capsys.readouterr().out
    assert "  dicom/IM0000 and 29 more  (no image)\n" in messages and "Ü 1/a\\nb.txt" in messages


def test_a_run_names_unused_files(
    write_body: WriteBody, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    shutil.copyfile(tmp_path / "in" / "a" / "a_T2w.nii.gz", tmp_path / "in" / "a" / "t1_tra_KM.nii.gz")
    with caplog.at_level(logging.INFO):
        assert run(tmp_path / "in", tmp_path / "out", weights) == 0
    assert "unused: a/t1_tra_KM.nii.gz (--dry-run lists the reasons)" in caplog.messages


# ---- --part and report ---------------------------------------------------------------------------------------------


@given(names=st.sets(st.text("ab1", min_size=1)), count=st.integers(1, 9))
def test_parts_are_disjoint_and_cover_all_cases(names: set[str], count: int) -> None:
    cases = sorted(names)
    parts = [Part.parse(f"{index}/{count}").select(cases) for index in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == cases
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and all(part == sorted(part) for part in parts)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
def test_a_part_that_does_not_exist(text: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        segment.main([f"--part={text}"])
    assert f"argument --part: expected K/N with K from 1 to N, got {text}" in capsys.readouterr().err


def test_parts_give_what_one_run_gives(write_body: WriteBody, weights: Path, tmp_path: Path, capsys: Any) -> None:
    """A job array over one folder; the reports of its parts are joined afterwards."""
    source, whole, parts = tmp_path / "in", tmp_path / "whole", tmp_path / "parts"
    for number, name in enumerate("abc"):
        write_body(source / name / f"{name}_{{}}.nii.gz", ("T2w",), spacing_mm=(1.0, 1.0, 1.0 + 0.1 * number))
    (source / "c" / "c_T2w.nii.gz").write_bytes(b"no image")
    assert run(source, whole / "out", weights, "--report", str(whole / "rep")) == 1
    for index, code in ((3, 1), (1, 0), (4, 0), (2, 0)):
        more = ("--report", str(parts / "rep"), "--part", f"{index}/4")
        assert run(source, parts / "out", weights, *more) == code
    assert hashes(parts / "out") == hashes(whole / "out")
    tables = ("burden.csv", "pvs.csv", "index.html")
    for name in tables:
        (parts / "rep" / name).unlink()
    capsys.readouterr()
    assert cli.main(["report", str(parts / "rep")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: c: ") and err.count("\n") == 1
    for name in tables[:2]:
        assert (parts / "rep" / name).read_bytes() == (whole / "rep" / name).read_bytes()
    assert all(f">{name}<" in (parts / "rep" / "index.html").read_text() for name in "abc")


def test_a_dry_run_of_a_part(write_body: WriteBody, tmp_path: Path, capsys: Any) -> None:
    for name in "ab":
        write_body(tmp_path / "in" / name / f"{name}_{{}}.nii.gz", ("T2w",))
    assert cli.main(["cohort", str(tmp_path / "in"), str(tmp_path / "out"), "--dry-run", "--part", "2/2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if "_pred.nii.gz" in line] == ["b"] and lines[-1] == "unused: nothing"


def test_a_folder_without_reports(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: expected a folder of reports with cases/*.json, got none\n"


# ---- one call per subject, and what a mask was made from -----------------------------------------------------------


def test_one_call_per_subject_into_one_output(write_body: WriteBody, weights: Path, tmp_path: Path) -> None:
    for name, spacing in (("sub-01", 1.0), ("sub-02", 1.1)):
        write_body(tmp_path / "bids" / name / "anat" / f"{name}_{{}}.nii.gz", ("T2w",), spacing_mm=(spacing,) * 3)
        write_body(tmp_path / "flat" / name / "{}.nii.gz", ("T2w",), spacing_mm=(spacing,) * 3)
        for form in ("bids", "flat"):
            assert run(tmp_path / form / name, tmp_path / f"out_{form}", weights, "--resume") == 0
    assert len(list((tmp_path / "out_bids").rglob("*_mask.nii.gz"))) == 2
    assert sorted(hashes(tmp_path / "out_flat")) == ["sub-01_pred.nii.gz", "sub-02_pred.nii.gz"]


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_resuming_knows_what_a_mask_was_made_from(
    write_body: WriteBody, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    source, output = tmp_path / "P1", tmp_path / "out"
    image = write_body(source / f"x_{{}}{ending}", ("T2w",))["T2w"]
    assert run(source, output, weights) == 0
    (mask,) = output.iterdir()
    first = mask.read_bytes()
    with caplog.at_level(logging.INFO):
        assert run(source, output, weights, "--resume") == 0
        assert f"{output}: 1 of 1 cases were there already" in caplog.messages
        write_body(source / f"x_{{}}{ending}", ("T2w",), tilt_deg=5.0, margin_mm=4.5)
        caplog.clear()
        assert run(source, output, weights, "--resume") == 0
    assert "x: replaces a mask that was made from other images" in caplog.messages
    assert mask.read_bytes() != first and image.is_file()


VOXELS = np.arange(64 * 64 * 20, dtype=np.float32).reshape(20, 64, 64)


def digest_of(path: Path) -> str:
    return image_digest(Case("case", {"T2w": path}, Path("mask.nii.gz")))


def image_of(ending: str, folder: Path, voxels: np.ndarray) -> Path:
    """Writes an image, uncompressed where its form allows; ``nhdr`` stands for a header named ``.nrrd`` with a file."""
    path = folder / f"T2.{ending}"
    folder.mkdir(parents=True, exist_ok=True)
    if ending in ("nii", "nii.gz"):
        nib.save(nib.Nifti1Image(voxels.T, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    return path if ending != "nhdr" else path.rename(path.with_suffix(".nrrd"))


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "mha", "mhd", "nrrd", "nhdr", "tif"])
def test_every_voxel_enters_the_digest(tmp_path: Path, ending: str) -> None:
    digests = [digest_of(image_of(ending, tmp_path / "same", VOXELS)) for _ in range(2)]
    for place in (0, VOXELS.size // 2, VOXELS.size - 1):
        changed = VOXELS.copy()
        changed.flat[place] += 1
        digests.append(digest_of(image_of(ending, tmp_path / str(place), changed)))
    assert digests[0] == digests[1] and len(set(digests[1:])) == 4


@pytest.mark.parametrize(
    ("header", "ending"),
    [
        ("ElementDataFile = s%03d.raw 1 2 1\n", "mhd"), ("ElementDataFile = LIST\ns001.raw\ns002.raw\n", "mhd"),
        ("NRRD0004\ndata file: LIST\ns001.raw\ns002.raw\n", "nrrd"), ("NRRD0004\r\ndatafile: s002.raw\r\n\r\n", "nrrd"),
    ],
)  # fmt: skip
def test_every_file_of_the_voxels_enters_the_digest(tmp_path: Path, header: str, ending: str) -> None:
    digests = set()
    for second in (b"b", b"c"):
        (tmp_path / "s001.raw").write_bytes(b"a")
        (tmp_path / "s002.raw").write_bytes(second)
        (tmp_path / f"T2.{ending}").write_bytes(header.encode())
        digests.add(digest_of(tmp_path / f"T2.{ending}"))
    assert len(digests) == 2


def test_digests_of_gzip_files_are_those_of_earlier_masks(tmp_path: Path) -> None:
    path = tmp_path / "T2.nii.gz"
    path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(range(256)) * 64)
    content = path.read_bytes()
    earlier = hashlib.sha256(f"T2w {len(content)} ".encode() + content[:4096] + content[-4096:])
    assert digest_of(path) == f"pvs_model, images {earlier.hexdigest()[:16]}"
    blocks = tmp_path / "blocks.nii.gz"  # each of its blocks has a check sum of its own
    digests = set()
    for middle in (b"a", b"b"):
        blocks.write_bytes(b"\x1f\x8b\x08\x04" + bytes(8192) + middle + bytes(8192))
        digests.add(digest_of(blocks))
    assert len(digests) == 2


def test_a_mask_without_a_note_is_one_of_an_earlier_version(
    write_body: WriteBody, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_body(tmp_path / "P1" / "{}.nii.gz", ("T2w",))
    assert run(tmp_path / "P1", tmp_path / "out", weights) == 0
    (mask,) = (tmp_path / "out").iterdir()
    image = nib.load(mask)
    image.header["descrip"] = b""
    nib.save(nib.Nifti1Image(image.get_fdata().astype("u1"), None, image.header), mask)
    with caplog.at_level(logging.INFO):
        assert run(tmp_path / "P1", tmp_path / "out", weights, "--resume") == 0
    assert f"{tmp_path / 'out'}: 1 of 1 cases were there already" in caplog.messages


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_a_case_without_a_name_does_not_replace_another(
    write_body: WriteBody, weights: Path, tmp_path: Path, capsys: Any, more: tuple[str, ...], ending: str
) -> None:
    output, report = tmp_path / "out", tmp_path / "report"
    for number in (1, 2):
        source = tmp_path / str(number) / "input"  # as in the container: /input
        write_body(source / f"{{}}{ending}", ("T2w",), tilt_deg=3.0 * number)
        code = run(source, output, weights, "--report", str(report), *more)
        if number == 1:
            assert code == 0
            before = hashes(output), hashes(report / "cases")
    assert code == 1 and (hashes(output), hashes(report / "cases")) == before
    assert "got that of other images without a name" in capsys.readouterr().err
    assert run(tmp_path / "1" / "input", output, weights, *more) == 0  # its own it may replace


@pytest.mark.parametrize("report", ["in/report", "report"])
def test_the_same_command_twice_with_the_output_within_the_input(
    write_body: WriteBody, weights: Path, tmp_path: Path, report: str
) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    words = (tmp_path / "in", tmp_path / "in" / "out", weights, "--report", str(tmp_path / report), "--probability")
    assert run(*words) == 0
    before = hashes(tmp_path / "in" / "out")
    assert run(*words) == 0 and hashes(tmp_path / "in" / "out") == before and len(before) == 1


# ---- any user ------------------------------------------------------------------------------------------------------


def without_a_home(words: list[str]) -> processes.Result:
    """Also Python and the imports of the program are started by that user."""
    command = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", sys.executable]
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    if subprocess.run([*command, "-c", "import numpy"], cwd=ROOT, env=environment).returncode:
        pytest.skip("Python itself cannot be run by that user here")
    ran = subprocess.run([*command, "process.py", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    return processes.Result(ran.returncode, ran.stdout, ran.stderr)


def with_a_home(words: list[str]) -> processes.Result:
    user = "import os\nos.setgroups([])\nos.setgid(54321)\nos.setuid(54321)\nos.environ['HOME'] = '/tmp'\n"
    return processes.run(words, user + processes.PROCESS)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
@pytest.mark.parametrize("start", [without_a_home, with_a_home])
def test_a_uid_without_a_name(
    write_body: WriteBody,
    weights: Path,
    start: Callable[[list[str]], processes.Result],
    request: pytest.FixtureRequest,
) -> None:
    scratch = tempfile.TemporaryDirectory()
    request.addfinalizer(scratch.cleanup)
    folder = Path(scratch.name)
    folder.chmod(0o777)
    write_body(folder / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    own = Path(shutil.copytree(weights, folder / "weights"))
    for path in (folder / "in", folder / "in" / "a", own, *own.iterdir(), *(folder / "in" / "a").iterdir()):
        path.chmod(0o755)
    words = ["--input", str(folder / "in"), "--output", str(folder / "out"), "--weights", str(own)]
    words += ["--device", "cpu", "--backend", "torch"]
    ran = start(words)
    assert ran.returncode == 0, ran.stderr
    assert (folder / "out" / "a" / "a_pred.nii.gz").is_file()
    folder.chmod(0o700)  # from here on the input may not even be looked at
    ran = start(words)
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert ran.stderr == f"error: {folder / 'in'}: expected an input folder, got one that cannot be read: " + (
        "Permission denied\n"
    )
