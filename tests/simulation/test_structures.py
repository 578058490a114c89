"""Tubes as measured: they vary along their length, are interrupted and bundled, and lie where PVS are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scenes import EMPTY, scene_params
from torch import Tensor

from pvs_model.config import SUBJECTS
from pvs_model.simulation.acquisition import acquire
from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE, INDEX, OTHER_BRAIN, TISSUES, HeadModel
from pvs_model.simulation.parameters import SceneParams, draw_scan, draw_scene, without_mimics
from pvs_model.simulation.render import render
from pvs_model.simulation.structures import draw_structures
from pvs_model.simulation.tissue_contrast import STRUCTURES
from pvs_model.simulation.tubes import Tubes, sample_field, voxelise
from pvs_model.simulation.visibility import label_visible

SHAPE = (64, 72, 56)  # of 0.5 mm: 16 cm3
H = torch.full((3,), 0.5)
#: Tubes alone, all equal: no spread, no variation, no gaps, no bundles; no other structures.
EQUAL: dict[str, Any] = EMPTY | {
    "pvs_diameter_mm": 0.9, "pvs_basal_diameter_mm": 0.9,
    "pvs_diameter_spread": 0.0, "pvs_length_mm": 8.0, "pvs_length_spread": 0.0, "pvs_relative_contrast": 0.6,
    "pvs_relative_contrast_spread": 0.0, "pvs_tortuosity": 0.05, "pvs_variation": 0.0, "pvs_gaps": 0.0,
    "pvs_bundle": 1.0, "pvs_subinsular": 0.0,
}  # fmt: skip


def params(seed: int = 1, **changes: Any) -> SceneParams:
    drawn = draw_scene(seed, (32, 36, 28), (1.0, 1.0, 1.0), target="whole", empty_share=0.0)
    return replace(drawn, **EQUAL | changes)


def white(region: int = CENTRUM_SEMIOVALE) -> tuple[Tensor, Tensor]:
    """A block of white matter of one region: tissues and regions."""
    tissue = torch.full(SHAPE, INDEX["white_matter"], dtype=torch.uint8)
    return tissue, torch.full_like(tissue, region)


def structures_of(p: SceneParams, tissue: Tensor, region: Tensor) -> dict[str, Tensor]:
    coarse = [n // 4 for n in SHAPE]
    direction = torch.zeros(3, *coarse)
    direction[2] = 1.0
    far, generator = torch.full(coarse, 40.0), torch.Generator().manual_seed(p.seed)
    return draw_structures(p, tissue, region, direction, far, H, 4, generator)


def grown(p: SceneParams, tissue: Tensor, region: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tubes]:
    """The tubes that are drawn, by place: white matter, beside the putamen, basal ganglia, elsewhere."""
    drawn: list[Tubes] = []
    with monkeypatch.context() as changed:
        record: Any = lambda tubes, *rest: drawn.append(tubes) or voxelise(tubes, *rest)  # noqa: E731
        changed.setattr("pvs_model.simulation.structures.voxelise", record)
        structures_of(p, tissue, region)
    return drawn


def ranges(values: Tensor, alive: Tensor) -> Tensor:
    """Largest less smallest value along each tube (N, P), where it is."""
    high = torch.where(alive, values, torch.full_like(values, -math.inf)).amax(1)
    low = torch.where(alive, values, torch.full_like(values, math.inf)).amin(1)
    return (high - low)[alive.sum(1) > 3]


# ---- along a tube --------------------------------------------------------------------------------------------------


def test_tubes_vary_along_their_length_as_much_as_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    spreads = []
    for variation in (0.0, 0.1, 0.35):
        (tubes,) = grown(params(pvs_centrum=5.0, pvs_variation=variation), *white(), monkeypatch)
        alive = tubes.radius_mm > 0
        assert len(tubes.radius_mm) > 30 and tubes.relative_contrast.shape == tubes.radius_mm.shape
        assert float(tubes.relative_contrast.min()) >= 0.1 and float(tubes.relative_contrast.max()) <= 1.0
        # On the whole they are as bright as before.
        assert float(tubes.relative_contrast[alive].mean()) == pytest.approx(0.6, abs=0.03)
        signal = ranges(tubes.relative_contrast, alive)
        assert bool((signal > 1e-3).all()) == (variation > 0)
        spreads.append(float(signal.mean()))
    assert spreads[0] == 0 < 2 * spreads[1] < spreads[2] <= 2 * 0.35 * 0.6


def test_the_width_varies_beyond_taper_and_beads(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, varied = (
        grown(params(pvs_centrum=5.0, pvs_variation=v), *white(), monkeypatch)[0].radius_mm for v in (0.0, 0.35)
    )
    # The same tubes: what differs is a wave of 0.35 x 0.6 of the width.
    assert plain.shape == varied.shape
    ratio = (varied / plain)[plain > 0]
    assert 1 - 0.211 <= float(ratio.min()) < 0.85 and 1.15 < float(ratio.max()) <= 1 + 0.211
    assert torch.equal(varied > 0, plain > 0)


def test_the_signal_on_the_grid_varies_with_the_tube() -> None:
    ratios = []
    for variation in (0.0, 0.35):
        out = structures_of(params(pvs_centrum=5.0, pvs_variation=variation), *white())
        full = out["pvs"] > 0.3
        ratios.append((out["pvs_signal"] / out["pvs"].clamp_min(1e-6))[full])
    torch.testing.assert_close(ratios[0], torch.full_like(ratios[0], 0.6))
    assert float(ratios[1].std()) > 0.05 and float(ratios[1].max()) <= 1.0


def interrupted(tubes: Tubes) -> Tensor:
    """Whether each tube has a gap: nothing between two pieces of it."""
    alive = (tubes.radius_mm > 0).int()
    return (alive.diff(dim=1) == 1).sum(1) + alive[:, 0] > 1


def test_gaps_interrupt_as_many_tubes_as_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for gaps in (0.0, 0.3, 1.0):
        (tubes,) = grown(params(pvs_centrum=8.0, pvs_gaps=gaps, pvs_length_mm=16.0), *white(), monkeypatch)
        shares.append(float(interrupted(tubes).float().mean()))
        if gaps == 1.0:
            # A gap is short: at most about 3 of the 9 mm of its wave, so most of the tube is there.
            assert float((tubes.radius_mm > 0).float().mean()) > 0.4
    assert shares[0] == 0 and 0.1 < shares[1] < 0.4 and shares[2] > 0.5


def test_diameters_of_the_grid_are_those_of_its_tubes() -> None:
    for width in (0.7, 1.5):
        out = structures_of(params(pvs_centrum=3.0, pvs_diameter_mm=width), *white())
        reached = out["pvs_diameter"] > 0
        assert torch.equal(reached, out["pvs"] > 0)
        # Up to three tenths for beads; thinner to the ends.
        assert width * 0.95 < float(out["pvs_diameter"].max()) <= width * 1.31


# ---- where tubes are -----------------------------------------------------------------------------------------------


def seeds(tubes: Tubes) -> Tensor:
    return tubes.points_mm[:, tubes.points_mm.shape[1] // 2]


def to_nearest(points: Tensor) -> float:
    """Median distance from each point to the nearest other one."""
    distance = torch.cdist(points, points)
    return float(distance.fill_diagonal_(math.inf).amin(1).median())


def test_bundles_lie_close_together_within_the_basal_ganglia(monkeypatch: pytest.MonkeyPatch) -> None:
    tissue, region = white()
    region[:, :36] = BASAL_GANGLIA
    near = []
    for bundle in (1.0, 6.0):
        (tubes,) = grown(params(pvs_basal=6.0, pvs_bundle=bundle), tissue, region, monkeypatch)
        start = seeds(tubes)
        assert len(start) > 30
        inside = sample_field((region == BASAL_GANGLIA)[None], start, H)[:, 0]
        assert inside.all() and (start > 0).all() and (start < torch.tensor(SHAPE) * H).all()
        near.append(to_nearest(start))
    assert near[1] < 0.75 * near[0]


def test_bundles_are_those_of_the_basal_ganglia_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    (single,), (bundled,) = (
        grown(params(pvs_centrum=6.0, pvs_bundle=bundle), *white(), monkeypatch) for bundle in (1.0, 6.0)
    )
    assert torch.equal(single.points_mm, bundled.points_mm)


def test_hippocampus_midbrain_and_nuclei_have_pvs() -> None:
    tissue, region = white(OTHER_BRAIN)
    parts = ("hippocampus", "ventral_dc", "brainstem", "cortex", "csf")
    for k, name in enumerate(parts):
        tissue[k * 12 : (k + 1) * 12] = INDEX[name]
    out = structures_of(params(pvs_other=9.0), tissue, region)
    has_pvs = {name: bool(out["pvs"][tissue == INDEX[name]].any()) for name in parts}
    assert has_pvs == {"hippocampus": True, "ventral_dc": True, "brainstem": True, "cortex": False, "csf": False}


def test_white_matter_beside_the_putamen_has_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tissue, region = white()
    tissue[:10], region[:10] = INDEX["putamen"], BASAL_GANGLIA
    everywhere, beside = grown(params(pvs_centrum=2.0, pvs_subinsular=4.0), tissue, region, monkeypatch)
    # Of 0.5 mm: white matter begins at 5 mm and what is beside the putamen ends 6 mm further.
    at = seeds(beside)[:, 0]
    assert len(at) > 10 and float(at.min()) >= 5.0 and float(at.max()) <= 11.5
    near = int((seeds(everywhere)[:, 0] < 11).sum()) + len(at)
    far = int((seeds(everywhere)[:, 0] >= 11).sum())
    assert near / 6 > 2 * far / 21, "per mm of the way"
    # Without a putamen nearby there is no such place.
    (alone,) = grown(params(pvs_centrum=2.0, pvs_subinsular=4.0), *white(), monkeypatch)
    assert len(alone.points_mm)


# ---- stroke cavities -----------------------------------------------------------------------------------------------


def test_cavities_contain_fluid_with_a_rim_and_without_pvs() -> None:
    tissue, region = white()
    tissue[:, :8] = INDEX["cortex"]
    alone = structures_of(params(stroke_cavities=0.15), tissue, region)
    assert not alone["pvs"].any() and not alone["pvs_signal"].any() and not alone["pvs_diameter"].any()
    hole, rim = alone["lacune"], alone["lesion"]
    assert hole.any() and (rim[hole > 0] > 0).all() and int((rim > 0).sum()) > 1.2 * int((hole > 0).sum())
    assert not hole[tissue == INDEX["cortex"]].any()
    # Among many PVS: none inside.
    both = structures_of(params(stroke_cavities=0.15, pvs_centrum=9.0), tissue, region)
    torch.testing.assert_close(both["lacune"], hole)
    assert both["pvs"].any() and not both["pvs"][hole > 0].any() and not both["pvs_diameter"][hole > 0].any()


def test_cavities_of_a_head_are_never_labelled(anatomy: HeadModel) -> None:
    p = replace(params(stroke_cavities=0.15), shape=(40, 44, 36))
    scene = render(p, anatomy)
    hole = scene.fractions[len(TISSUES) + STRUCTURES.index("lacune")]
    assert (hole > 250).sum() > 100 and not scene.pvs_fraction.any() and not len(scene.pvs_index)
    scan = acquire(scene, draw_scan(1, complete=True))
    assert not scan.cnr.any() and not any(mask.any() for mask in label_visible(scan.cnr, scene.voxel_mm))


# ---- subjects ------------------------------------------------------------------------------------------------------


def test_thin_subjects_have_more_and_thinner_tubes_than_wide_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    tissue, region = white()
    region[:32] = BASAL_GANGLIA
    count, width = dict.fromkeys(SUBJECTS, 0), {name: torch.zeros(0) for name in SUBJECTS}
    for subject in SUBJECTS:
        for seed in range(6):
            drawn = draw_scene(seed, (32, 36, 28), (1.0, 1.0, 1.0), target="whole", empty_share=0.0, subject=subject)
            p = without_mimics(drawn)
            for tubes in grown(p, tissue, region, monkeypatch):
                count[subject] += len(tubes.points_mm)
                width[subject] = torch.cat([width[subject], 2 * tubes.radius_mm.amax(1)])
    assert count["thin"] > 1.5 * count["wide"] > 20
    assert float(width["thin"].median()) < 0.75 * float(width["wide"].median())


def test_regions_of_the_toy_head_have_what_is_asked_for(anatomy: HeadModel) -> None:
    scene = render(replace(params(pvs_other=9.0), shape=(56, 64, 52)), anatomy)
    for name in ("hippocampus", "brainstem"):
        assert scene.pvs_fraction[scene.fractions[INDEX[name]] > 100].any(), name
    # They may run on into the white matter beside.
    assert (scene.regions[scene.pvs_fraction > 100] == OTHER_BRAIN).float().mean() > 0.6


# ---- CSF mimics -----------------------------------------------------------------------------------------------------


def test_sulcal_csf_lies_in_cortex_far_from_white_matter() -> None:
    # Cortex of 7 mm between two blocks of white matter, as where a sulcus is closed; no other structures.
    h = torch.full((3,), 0.5)
    tissue = torch.full((24, 40, 40), INDEX["white_matter"], dtype=torch.uint8)
    tissue[:, 13:27] = INDEX["cortex"]
    region = torch.full_like(tissue, OTHER_BRAIN)
    direction, far = torch.zeros(3, 6, 10, 10), torch.full((6, 10, 10), 40.0)
    filled = []
    for share in (0.1, 0.4, 0.7):
        p = scene_params(**EMPTY | {"sulcal_csf": share, "sulcal_depth_mm": 2.0})
        out = draw_structures(p, tissue, region, direction, far, h, 4, torch.Generator().manual_seed(0))
        assert not out["pvs"].any() and set(out) == {"pvs", "pvs_signal", "pvs_diameter", "csf_pocket"}
        csf = out["csf_pocket"]
        # 2 mm are 4 voxels: of the 14 the middle 6 are further from white matter on both sides.
        outside = torch.ones_like(csf, dtype=torch.bool)
        outside[:, 17:23] = False
        assert not csf[outside].any() and csf[~outside].any()
        filled.append(float(csf[~outside].mean()))
    assert 0 < filled[0] < filled[1] < filled[2] < 1


def test_fissures_lie_in_the_cerebellum() -> None:
    h = torch.full((3,), 0.5)
    tissue = torch.full((32, 40, 40), INDEX["cortex"], dtype=torch.uint8)
    tissue[:, :20] = INDEX["cerebellum_gm"]
    region = torch.full_like(tissue, OTHER_BRAIN)
    direction, far = torch.zeros(3, 8, 10, 10), torch.full((8, 10, 10), 40.0)
    filled = []
    for width in (0.05, 0.2, 0.45):
        out = draw_structures(
            scene_params(**EMPTY | {"cerebellar_fissures": width}), tissue, region, direction, far, h, 4,
            torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert not out["pvs"].any() and not out["csf_pocket"][:, 20:].any()
        filled.append(float(out["csf_pocket"][:, :20].mean()))
    assert 0 < filled[0] < filled[1] < filled[2] < 0.7
