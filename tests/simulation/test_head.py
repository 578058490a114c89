"""Head models and phantoms: tissues, regions, volumes."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from pvs_model.errors import VolumeError
from pvs_model.simulation import phantom
from pvs_model.simulation.head import (
    BASAL_GANGLIA,
    CENTRUM_SEMIOVALE,
    FREESURFER,
    INDEX,
    OTHER_BRAIN,
    TISSUES,
    HeadModel,
    build_head_model,
    is_tissue,
    region_map,
    tissue_ids,
    to_tissues,
)


def test_freesurfer_ids_become_tissues() -> None:
    ids = np.array([0, *itertools.chain.from_iterable(FREESURFER.values()), 1001, 2035, 3007, 4035, 11101, 9999])
    tissues = to_tissues(ids.reshape(1, 1, -1))[0, 0]
    names = [TISSUES[t] for t in tissues]
    assert names[0] == "air"
    position = 1
    for tissue, of in FREESURFER.items():
        assert names[position : position + len(of)] == [tissue] * len(of)
        position += len(of)
    assert names[position:] == ["cortex", "cortex", "white_matter", "white_matter", "cortex", "other"]


def test_labels_that_are_not_freesurfers_are_rejected() -> None:
    with pytest.raises(VolumeError, match=r"tumour: expected a label map with FreeSurfer ids, got ids \[0, 900\]"):
        to_tissues(np.array([[[0, 900]]]), "tumour")
    with pytest.raises(VolumeError, match="FreeSurfer"):
        to_tissues(np.zeros((3, 3, 3), np.int32))


def test_regions_follow_their_rules(small_labels: npt.NDArray[np.int32]) -> None:
    tissues = to_tissues(small_labels)
    regions = region_map(tissues)
    nuclei = is_tissue(tissues, "caudate", "putamen", "pallidum", "thalamus")
    white = is_tissue(tissues, "white_matter")
    assert (regions[nuclei] == BASAL_GANGLIA).all()
    assert set(np.unique(regions[white])) == {BASAL_GANGLIA, CENTRUM_SEMIOVALE}
    # The capsule between the nuclei is theirs; what is far from them is centrum semiovale.
    assert set(np.unique(tissues[regions == BASAL_GANGLIA])) <= set(
        tissue_ids("white_matter", "caudate", "putamen", "pallidum", "thalamus")
    )
    assert (regions[is_tissue(tissues, "cortex")] == OTHER_BRAIN).all()
    assert not regions[is_tissue(tissues, "air", "skin", "bone", "csf", "ventricle")].any()

    far = white & (ndimage.distance_transform_edt(~nuclei) > 5)
    assert far.any() and (regions[far] == CENTRUM_SEMIOVALE).all()


def test_a_head_model_is_built_on_one_grid(anatomy: HeadModel, small_labels: npt.NDArray[np.int32]) -> None:
    assert anatomy.whole_head
    assert anatomy.tissues.shape == anatomy.regions.shape == tuple(2 * n for n in small_labels.shape)
    # Halving the voxels keeps volumes; smoothing takes up to an eighth of structures a few voxels wide.
    fine = np.bincount(anatomy.tissues.numpy().ravel(), minlength=len(TISSUES)) / 8
    coarse = np.bincount(to_tissues(small_labels).ravel(), minlength=len(TISSUES))
    np.testing.assert_allclose(fine, coarse, rtol=0.15, atol=20)
    large = coarse > 10_000
    np.testing.assert_allclose(fine[large], coarse[large], rtol=0.01)
    torch.testing.assert_close(anatomy.histogram.sum(1), torch.ones(2))
    assert float(anatomy.histogram[0, INDEX["bone"]]) == 0 < float(anatomy.histogram[1, INDEX["bone"]])
    norms = anatomy.field[:3].norm(dim=0)
    assert float(norms.max()) < 1.001 and float((norms > 0.99).float().mean()) > 0.8


def test_a_brain_without_csf_gets_it(small_labels: npt.NDArray[np.int32]) -> None:
    brain = np.where(np.isin(small_labels, (511, 515, 24)), 0, small_labels)
    brain[:, 34:36, 45:] = 0  # a fissure
    made = build_head_model(brain, "brain only")
    assert not made.whole_head
    assert int((made.tissues == INDEX["csf"]).sum()) > 500


def test_a_tiny_phantom_is_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "SHAPE", (40, 208, 24))  # a block through the middle costs little
    first, again, other = (phantom.phantom_labels(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.fixture(scope="module")
def head_labels() -> npt.NDArray[np.int32]:
    return phantom.phantom_labels(0)


def test_the_phantom_is_a_head(head_labels: npt.NDArray[np.int32]) -> None:
    assert head_labels.shape == phantom.SHAPE
    counts = {int(k): int(n) for k, n in zip(*np.unique(head_labels, return_counts=True), strict=True)}
    left, right = (2, 3, 4, 8, 7, 10, 11, 12, 13, 17, 28), (41, 42, 43, 47, 46, 49, 50, 51, 52, 53, 60)
    for a, b in zip(left, right, strict=True):
        assert counts[a] == pytest.approx(counts[b], rel=0.35), (a, b)
    known = {0, *itertools.chain.from_iterable(FREESURFER.values())}
    assert set(counts) <= known
    ml = {name: sum(counts.get(k, 0) for k in ids) / 1000 for name, ids in FREESURFER.items()}
    assert 250 < ml["white_matter"] < 700
    assert 250 < ml["cortex"] < 800
    assert 10 < ml["ventricle"] < 120
    assert 5 < ml["putamen"] < 16 and 4 < ml["caudate"] < 16 and 8 < ml["thalamus"] < 24
    assert 60 < ml["cerebellum_gm"] + ml["cerebellum_wm"] < 220
    assert min(ml["csf"], ml["skin"], ml["bone"], ml["soft_tissue"]) > 50
    # Left is left: RAS+ means that x grows to the right.
    x = np.arange(head_labels.shape[0])
    of = {label: np.average(x, weights=(head_labels == label).sum((1, 2))) for label in (2, 41)}
    assert of[2] < head_labels.shape[0] / 2 < of[41]
