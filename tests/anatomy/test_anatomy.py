from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pvs_model.anatomy.inference import (
    TRAINED_SHAPE,
    find_regions,
    keep_brain_component,
    load_network,
    remove_brain_fragments,
    working_image,
    write_regions,
)
from pvs_model.anatomy.intensity import FLOOR, background_of, normalise
from pvs_model.anatomy.label_refinement import refine_labels
from pvs_model.anatomy.network import AnatomyConfig, AnatomyNet, load
from pvs_model.anatomy.regions import (
    CLASS,
    CLASSES,
    REGIONS,
    STRUCTURES,
    Anatomy,
    label_table,
    to_labels,
    values_of,
)
from pvs_model.errors import VolumeError, WeightsError
from pvs_model.evaluation.metrics import dice
from pvs_model.nets.checkpoint import save
from pvs_model.simulation.phantom import phantom_labels
from pvs_model.training.anatomy.label_maps import LabelMap, prepare
from pvs_model.training.anatomy.scans import AnatomyScanParams, render
from pvs_model.types import Grid, Volume
from pvs_model.volume.io import write_volume

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights"
TINY = AnatomyConfig(widths=(4, 8, 8))


# ---- names and values --------------------------------------------------------------------------------------------


def test_every_value_is_there_once() -> None:
    rows = label_table()
    assert [row.value for row in rows] == sorted({row.value for row in rows})
    assert rows[0].value == 0 and rows[-1].value < 256
    assert len({row.name for row in rows}) == len({row.abbreviation for row in rows}) == len(rows)
    assert len(STRUCTURES) + 1 == CLASSES and set(CLASS.values()) == set(range(1, CLASSES))


def test_values_of_regions_by_hand() -> None:
    assert values_of("CSO") == (2, 41)
    assert values_of("L-BG") == (11, 12, 13, 10, 155)
    assert values_of("R-BG") == (50, 51, 52, 49, 156)
    assert set(values_of("BG")) == {10, 11, 12, 13, 49, 50, 51, 52, 155, 156}
    assert values_of("MID") == (173,)
    assert set(values_of("intracranial")) == {row.value for row in label_table()} - {0}
    assert set(values_of("brain")) == set(values_of("intracranial")) - {24}
    assert set(values_of("parenchyma")) == set(values_of("brain")) - {4, 43, 14}


@pytest.mark.parametrize("name", ["", "liver", "X-BG", "L-MID", "left BG"])
def test_unknown_regions_are_refused(name: str) -> None:
    with pytest.raises(KeyError, match="expected a region"):
        values_of(name)


def test_every_region_is_made_of_structures() -> None:
    assert all(part in CLASS for parts in REGIONS.values() for part in parts)


def test_classes_and_sides_become_values() -> None:
    classes = np.array([0, CLASS["WM"], CLASS["WM"], CLASS["MID"], CLASS["MID"], CLASS["CSF"]])
    right = np.array([True, False, True, False, True, True])
    assert to_labels(classes, right).tolist() == [0, 2, 41, 173, 173, 24]


def test_masks_of_an_anatomy() -> None:
    labels = np.array([0, 2, 41, 11, 156, 24], np.uint8).reshape(6, 1, 1)
    brain = np.array([0, 1, 1, 1, 1, 0], bool).reshape(6, 1, 1)
    anatomy = Anatomy(labels, brain)
    assert anatomy.mask("BG").ravel().tolist() == [False, False, False, True, True, False]
    assert anatomy.mask("R-BG").ravel().tolist() == [False] * 4 + [True, False]
    assert anatomy.mask("CSO").ravel().tolist() == [False, True, True, False, False, False]
    assert anatomy.mask("intracranial").sum() == 5
    assert anatomy.mask("brain") is brain


# ---- preparing ---------------------------------------------------------------------------------------------------


def test_the_background_is_the_common_value_or_the_lowest() -> None:
    image = np.linspace(-3, 3, 1000, dtype=np.float32)
    assert background_of(image) == -3
    image[::10] = 0  # a brain standardised around its mean, 0 outside
    assert background_of(image) == 0


def test_gain_does_not_matter_and_the_background_stays_zero() -> None:
    image = torch.rand((20, 20, 20), generator=torch.Generator().manual_seed(0)) + 0.1
    image[:5] = 0
    once = normalise(image)
    assert (once[:5] == 0).all() and float(once[5:].min()) == pytest.approx(FLOOR) and float(once.max()) == 1
    assert torch.allclose(once, normalise(image * 731), atol=1e-5)
    assert not normalise(torch.zeros(4, 4, 4)).any()


@pytest.mark.parametrize("shape", [(40, 44, 30), (180, 60, 150)])
def test_the_working_grid_covers_the_scan_and_shows_it_in_place(shape: tuple[int, int, int]) -> None:
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    centre = np.array(shape) // 3
    squared = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + ((z - centre[2]) * 2) ** 2
    affine = np.array([[-1.0, 0, 0, 30], [0, 0, 2, -20], [0, 1, 0, 7], [0, 0, 0, 1]])
    image, to_scan = working_image(Volume((squared < 64).astype(np.float32) * 90, affine))
    assert all(n >= least and n % 16 == 0 for n, least in zip(image.shape, TRAINED_SHAPE, strict=True))
    middle = np.argwhere(image.numpy() > 0.5).mean(0)
    assert np.allclose((to_scan @ [*middle, 1])[:3], (affine @ [*centre, 1])[:3], atol=0.75)


def test_fine_scans_are_averaged_in_place() -> None:
    data = np.zeros((61, 60, 60), np.float32)
    data[20:41, 20:40, 20:40] = 5
    image, affine = working_image(Volume(data, np.diag([0.5, 0.5, 0.5, 1.0])))
    weight = image.numpy() / float(image.sum())
    middle = [
        float((weight.sum(tuple(b for b in range(3) if b != a)) * np.arange(weight.shape[a])).sum()) for a in range(3)
    ]
    assert np.allclose((affine @ [*middle, 1])[:3], [15.0, 14.75, 14.75], atol=0.15)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_an_empty_image_is_refused_in_one_sentence(value: float) -> None:
    volume = Volume(np.full((20, 20, 20), value, np.float32), np.eye(4), Path("scan.nii.gz"))
    with pytest.raises(VolumeError, match=r"^scan.nii.gz: expected an image of a head, got one value in every voxel$"):
        working_image(volume)


# ---- after the network -------------------------------------------------------------------------------------------


def probabilities(classes: npt.NDArray[np.integer], right: npt.NDArray[np.bool_]) -> torch.Tensor:
    out = torch.zeros((CLASSES + 1, *classes.shape))
    out.scatter_(0, torch.from_numpy(classes.astype(np.int64))[None], 1.0)
    out[CLASSES] = torch.from_numpy(right.astype(np.float32))
    return out


def test_on_its_own_grid_labels_are_the_largest_probability() -> None:
    rng = np.random.default_rng(0)
    classes, right = rng.integers(0, CLASSES, (8, 9, 7)), rng.random((8, 9, 7)) < 0.5
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    refined = refine_labels(probabilities(classes, right), affine, Grid((8, 9, 7), affine))
    assert np.array_equal(refined, to_labels(classes, right))


def test_probabilities_and_not_labels_are_interpolated() -> None:
    # White matter 1, 0.6 and 0.1 along x, the rest cortex: between the last two it is even at a fifth of the way.
    probability = torch.zeros((CLASSES + 1, 3, 2, 2))
    white = torch.tensor([1.0, 0.6, 0.1])[:, None, None].expand(3, 2, 2)
    probability[CLASS["WM"]], probability[CLASS["CTX"]] = white, 1 - white
    fine = Grid((21, 2, 2), np.diag([0.1, 1.0, 1.0, 1.0]))
    refined = refine_labels(probability, np.eye(4), fine)
    assert (refined[:12] == 2).all() and (refined[13:] == 3).all()


def test_interpolation_agrees_with_doing_all_of_it() -> None:
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.random((CLASSES + 1, 4, 4, 4), dtype=np.float32))
    probability = torch.nn.functional.interpolate(coarse[None], size=(20, 20, 20), mode="trilinear")[0]
    probability[:CLASSES] = (probability[:CLASSES] * 8).softmax(0)
    grid = Grid((31, 31, 31), np.diag([0.6, 0.6, 0.6, 1.0]))
    fine = torch.nn.functional.grid_sample(
        probability[None],
        torch.from_numpy(np.stack(np.meshgrid(*([np.arange(31) * 0.6 / 9.5 - 1] * 3), indexing="ij")[::-1], -1))[
            None
        ].float(),
        align_corners=True,
    )[0]
    expected = to_labels(fine[:CLASSES].argmax(0).numpy(), fine[CLASSES].numpy() > 0.5)
    assert np.mean(refine_labels(probability, np.eye(4), grid) != expected) < 0.002


def test_outside_the_working_grid_there_is_nothing() -> None:
    classes = np.full((4, 4, 4), CLASS["WM"])
    away = np.eye(4)
    away[0, 3] = 50
    probability = probabilities(classes, np.zeros((4, 4, 4), bool))
    assert not refine_labels(probability, np.eye(4), Grid((5, 5, 5), away)).any()


def brain_of(*boxes: tuple[tuple[slice, ...], str]) -> torch.Tensor:
    classes = np.zeros((40, 40, 40), np.int64)
    for box, name in boxes:
        classes[box] = CLASS[name]
    return probabilities(classes, np.broadcast_to(np.arange(40)[:, None, None] >= 20, classes.shape))


def test_only_the_largest_brain_is_kept_with_its_fluid() -> None:
    probability = brain_of(
        (np.s_[4:34, 4:34, 4:36], "CSF"),
        (np.s_[6:32, 6:32, 6:34], "WM"),
        (np.s_[36:39, 36:39, 36:39], "WM"),  # an eye
        (np.s_[36:39, 1:3, 1:3], "CSF"),
    )
    keep_brain_component(probability, Volume(np.zeros((1, 1, 1), np.float32), np.eye(4)))
    labels = probability[:CLASSES].argmax(0)
    assert (labels[6:32, 6:32, 6:34] == CLASS["WM"]).all() and labels[5, 5, 5] == CLASS["CSF"]
    assert not labels[35:].any()


def test_stray_pieces_of_a_nucleus_become_what_is_likeliest_else() -> None:
    probability = brain_of((np.s_[4:36, 4:36, 4:36], "WM"), (np.s_[8:14, 8:14, 8:14], "PUT"))
    probability[CLASS["PUT"], 30, 30, 30] = 1.0  # on the right there is no other: kept
    probability[CLASS["PUT"], 8, 30, 30] = 1.0  # on the left it is stray
    probability[CLASS["WM"], 8, 30, 30], probability[CLASS["WM"], 30, 30, 30] = 0.4, 0.4
    keep_brain_component(probability, Volume(np.zeros((1, 1, 1), np.float32), np.eye(4)))
    labels = probability[:CLASSES].argmax(0)
    assert labels[8, 30, 30] == CLASS["WM"] and labels[30, 30, 30] == CLASS["PUT"]


def test_without_a_brain_one_sentence_says_so() -> None:
    probability = brain_of((np.s_[4:9, 4:9, 4:9], "WM"))  # 125 voxels of 8 mm3
    volume = Volume(np.zeros((1, 1, 1), np.float32), np.eye(4), Path("knee.nii"))
    with pytest.raises(VolumeError, match=r"^knee.nii: expected a brain in the image, got 1 ml that might be one$"):
        keep_brain_component(probability, volume)


def test_scattered_brain_labels_are_removed_and_parts_of_a_divided_brain_stay() -> None:
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[5:25, 5:25, 2:18] = 2  # 6400 voxels
    labels[15:18, 10:13, 6:9] = 4  # the ventricle is part of the brain
    labels[27:29, 5:25, 2:18] = 42  # 640 voxels, a tenth: beyond a gap
    labels[31:33, 5:15, 2:18] = 41  # 320 voxels, a twentieth: kept
    labels[35:37, 5:15, 2:17] = 3  # 300 voxels: removed
    labels[0, 0, 0] = 3
    labels[38:, 28:, :] = 24  # other CSF is not of the brain
    kept = remove_brain_fragments(labels)
    expected = labels.copy()
    expected[35:37, 5:15, 2:17] = expected[0, 0, 0] = 0
    assert np.array_equal(kept, expected) and kept.dtype == np.uint8
    assert labels[0, 0, 0] == 3, "the input is unchanged"
    whole = np.where(labels == 2, labels, 0)
    assert np.array_equal(remove_brain_fragments(whole), whole)
    assert not remove_brain_fragments(np.zeros((3, 3, 3), np.uint8)).any()


# ---- the network's file ------------------------------------------------------------------------------------------


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = AnatomyNet(TINY).eval()
    path = tmp_path / "net.safetensors"
    save(path, network, {"facts": "{}"})
    again = load(path)
    assert again.config == TINY and not list(tmp_path.glob("*.partial"))
    image = torch.rand((1, 1, 16, 24, 16))
    with torch.no_grad():
        logits = again(image)
        assert logits.shape == (1, CLASSES + 1, 16, 24, 16)
        assert torch.allclose(logits, network(image), atol=0.05)


@pytest.mark.parametrize("damage", ["missing", "cut", "checksum", "other network"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "net.safetensors"
    network = AnatomyNet(TINY)
    if damage == "other network":
        network.config = replace(TINY, widths=(4, 8, 16))  # type: ignore[assignment]
    if damage != "missing":
        save(path, network)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"net.safetensors: expected"):
        load(path, sha256="0" * 64 if damage == "checksum" else None)


def test_a_folder_without_the_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected the manifest of the weights, got no such file"):
        load_network(tmp_path)
    (tmp_path / "MANIFEST.json").write_text('{"format": 1, "ensembles": {}}')
    with pytest.raises(WeightsError, match="expected the entry of the anatomy network"):
        load_network(tmp_path)
    (tmp_path / "MANIFEST.json").write_text('{"format": 1, "anatomy": {"file": "../x", "sha256": ""}}')
    with pytest.raises(WeightsError, match="expected plain file names"):
        load_network(tmp_path)


# ---- the shipped network -----------------------------------------------------------------------------------------


def test_the_manifest_describes_the_shipped_network() -> None:
    entry = json.loads((WEIGHTS / "MANIFEST.json").read_text())["anatomy"]
    path = WEIGHTS / entry["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    assert path.stat().st_size <= 8 * 2**20
    network = load_network(WEIGHTS)
    assert AnatomyConfig(**{**entry["network"], "widths": tuple(entry["network"]["widths"])}) == network.config
    assert network.config.classes == CLASSES
    assert entry["steps"] > 0 and "seed" in entry and "label maps" in entry["data"]


@pytest.fixture(scope="module")
def head() -> LabelMap:
    return prepare(phantom_labels(0), "phantom")


#: A phantom of formulas is no head: how well the network does is for benchmarks/anatomy.py, here it is to work at all.
WORKS = 0.8


@pytest.fixture(scope="module")
def scan(head: LabelMap) -> tuple[Volume, npt.NDArray[np.integer]]:
    """A T1w of the phantom, 2 mm, and its classes."""
    made = render(head, AnatomyScanParams(seed=4, noise=0.01), (80, 96, 80), spacing_mm=2.0, raw=True)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -80, -110, -70
    return Volume(made.image.numpy(), affine, Path("phantom.nii.gz")), made.target.numpy()


@pytest.fixture(scope="module")
def estimated(scan: tuple[Volume, npt.NDArray[np.integer]]) -> Anatomy:
    with pytest.MonkeyPatch.context() as patch:  # as for the tests themselves, which come later than this
        patch.setattr("pvs_model.nets.precision.cpu_has_bfloat16", lambda: False)
        return find_regions(scan[0], WEIGHTS)


def test_the_phantom_has_a_brain_and_no_region_lies_outside_it(
    scan: tuple[Volume, npt.NDArray[np.integer]], estimated: Anatomy
) -> None:
    assert estimated.labels.shape == estimated.brain.shape == scan[0].data.shape
    assert estimated.labels.dtype == np.uint8 and estimated.brain.dtype == bool
    truth = (scan[1] > 0) & (scan[1] != CLASS["CSF"])
    assert dice(estimated.brain, truth) > WORKS
    outside = estimated.labels[~estimated.brain]
    assert set(np.unique(outside)) <= {0, *values_of("CSF")}
    assert set(np.unique(estimated.labels)) <= {row.value for row in label_table()}


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), (True, True, False)), ((2, 0, 1), (False, True, True))])
def test_the_stored_orientation_does_not_matter(
    scan: tuple[Volume, npt.NDArray[np.integer]],
    estimated: Anatomy,
    axes: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
) -> None:
    turn = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    affine[:3, 3] = scan[0].affine[:3, 3]
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        column = scan[0].affine[:3, old]
        affine[:3, new] = -column if flip else column
        affine[:3, 3] += column * (scan[0].data.shape[old] - 1) if flip else 0
    data = np.ascontiguousarray(scan[0].data.transpose(axes)[turn])
    labels = find_regions(Volume(data, affine), WEIGHTS).labels[turn].transpose(np.argsort(axes))
    for value in np.unique(estimated.labels):
        assert dice(labels == value, estimated.labels == value) >= 0.99


def test_a_mirrored_head_has_its_sides_exchanged(
    scan: tuple[Volume, npt.NDArray[np.integer]], estimated: Anatomy
) -> None:
    mirrored = find_regions(Volume(scan[0].data[::-1].copy(), scan[0].affine), WEIGHTS)
    for left, right in (("L-WM", "R-WM"), ("L-CTX", "R-CTX"), ("L-BG", "R-BG")):
        back = mirrored.mask(left)[::-1]
        assert dice(back, estimated.mask(right)) > 0.5 and dice(back, estimated.mask(left)) < 0.05
    x = np.arange(scan[0].data.shape[0])[:, None, None]
    assert (estimated.mask("L-WM") * x).sum() / estimated.mask("L-WM").sum() < (
        (estimated.mask("R-WM") * x).sum() / estimated.mask("R-WM").sum()
    )


@pytest.mark.parametrize(("strip", "step"), [("csf", 1), ("brain", 1), ("no", 3)])
def test_without_a_skull_and_with_thick_slices(head: LabelMap, strip: str, step: int) -> None:
    made = render(head, AnatomyScanParams(seed=4, noise=0.01, strip=strip), (80, 96, 78), spacing_mm=2.0, raw=True)
    image = made.image.unflatten(2, (-1, step)).mean(3).numpy()
    target = made.target.unflatten(2, (-1, step))[..., step // 2].numpy()
    anatomy = find_regions(Volume(image, np.diag([2.0, 2.0, 2.0 * step, 1.0])), WEIGHTS)
    assert dice(anatomy.brain, (target > 0) & (target != CLASS["CSF"])) > WORKS


# ---- files -------------------------------------------------------------------------------------------------------


def test_files_lie_on_exactly_the_grid_of_the_scan(
    scan: tuple[Volume, npt.NDArray[np.integer]], estimated: Anatomy, tmp_path: Path
) -> None:
    affine = scan[0].affine.copy()
    affine[:3, :3] = affine[:3, :3] @ np.array([[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1]])
    source = tmp_path / "sub-1_T1w.nii.gz"
    write_volume(source, scan[0].data, affine)
    written = write_regions(source, tmp_path / "out", WEIGHTS)
    tables = [f"sub-1_T1w_regions{end}" for end in (".tsv", "_freesurfer.txt", "_fsleyes.lut", "_itksnap.txt")]
    names = ["sub-1_T1w_brain.nii.gz", "sub-1_T1w_regions.nii.gz", *tables]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    like = nib.load(source)
    for path in (written.brain, written.regions):
        image = nib.load(path)
        assert image.shape == like.shape and image.get_data_dtype() == np.uint8
        for key in ("srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "pixdim", "sform_code", "qform_code"):
            assert np.array_equal(image.header[key], like.header[key])
    regions = np.asarray(nib.load(written.regions).dataobj)
    assert dice(np.asarray(nib.load(written.brain).dataobj) > 0, estimated.brain) > 0.9
    with written.tables["bids"].open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == ["index", "name", "abbreviation", "color"]
    assert set(np.unique(regions)) <= {int(row["index"]) for row in rows}


def test_an_empty_scan_leaves_no_file(tmp_path: Path) -> None:
    source = tmp_path / "empty.nii.gz"
    write_volume(source, np.zeros((20, 20, 20)), np.eye(4))
    with pytest.raises(VolumeError, match=r"empty.nii.gz: expected an image, got 0 in every voxel"):
        write_regions(source, tmp_path / "out", WEIGHTS)
    assert not (tmp_path / "out").exists()


def test_a_changed_file_of_weights_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("MANIFEST.json", "anatomy.safetensors"):
        shutil.copyfile(WEIGHTS / name, folder / name)
    with (folder / "anatomy.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match=r"anatomy.safetensors: expected sha256 [0-9a-f]{64}, got"):
        load_network(folder)
