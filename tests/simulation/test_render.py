"""Rendering: fractions fill each voxel, PVS lie in their tissues, mimics are never labelled."""

from __future__ import annotations

import math

import pytest
import torch
from scenes import EMPTY, MANY_PVS, MIMICS, PVS, scene_params

from pvs_model.simulation.head import (
    BASAL_GANGLIA,
    CENTRUM_SEMIOVALE,
    NO_REGION,
    OTHER_BRAIN,
    PVS_TISSUES,
    TISSUES,
    HeadModel,
    tissue_ids,
)
from pvs_model.simulation.render import Scene, render
from pvs_model.simulation.tissue_contrast import STRUCTURES


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), (0.5, 0.5, 5.0), (0.45, 0.47, 0.5), (0.8, 0.8, 2.2)])
def test_fractions_fill_every_voxel(anatomy: HeadModel, voxel: tuple[float, float, float]) -> None:
    scene = render(scene_params(3, (12, 14, 8), voxel_mm=voxel, **MANY_PVS, **MIMICS), anatomy)
    assert scene.fractions.shape == (len(TISSUES) + len(STRUCTURES), 12, 14, 8)
    total = scene.fractions.sum(0, dtype=torch.int32)
    assert int((total - 255).abs().max()) <= 8  # up to a dozen parts, each rounded
    assert float((total - 255).float().abs().mean()) < 1.5


def test_nothing_asked_for_is_nothing_labelled(bare: Scene) -> None:
    assert not bare.label_by_fraction().any() and not bare.pvs_fraction.any()
    assert not bare.fractions[len(TISSUES) :].any()


def test_mimics_are_drawn_and_never_labelled(anatomy: HeadModel) -> None:
    scene = render(scene_params(1, (50, 56, 46), **EMPTY | MIMICS), anatomy)
    assert not scene.label_by_fraction().any() and not scene.pvs_fraction.any()
    for name in STRUCTURES:
        mimic = scene.fractions[len(TISSUES) + STRUCTURES.index(name)]
        assert bool(mimic.any()) == (name != "pvs"), name


def test_csf_mimics_are_never_labelled(anatomy: HeadModel) -> None:
    params = scene_params(
        1, (50, 56, 46), **EMPTY | {"sulcal_csf": 0.7, "sulcal_depth_mm": 1.5, "cerebellar_fissures": 0.4}
    )
    scene = render(params, anatomy)
    mimic = scene.fractions[len(TISSUES) + STRUCTURES.index("csf_pocket")]
    assert mimic.any() and not scene.label_by_fraction().any() and not scene.pvs_fraction.any()


def test_pvs_lie_in_their_tissues(full: Scene, bare: Scene) -> None:
    allowed = bare.fractions[tissue_ids(*PVS_TISSUES)].sum(0, dtype=torch.int32)
    coverage = full.pvs_fraction.to(torch.int32)
    assert int(coverage.max()) > 200 and int(full.label_by_fraction().sum()) > 30
    assert (coverage <= allowed + len(PVS_TISSUES)).all()  # each share is rounded
    partly = (allowed > 0) & (allowed < 255)
    assert (coverage[partly] > 0).any()  # the law is put to the test at borders


def test_the_signal_of_pvs_is_at_most_their_fraction(full: Scene) -> None:
    signal = full.fractions[PVS].to(torch.int32)
    assert (signal <= full.pvs_fraction.to(torch.int32) + 1).all()
    faint = signal[full.pvs_fraction > 200].float() / full.pvs_fraction[full.pvs_fraction > 200].float()
    assert 0.15 - 0.01 <= float(faint.min()) < float(faint.max()) <= 1.01


def test_where_pvs_are_asked_for_is_where_they_are(anatomy: HeadModel) -> None:
    regions = {"pvs_centrum": CENTRUM_SEMIOVALE, "pvs_basal": BASAL_GANGLIA, "pvs_other": OTHER_BRAIN}
    for name, region in regions.items():
        scene = render(scene_params(5, (50, 56, 46), **EMPTY | {name: 9.0, "pvs_length_mm": 3.0}), anatomy)
        counts = torch.bincount(scene.regions[scene.label_by_fraction()].long(), minlength=4)
        assert int(counts.argmax()) == region and int(counts[region]) > 0.6 * int(counts.sum()) > 3


@pytest.mark.parametrize(
    ("voxel", "least"), [((1.0, 1.0, 1.0), 102), ((1.0, 1.0, 2.49), 102), ((1.0, 1.0, 2.5), 51), ((6.0, 0.5, 0.5), 51)]
)
def test_a_voxel_is_labelled_from_its_fraction_on(voxel: tuple[float, float, float], least: int) -> None:
    coverage = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1)
    none = torch.zeros(1)
    scene = Scene(none, coverage, none, none, none, none, voxel, none, False)
    assert torch.equal(scene.label_by_fraction(), coverage >= least)
    assert least == math.ceil((0.2 if max(voxel) >= 2.5 else 0.4) * 255)


def test_nothing_outside_the_regions_is_labelled(anatomy: HeadModel) -> None:
    scene = render(scene_params(7, (40, 44, 36), **MANY_PVS), anatomy)
    outside = scene.regions == NO_REGION
    # A voxel's region is that of its middle, so a tube at a border may reach beyond by a voxel.
    assert int((scene.label_by_fraction() & outside).sum()) <= 0.02 * int(scene.label_by_fraction().sum())
