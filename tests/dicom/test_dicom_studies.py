"""DICOM in, DICOM out: whole runs over a body written as DICOM series, read back without the code under test.

Geometry is computed by hand from the headers (``scanner.world_mm``), or read by SimpleITK.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra is not installed: pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="the extra is not installed: pip install '.[dicom]'")
pytest.importorskip("dcm2niix", reason="the extra is not installed: pip install '.[dicom]'")

import nibabel as nib  # noqa: E402
import SimpleITK as sitk  # noqa: E402
from scanner import LPS, references, uid, world_mm, write_multiframe, write_series  # noqa: E402

from pvs_model.burden.measure import measure  # noqa: E402
from pvs_model.cli import main  # noqa: E402
from pvs_model.dicom.convert import convert  # noqa: E402
from pvs_model.dicom.headers import Frame, _problem, frames_of, read_studies  # noqa: E402
from pvs_model.dicom.report import build_report  # noqa: E402
from pvs_model.dicom.segmentation import build_segmentation, read_headers, write_dicom  # noqa: E402
from pvs_model.errors import VolumeError  # noqa: E402

OBLIQUE = {"axes": (1, 2, 0), "signs": (1, -1, -1), "spacing_mm": (1.2, 1.1, 1.5), "tilt_deg": 17.0}
#: Grids of the reference series: axial as scanners store it; oblique sagittal; thick and oblique.
GRIDS = {
    "axial": {"signs": (-1, -1, 1)},
    "oblique": OBLIQUE,
    "thick": {"signs": (-1, -1, 1), "spacing_mm": (0.75, 0.75, 3.0), "tilt_deg": -11.0},
}


@pytest.fixture
def small(body: Any) -> Any:
    return type(body)(radii_mm=(11.0, 13.0, 12.0), ball_mm=(7.0, -9.0, 3.0), ball_radius_mm=3.0)


def points(path: Path) -> np.ndarray:
    """Centres of the voxels of a NIfTI mask, RAS mm, sorted."""
    image = nib.load(path)
    voxels = np.argwhere(np.asarray(image.dataobj) != 0)
    return in_order(nib.affines.apply_affine(image.affine, voxels))


def in_order(places: np.ndarray) -> np.ndarray:
    return places[np.lexsort(np.round(places, 2).T)]


def run(*arguments: object) -> int:
    return main(["dicom", *map(str, arguments), "--device", "cpu"])


def outputs(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", GRIDS)
def test_a_series_is_converted_onto_its_own_places(small: Any, tmp_path: Path, name: str, reverse: bool) -> None:
    volume = small.volume("T2w", **GRIDS[name])
    write_series(tmp_path / "in", volume, "T2w", reverse=reverse)
    ((series,),) = (study.series for study in read_studies(tmp_path / "in"))
    convert(series, tmp_path / "T2w.nii")
    image = nib.load(tmp_path / "T2w.nii")
    # Every voxel of the volume has its value at its place.
    places = nib.affines.apply_affine(volume.affine, np.indices(volume.data.shape).reshape(3, -1).T)
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), places)
    assert np.abs(voxels - np.rint(voxels)).max() * 1.5 < 1e-3
    values = np.asarray(image.dataobj)[tuple(np.rint(voxels).astype(int).T)]
    np.testing.assert_array_equal(values, volume.data.round().ravel())
    # SimpleITK, which knows nothing of dcm2niix, agrees.
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in"), series.uid))
    itk = reader.Execute()
    corner = np.array(itk.TransformIndexToPhysicalPoint([n - 1 for n in itk.GetSize()])) * LPS
    last = nib.affines.apply_affine(np.linalg.inv(image.affine), corner)
    np.testing.assert_allclose(last, np.rint(last), atol=1e-3)


@pytest.mark.parametrize("name", ["oblique", "thick"])
def test_a_study_gets_masks_segmentation_and_report(small: Any, weights: Path, tmp_path: Path, name: str) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_series(source / "a", small.volume("T1w", spacing_mm=(1.6, 1.5, 1.4)), "T1w", number=2)
    write_series(source / "b", small.volume("T2w", **GRIDS[name]), "T2w", number=3, reverse=name == "oblique")
    write_series(source / "c", small.volume("FLAIR", signs=(-1, -1, 1), spacing_mm=(1.4, 1.4, 2.0)), "FLAIR", number=4)
    assert run(source, output, "--weights", weights) == 0
    stem = "P-1_20240102/P-1_20240102"
    assert outputs(output) == [f"{stem}_SEG.dcm", f"{stem}_SR.dcm", f"{stem}_pred.nii.gz"]
    seg = pydicom.dcmread(output / f"{stem}_SEG.dcm")
    mask = points(output / f"{stem}_pred.nii.gz")
    assert len(mask) > 0
    # The segmentation marks the places that the NIfTI mask does.
    places, values = world_mm(seg)
    np.testing.assert_allclose(in_order(places[values != 0]), mask, atol=1e-3)
    itk = sitk.ReadImage(str(output / f"{stem}_SEG.dcm"))
    inside = np.argwhere(sitk.GetArrayFromImage(itk))[:, ::-1].tolist()
    read = np.array([itk.TransformIndexToPhysicalPoint(index) for index in inside]) * LPS
    np.testing.assert_allclose(in_order(read), mask, atol=1e-3)
    # Each frame names the image on which it lies.
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID, seg.PatientID) == (uid("study"), uid("study frame"), "P.1")
    assert seg.SegmentSequence[0].SegmentLabel == "Perivascular spaces" and len(seg.SegmentSequence) == 1
    images = {}
    for path in (source / "b").iterdir():
        image = pydicom.dcmread(path)
        images[image.SOPInstanceUID] = image
    assert sorted(source.ReferencedSOPInstanceUID for source in references(seg)) == sorted(images)
    for frame, reference in zip(places * LPS, references(seg), strict=True):
        position = images[reference.ReferencedSOPInstanceUID].ImagePositionPatient
        np.testing.assert_allclose(frame[0, 0], np.array(position, float), atol=1e-3)
    # The report measures what the mask holds.
    sr = pydicom.dcmread(output / f"{stem}_SR.dcm")
    assert measured(sr)["Brain", "", "Volume"] == pytest.approx(len(mask) * np.prod(nib.load(
        output / f"{stem}_pred.nii.gz").header.get_zooms()), rel=1e-4)  # fmt: skip
    assert seg.SOPInstanceUID in {item.ReferencedSOPInstanceUID for item in evidence(sr)}


@pytest.mark.parametrize("multiframe", [False, True])
def test_what_headers_lack_and_frames_of_one_file(small: Any, weights: Path, tmp_path: Path, multiframe: bool) -> None:
    """A zip file of an anonymised series, and an Enhanced MR image with all slices in one file."""
    source, output = tmp_path / "in", tmp_path / "out"
    volume = small.volume("T2w", **GRIDS["thick"])
    if multiframe:
        write_multiframe(source, volume, "T2w")
    else:
        write_series(source / "deep" / "below", volume, "T2w", SliceThickness=None)
        for path in (source / "deep" / "below").iterdir():
            image = pydicom.dcmread(path)
            for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "PatientID"):
                delattr(image, keyword)
            image.save_as(path)
    (source / "DICOMDIR").write_bytes(b"not an image")
    shutil.make_archive(str(tmp_path / "study"), "zip", source)
    assert run(tmp_path / "study.zip", output, "--weights", weights, "--nifti", tmp_path / "nifti") == 0
    stem = "P-1_20240102/P-1_20240102" if multiframe else "patient_20240102/patient_20240102"
    assert outputs(tmp_path / "nifti") == [f"{stem}_T2w.nii"]
    seg = pydicom.dcmread(output / f"{stem}_SEG.dcm")
    places, values = world_mm(seg)
    np.testing.assert_allclose(in_order(places[values != 0]), points(output / f"{stem}_pred.nii.gz"), atol=1e-3)
    if multiframe:
        frames = [int(reference.ReferencedFrameNumber) for reference in references(seg)]
        assert sorted(frames) == [k + 1 for k in range(volume.data.shape[2])]
        np.testing.assert_allclose(places[frames.index(3), 0, 0], (volume.affine @ [0, 0, 2, 1])[:3], atol=1e-3)


@pytest.mark.parametrize("write", [write_series, write_multiframe])
def test_a_slice_at_the_origin_is_kept(small: Any, tmp_path: Path, write: Callable[..., str]) -> None:
    volume = small.volume("T2w", **GRIDS["thick"])
    volume.affine[:3, 3] = 0
    write(tmp_path / "in", volume, "T2w")
    ((series,),) = (study.series for study in read_studies(tmp_path / "in"))
    assert series.problem is None
    assert sum(len(frames_of(header)) for header in read_headers(series)) == volume.data.shape[2]
    convert(series, tmp_path / "T2w.nii")
    assert nib.load(tmp_path / "T2w.nii").shape[2] == volume.data.shape[2]


def test_a_file_that_pydicom_cannot_read_is_named(small: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its number of rows is stored as two bytes of a number of four."""
    write_series(tmp_path, small.volume("T2w", **GRIDS["thick"]), "T2w")
    damaged = min(path for path in tmp_path.rglob("*") if path.is_file())
    content = damaged.read_bytes()
    assert content.count(b"\x28\x00\x10\x00US\x02\x00") == 1
    damaged.write_bytes(content.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00FL\x02\x00"))
    (tmp_path / "notes.txt").write_text("no image")
    ((series,),) = (study.series for study in read_studies(tmp_path))
    assert damaged not in series.files
    assert [f"{damaged}: left out: expected a readable DICOM image" in m for m in caplog.messages] == [True]


def test_other_studies_go_on(small: Any, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two T1w series are ambiguous, a damaged series fails, and the third study is written."""
    source, output = tmp_path / "in", tmp_path / "out"
    thick = small.volume("T2w", **GRIDS["thick"])
    uids = [
        write_series(source / f"a{k}", thick, "T1w", study="two", series=f"s{k}", patient="A", number=k) for k in (1, 2)
    ]
    write_series(source / "b", thick, "T2w", study="damaged", patient="B")
    for path in (source / "b").iterdir():
        path.write_bytes(path.read_bytes()[:-400])
    write_series(source / "c", thick, "T2w", study="whole", patient="C")
    assert run(source, output, "--weights", weights, "--report", tmp_path / "report") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert lines[0] == (
        f"error: A_20240102: expected one T1w series, got 1 '' ({uids[0]}); 2 '' ({uids[1]}): choose with "
        f"--series T1w={uids[0]}, or leave the sequence out with --series T1w=none"
    )
    assert len(lines) == 2 and lines[1].startswith("error: 2 cases failed, the last: B_20240102: series 1 ''")
    stem = "C_20240102/C_20240102"
    assert outputs(output) == [f"{stem}_SEG.dcm", f"{stem}_SR.dcm", f"{stem}_pred.nii.gz"]
    assert "C_20240102,all," in (tmp_path / "report" / "burden.csv").read_text()
    # With a choice the first is written, too; complete studies are not run again; another's files are not replaced.
    before = (output / f"{stem}_SR.dcm").stat().st_mtime_ns
    assert run(source, output, "--weights", weights, "--series", f"T1w={uids[1]}", "--resume") == 1
    assert (output / f"{stem}_SR.dcm").stat().st_mtime_ns == before
    seg = pydicom.dcmread(output / "A_20240102" / "A_20240102_SEG.dcm")
    assert {item.SeriesInstanceUID for item in seg.ReferencedSeriesSequence} == {uids[1]}
    shutil.rmtree(source)
    write_series(source, thick, "T2w", study="another", patient="C")
    capsys.readouterr()
    assert run(source, output, "--weights", weights) == 1
    assert f"expected study {uid('another')}, got {uid('whole')}" in capsys.readouterr().err


def test_a_complete_study_without_a_report_is_run_again(small: Any, weights: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "in", small.volume("T2w", **GRIDS["thick"]), "T2w")
    words = (tmp_path / "in", tmp_path / "out", "--weights", weights, "--resume")
    assert run(*words) == 0
    for state in ("written", "complete"):
        assert run(*words, "--report", tmp_path / "report") == 0
        record = json.loads((tmp_path / "report" / "run.json").read_text())
        assert record["state"] == "complete" and [case["state"] for case in record["cases"]] == [state]
        assert "P-1_20240102,all," in (tmp_path / "report" / "burden.csv").read_text()


def test_a_dry_run_lists_every_series(small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = small.volume("T2w", **GRIDS["thick"])
    write_series(tmp_path, volume, "T2w", number=3, description="t2_space")
    write_series(tmp_path, volume, "FLAIR", number=1, description="localizer")
    assert run(tmp_path, tmp_path / "out", "--dry-run") == 0
    title, first, second = capsys.readouterr().out.splitlines()
    assert title == f"P-1_20240102: study {uid('study')}"
    assert first.startswith("  -     1 'localizer'") and first.endswith('another scan type ("localizer")')
    assert second.startswith("  T2w   3 't2_space'") and second.endswith("T2w (TR 3200 ms, TE 408 ms)")
    assert run(tmp_path, tmp_path / "out", "--dry-run", "--series", "T2w=none") == 1
    assert "P-1_20240102: cannot be run: expected a T1w, T2w or FLAIR series" in capsys.readouterr().out
    assert run(tmp_path, tmp_path / "out", "--dry-run", "--series", "T2w=1.2.3") == 2
    assert capsys.readouterr().err == ("error: --series T2w=1.2.3: expected a series of the input, got no such UID\n")
    assert not (tmp_path / "out").exists()


def test_echoes_of_one_series_are_listed_with_their_own_reasons(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = small.volume("T2w", **GRIDS["thick"])
    shared = write_series(tmp_path / "a", volume, "T2w", EchoTime=90.0)
    write_series(tmp_path / "b", volume, "T2w", series="density", EchoTime=15.0)
    for path in (tmp_path / "b").iterdir():
        image = pydicom.dcmread(path)
        image.SeriesInstanceUID = shared
        image.save_as(path)
    assert run(tmp_path, tmp_path / "out", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"  -     1 '' ({shared}, TE 15 ms): the timing (TR 3200 ms, TE 15 ms) is that of no such sequence",
        f"  T2w   1 '' ({shared}, TE 90 ms): T2w (TR 3200 ms, TE 90 ms)",
    ]


def test_what_holds_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no archive")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.dcm").write_bytes(b"no image")
    for name, message in (
        ("a.zip", "expected a folder or zip file of DICOM series, got: File is not a zip file"),
        ("folder", "expected DICOM images, got none"),
        ("none", "expected a folder or zip file of DICOM series, but it does not exist"),
    ):
        assert run(tmp_path / name, tmp_path / "out") == 2
        assert capsys.readouterr().err == f"error: {tmp_path / name}: {message}\n"


def test_a_missing_extra_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert run(tmp_path, tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        "error: DICOM: expected the packages of the extra, pip install '.[dicom]', got no highdicom\n"
    )


def test_regions_sides_and_fluid_in_a_report(small: Any, tmp_path: Path) -> None:
    """Two PVS of 3 and 2 voxels of 1.5 mm3 in the left basal ganglia; one of 4 in the right centrum semiovale."""
    write_series(tmp_path, small.volume("T2w"), "T2w")
    headers = read_headers(read_studies(tmp_path)[0].series[0])
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[1:4, 1, 1] = mask[1:3, 4, 4] = mask[8:12, 8, 8] = 1
    left = np.indices(mask.shape)[0] < 6
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    regions = {"CSO": ~left, "BG": left, "all": np.ones_like(left)}
    burden = measure(mask, regions, affine, hemispheres=np.where(left, 1, 2), pvs_fraction=mask * 0.5)
    grid = np.zeros((int(headers[0].Columns), int(headers[0].Rows), len(headers)), np.uint8)
    segmentation = build_segmentation(headers, grid, small.volume("T2w").affine)
    write_dicom(tmp_path / "sr.dcm", build_report(headers, segmentation, burden))
    values = measured(pydicom.dcmread(tmp_path / "sr.dcm"))
    expected = {
        ("Brain", ""): (3, 13.5), ("Brain", "Left"): (2, 7.5), ("Brain", "Right"): (1, 6.0),
        ("Basal ganglia", ""): (2, 7.5), ("Basal ganglia", "Left"): (2, 7.5), ("Basal ganglia", "Right"): (0, 0.0),
        ("Centrum semiovale", ""): (1, 6.0), ("Centrum semiovale", "Left"): (0, 0.0),
        ("Centrum semiovale", "Right"): (1, 6.0),
    }  # fmt: skip
    fluid = "Volume of fluid in perivascular spaces"
    assert {key[:2] for key in values} == set(expected)
    for (site, side), (count, volume) in expected.items():
        assert values[site, side, "Number of lesions"] == count
        assert values[site, side, "Volume"] == pytest.approx(volume)
        assert values[site, side, fluid] == pytest.approx(volume / 2)


@pytest.mark.parametrize(("shift_mm", "usable"), [(0.1, True), (0.6, False)], ids=["a little", "too far"])
def test_slices_at_slightly_unequal_distances(
    small: Any, weights: Path, tmp_path: Path, shift_mm: float, usable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is run gets a segmentation; what would not is refused before it is run."""
    source, output = tmp_path / "in", tmp_path / "out"
    volume = small.volume("T2w", spacing_mm=(1.5, 1.5, 3.0), signs=(-1, -1, 1))
    write_series(source, volume, "T2w")
    paths = sorted(source.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
    for number, path in enumerate(paths):
        image = pydicom.dcmread(path)
        x, y, z = image.ImagePositionPatient
        image.ImagePositionPatient = [x, y, float(z) + shift_mm * np.sin(np.pi * number / (len(paths) - 1))]
        image.save_as(path)
    assert run(source, output, "--weights", weights) == (0 if usable else 1)
    assert bool(list(output.rglob("*_SEG.dcm"))) == usable
    error = capsys.readouterr().err
    assert usable or "distances between slices from 2.81 to 3.19 mm" in error


def test_a_drift_of_the_distances_is_no_volume() -> None:
    """Distances from 2.98 to 3.02 mm, but the slice in the middle lies half a millimetre beside its place."""
    places = 3.0 * np.arange(80) + 0.5 * np.sin(np.pi * np.arange(80) / 79)
    frames = [Frame(np.array([0, 0, z]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0])) for z in places]
    assert _problem(frames) == "slices up to 0.50 mm from places at equal distances"


def test_a_mask_on_other_voxels_is_refused(small: Any, tmp_path: Path) -> None:
    volume = small.volume("T2w")
    write_series(tmp_path, volume, "T2w")
    headers = read_headers(read_studies(tmp_path)[0].series[0])
    moved = volume.affine.copy()
    moved[0, 3] += 0.3
    for affine, shape in ((moved, volume.data.shape), (volume.affine, (5, 5, 5))):
        with pytest.raises(VolumeError, match="expected a mask on the pixels of the DICOM series"):
            build_segmentation(headers, np.zeros(shape, np.uint8), affine)


@pytest.mark.parametrize("number", [0, 5])
def test_an_image_without_a_place_is_refused(small: Any, tmp_path: Path, number: int) -> None:
    write_series(tmp_path, small.volume("T2w"), "T2w")
    series = read_studies(tmp_path)[0].series[0]
    image = pydicom.dcmread(series.files[number])
    del image.ImagePositionPatient
    image.save_as(series.files[number])
    with pytest.raises(VolumeError, match=f"{series.files[number].name}: expected position, orientation and spacing"):
        read_headers(series)


def evidence(sr: Any) -> list[Any]:
    series = [s for study in sr.CurrentRequestedProcedureEvidenceSequence for s in study.ReferencedSeriesSequence]
    return [item for s in series for item in s.ReferencedSOPSequence]


def measured(sr: Any) -> dict[tuple[str, str, str], float]:
    """Values of a TID 1500 report by (site, side, name)."""
    assert sr.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    (container,) = (c for c in sr.ContentSequence if c.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements")
    values = {}
    for group in container.ContentSequence:
        (site,) = (c for c in group.ContentSequence if c.ConceptNameCodeSequence[0].CodeMeaning == "Finding Site")
        sides = [c.ConceptCodeSequence[0].CodeMeaning for c in site.get("ContentSequence", [])]
        for item in group.ContentSequence:
            if item.ValueType == "NUM":
                key = (site.ConceptCodeSequence[0].CodeMeaning, *(sides or [""]))
                name = item.ConceptNameCodeSequence[0].CodeMeaning
                values[(*key, name)] = float(item.MeasuredValueSequence[0].NumericValue)
    return values
