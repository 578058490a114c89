"""Labels by visibility: contrast-to-noise ratios of straight tubes by hand, and laws that hold for every scan."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import MIMICS
from scipy import ndimage
from torch import Tensor

from pvs_model.simulation import artefacts
from pvs_model.simulation.acquisition import MIN_NOISE, acquire, pvs_contribution
from pvs_model.simulation.head import INDEX, TISSUES, HeadModel
from pvs_model.simulation.parameters import ScanParams, SceneParams, draw_scan, draw_scene
from pvs_model.simulation.render import Scene, render
from pvs_model.simulation.structures import draw_structures
from pvs_model.simulation.tissue_contrast import STRUCTURES
from pvs_model.simulation.visibility import HIDDEN, VISIBLE, label_visible, local_maximum, neighbourhood
from pvs_model.types import Triple

NONE, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
WHITE, FLUID, PVS = INDEX["white_matter"], INDEX["ventricle"], len(TISSUES) + STRUCTURES.index("pvs")
#: Signals of T1w, T2w and FLAIR: white matter, fluid, PVS. Contrasts of 0.8, 0.6, 0.4; PVS have half of it in T2w.
SIGNALS = ((1.0, 0.2, 0.2), (0.3, 0.9, 0.6), (0.6, 0.2, 0.2))
ISOTROPIC, THIN, ANISOTROPIC, THICK = (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (1.0, 1.0, 2.0), (0.5, 0.5, 6.0)


def scene_of(share: Tensor, voxel_mm: Triple = ISOTROPIC) -> Scene:
    """White matter of which PVS fill a share (X, Y, Z), by hand."""
    kinds = len(TISSUES) + len(STRUCTURES)
    filled = (share * 255).round().to(torch.uint8)
    fractions = torch.zeros(kinds, *share.shape, dtype=torch.uint8)
    fractions[PVS], fractions[WHITE] = filled, 255 - filled
    index = torch.nonzero(share.flatten())[:, 0]
    displaced = torch.zeros(kinds, len(index), dtype=torch.float16)
    displaced[WHITE] = share.flatten()[index].half()
    regions = torch.full(share.shape, 2, dtype=torch.uint8)
    histogram = torch.ones(2, len(TISSUES)) / len(TISSUES)
    diameter = (filled > 0).to(torch.uint8)
    return Scene(fractions, filled, index.int(), displaced, diameter, regions, voxel_mm, histogram, False)


def scan_of(**changes: Any) -> ScanParams:
    """T1w alone, nothing done to it, unless changed. ``blur`` is the point spread of every channel, in voxels."""
    table = torch.zeros(3, len(TISSUES) + len(STRUCTURES))
    for channel, (white, fluid, pvs) in enumerate(SIGNALS):
        table[channel, [WHITE, FLUID, PVS]] = torch.tensor([white, fluid, pvs])
    plain: dict[str, Any] = {
        "signals": tuple(tuple(row) for row in table.tolist()), "present": (True, False, False),
        "skull_stripped": False, "texture": NONE, "fine_texture": NONE, "psf": (changes.pop("blur", NONE),) * 3,
        "acquired": (ONE,) * 3, "shift": (NONE,) * 3, "bias": NONE, "noise": (0.05,) * 3, "noise_correlation": NONE,
        "kspace_fraction": ONE, "gamma": ONE,
    }  # fmt: skip
    return replace(draw_scan(0, complete=True), **plain | changes)


def labels_of(scene: Scene, params: ScanParams) -> tuple[Tensor, Tensor]:
    return label_visible(acquire(scene, params).cnr, scene.voxel_mm)


def disc(radius: float, pixel: Triple, n: int) -> Tensor:
    """Share (n, n) of each pixel that a disc in the middle of the middle one fills, by counting points in it."""
    fine = 50
    x, y = ((torch.arange(n * fine) + 0.5) / fine - n / 2 for _ in range(2))
    inside = (x[:, None] * pixel[0]) ** 2 + (y[None] * pixel[1]) ** 2 < radius**2
    return inside.float().reshape(n, fine, n, fine).mean((1, 3))


def straight_tube(diameter: float, voxel_mm: Triple, n: int = 9, slices: int = 5) -> Scene:
    """A tube along the last axis, through the middle of a pixel."""
    return scene_of(disc(diameter / 2, voxel_mm, n)[..., None].expand(n, n, slices).contiguous(), voxel_mm)


def middle(sigma: float) -> float:
    """Share of a Gaussian of ``sigma`` voxels, centred on a voxel, that stays in it."""
    return math.erf(0.5 / (sigma * math.sqrt(2)))


def beside(sigma: float) -> float:
    """Share of it that goes to the next voxel on one side."""
    return (math.erf(1.5 / (sigma * math.sqrt(2))) - middle(sigma)) / 2


# ---- tubes by hand -------------------------------------------------------------------------------------------------

BLUR = 0.4
AREA = math.pi * 0.35**2  # of a tube 0.7 mm wide, mm2


def peak(voxel_mm: Triple) -> float:
    """Contribution of a tube 0.7 mm wide, in the middle of a pixel, at its peak, as a share of the contrast."""
    inside, next_to = middle(BLUR), beside(BLUR)
    if voxel_mm[0] == 1.0:  # all of the tube lies in its pixel
        return AREA * inside**2
    # Pixels of 0.5 mm: the middle one is full (its corners lie 0.354 mm away), and what is left of the area lies in
    # the four beside it.
    left = (AREA - 0.25) / 4 / 0.25
    return inside**2 + 4 * left * inside * next_to


@pytest.mark.parametrize("voxel", [THIN, ISOTROPIC, ANISOTROPIC, THICK])
def test_contrast_to_noise_of_a_thin_tube_by_hand(voxel: Triple) -> None:
    scene = straight_tube(0.7, voxel)
    blur = (BLUR, BLUR, BLUR if voxel[2] < 2.5 else 0.0)
    for noise, texture in ((0.05, 0.0), (0.03, 0.04), (0.001, 0.0)):
        cnr = acquire(scene, scan_of(blur=blur, noise=(noise,) * 3, fine_texture=(texture,) * 3)).cnr
        expected = peak(voxel) / max(MIN_NOISE, math.hypot(noise, texture))
        assert cnr.shape == scene.pvs_fraction.shape
        torch.testing.assert_close(cnr[4, 4], torch.full((5,), expected), rtol=0.015, atol=0)
        assert float(cnr.max()) == float(cnr[4, 4].max())
    # 1 mm: 0.385 of the voxel, of which 0.62 stays in it: 4.8 times a noise of 0.05. 0.5 mm: 13.3 times.
    assert peak(voxel) / 0.05 == pytest.approx(4.79 if voxel[0] == 1.0 else 13.3, rel=0.01)


@pytest.mark.parametrize("voxel", [THIN, ISOTROPIC, ANISOTROPIC, THICK])
def test_a_tube_disappears_when_its_noise_crosses_the_limits(voxel: Triple) -> None:
    scene = straight_tube(0.7, voxel)
    blur = (BLUR, BLUR, BLUR if voxel[2] < 2.5 else 0.0)
    line = torch.zeros(scene.pvs_fraction.shape, dtype=torch.bool)
    line[4, 4] = True  # the voxels beside it have less than half of the peak
    nothing = torch.zeros_like(line)

    def seen_at(ratio: float) -> tuple[Tensor, Tensor]:
        return labels_of(scene, scan_of(blur=blur, noise=(peak(voxel) / ratio,) * 3))

    for ratio, label, ignore in (
        (VISIBLE * 1.02, line, nothing), (VISIBLE * 0.98, nothing, line),
        (HIDDEN * 1.02, nothing, line), (HIDDEN * 0.98, nothing, nothing),
        (3.6, line, nothing), (3.6 / 2, nothing, line), (3.6 / 4, nothing, nothing),  # twice as noisy, and again
    ):  # fmt: skip
        seen = seen_at(ratio)
        assert torch.equal(seen[0], label) and torch.equal(seen[1], ignore), ratio


def test_a_tube_within_a_thick_slice_by_hand() -> None:
    # 1 mm wide, along the first axis of 0.5 x 0.5 x 6 mm, in the middle of a slice: of the middle pixel, 0.25 mm to
    # each side, y = r sin t: the area is r^2 (t + sin t cos t) with sin t = 1/2, of 0.5 x 6 mm2.
    angle = math.asin(0.5)
    area = 2 * 0.25 * (angle + math.sin(angle) * math.cos(angle))
    share = area / 3.0
    rest = (math.pi / 4 - area) / 2 / 3.0  # to each side
    profile = torch.zeros(9, 9, 3)
    profile[:, 3:6, 1] = torch.tensor([rest, share, rest])
    scene = scene_of(profile, THICK)
    expected = share * middle(BLUR) + 2 * rest * beside(BLUR)
    cnr = acquire(scene, scan_of(blur=(BLUR, BLUR, 0.0), noise=(0.04,) * 3)).cnr
    torch.testing.assert_close(cnr[:, 4, 1], torch.full((9,), expected / 0.04), rtol=0.02, atol=0)
    assert not cnr[..., 0].any() and not cnr[..., 2].any()
    assert expected / 0.04 == pytest.approx(3.41, abs=0.01)  # a sixth of the slice, less its blur, is seen
    # The lines to its sides reach 0.42 of that, less than half.
    sides = (rest * middle(BLUR) + share * beside(BLUR)) / expected
    assert sides == pytest.approx(0.419, abs=0.002)
    torch.testing.assert_close(cnr[:, 3, 1] / cnr[:, 4, 1], torch.full((9,), sides), rtol=0.02, atol=0)
    label, ignore = label_visible(cnr, THICK)
    assert label[:, 4, 1].all() and int(label.sum()) == 9 and not ignore.any()


# ---- channels ------------------------------------------------------------------------------------------------------

#: Each channel sees the tube in its own way; T2w half as well as T1w, see ``SIGNALS``.
OWN: dict[str, Any] = {
    "present": (True, True, True), "psf": ((0.5, 0.3, 0.2), (0.3, 0.6, 0.4), (0.4, 0.4, 0.4)),
    "acquired": (ONE, (1.0, 1.0, 2.5), (1.5, 1.5, 1.0)), "shift": (NONE, (0.4, -0.3, 0.0), (1.0, 0.0, 0.5)),
    "noise": (0.1, 0.04, 0.06), "fine_texture": (0.01, 0.02, 0.03), "kspace_fraction": (1.0, 0.8, 1.0),
}  # fmt: skip


def test_labels_do_not_depend_on_the_order_of_channels() -> None:
    scene, scan = straight_tube(0.9, ISOTROPIC), scan_of(**OWN)
    expected = acquire(scene, scan).cnr
    assert expected.any()
    for order in ((2, 0, 1), (1, 0, 2), (2, 1, 0)):
        permuted = {name: tuple(getattr(scan, name)[c] for c in order) for name in ("signals", *OWN)}
        assert torch.equal(acquire(scene, replace(scan, **permuted)).cnr, expected)


def test_the_best_channel_decides_and_takes_its_visibility_with_it() -> None:
    scene, scan = straight_tube(0.9, ISOTROPIC), scan_of(**OWN)
    alone = []
    for c in range(3):
        alone.append(acquire(scene, replace(scan, present=tuple(k == c for k in range(3)))).cnr)  # type: ignore[arg-type]
        assert alone[c].any()
    for present in ((True, True, True), (True, False, True), (False, True, True), (True, True, False)):
        best = torch.stack([cnr for cnr, there in zip(alone, present, strict=True) if there]).amax(0)
        torch.testing.assert_close(acquire(scene, replace(scan, present=present)).cnr, best)
    # Seen in T2w alone: without it, nothing is labelled.
    scene, quiet = straight_tube(1.4, ISOTROPIC), replace(scan, noise=(0.9, 0.02, 0.9))
    assert labels_of(scene, quiet)[0].any()
    for mask in labels_of(scene, replace(quiet, present=(True, False, True))):
        assert not mask.any()


def test_a_shift_of_one_channel_moves_what_is_seen_in_it() -> None:
    scene = straight_tube(0.9, ISOTROPIC)
    scan = scan_of(present=(True, True, False), noise=(0.4, 0.02, 0.05), blur=(0.4,) * 3)
    still = acquire(scene, scan).cnr
    moved = acquire(scene, replace(scan, shift=(NONE, (2.0, 0.0, 0.0), NONE))).cnr
    t2w = acquire(scene, replace(scan, present=(False, True, False))).cnr
    t1w = acquire(scene, replace(scan, present=(True, False, False))).cnr
    torch.testing.assert_close(still, torch.maximum(t1w, t2w))
    torch.testing.assert_close(moved[2:], torch.maximum(t1w[2:], t2w[:-2]))
    label, _ = label_visible(moved, ISOTROPIC)
    assert label[6, 4].all() and not label[4, 4].any(), "the label lies where the PVS is seen"
    half = acquire(scene, replace(scan, shift=(NONE, (0.5, 0.0, 0.0), NONE), present=(False, True, False))).cnr
    torch.testing.assert_close(half[1:], (t2w[1:] + t2w[:-1]) / 2)


# ---- laws of the rule ----------------------------------------------------------------------------------------------


@st.composite
def maps_of_cnr(draw: st.DrawFn) -> tuple[Tensor, Triple]:
    """Smooth spots of any height on a ground of nothing."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = (draw(st.integers(3, 14)), draw(st.integers(3, 14)), draw(st.integers(1, 8)))
    spots = torch.rand(shape, generator=generator) ** draw(st.integers(2, 40)) * draw(st.floats(0.5, 30))
    spots = spots * (torch.rand(shape, generator=generator) < 0.3)
    sigma = draw(st.floats(0.0, 1.0))
    return artefacts.blur(spots[None], (sigma, sigma, sigma))[0], draw(
        st.sampled_from([ISOTROPIC, THIN, ANISOTROPIC, THICK])
    )


@given(drawn=maps_of_cnr(), louder=st.floats(1.0, 4.0))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_laws_of_labels(drawn: tuple[Tensor, Triple], louder: float) -> None:
    cnr, voxel = drawn
    label, ignore = label_visible(cnr, voxel)
    assert not (label & ignore).any()
    assert not (label | ignore)[cnr == 0].any(), "nothing is labelled or ignored where there is no PVS"
    highest = local_maximum(cnr, voxel)
    assert (highest >= cnr).all()
    # What stands out in its neighbourhood is labelled, ignored or background by its own height.
    tops = (cnr == highest) & (cnr > 0)
    assert torch.equal(label[tops], cnr[tops] >= VISIBLE)
    assert torch.equal(ignore[tops], (cnr[tops] > HIDDEN) & (cnr[tops] < VISIBLE))
    assert (cnr[label] >= VISIBLE / 2).all() and (cnr[ignore] > HIDDEN / 2).all() and (cnr[ignore] < VISIBLE).all()
    # A PVS is seen by what can be seen of itself: every cluster of labels reaches the limit somewhere, none of those
    # that are ignored does.
    together = np.ones((3, 3, 3), bool)
    if max(voxel) >= 2.5:  # slices are read one at a time
        together[..., [0, 2]] = False
    for mask, seen in ((label, True), (ignore, False)):
        clusters, count = ndimage.label(mask.numpy(), together)
        peaks = np.array(ndimage.maximum(cnr.numpy(), clusters, np.arange(1, count + 1)))
        assert ((peaks >= VISIBLE) == seen).all()
    # More noise in all channels: labels become ignored or nothing, ignored voxels nothing, and none comes anew.
    noisier, noisier_ignore = label_visible(cnr / louder, voxel)
    assert not (noisier & ~label).any() and not ((noisier | noisier_ignore) & ~(label | ignore)).any()
    # Mirror images have mirror labels.
    for axis in range(3):
        assert torch.equal(label_visible(cnr.flip(axis), voxel)[0], label.flip(axis))


def line(*values: float) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1)


def marked(mask: Tensor) -> list[int]:
    return torch.nonzero(mask[:, 0, 0])[:, 0].tolist()


def test_what_is_bright_beyond_a_gap_is_another_pvs() -> None:
    # At 0.5 mm the neighbourhood reaches three voxels: the second PVS is above half of the first, and seen by none.
    label, ignore = label_visible(line(2.6, 0.0, 0.0, 1.5, 0.0, 0.0, 0.0, 0.0), THIN)
    assert (marked(label), marked(ignore)) == ([0], [3])
    # Without the gap it is one PVS, whose faint end is labelled with it.
    label, ignore = label_visible(line(2.6, 1.9, 1.7, 1.5, 0.0, 0.0, 0.0, 0.0), THIN)
    assert (marked(label), marked(ignore)) == ([0, 1, 2, 3], [])
    # Only so far as the neighbourhood reaches.
    label, ignore = label_visible(line(2.6, *[2.2] * 6), THIN)
    assert (marked(label), marked(ignore)) == ([0, 1, 2, 3], [4, 5, 6])


def test_the_foot_of_a_bright_pvs_is_no_pvs_of_its_own() -> None:
    # 4 is less than half of 10, and so belongs to nothing; 2.4 is more than half of 4, and was labelled for its sake.
    label, ignore = label_visible(line(10.0, 4.0, 2.4, 0.5, 0.0), ISOTROPIC)
    assert (marked(label), marked(ignore)) == ([0], [2])


@pytest.mark.parametrize(
    ("voxel", "sides"),
    [(ISOTROPIC, (3, 3, 3)), (THIN, (7, 7, 7)), (ANISOTROPIC, (3, 3, 3)), (THICK, (7, 7, 1)),
     ((0.75, 0.8, 2.4), (5, 3, 3)), ((2.0, 2.0, 2.0), (3, 3, 3)), ((4.0, 0.9, 0.9), (1, 3, 3))],
)  # fmt: skip
def test_the_neighbourhood_reaches_about_3_mm(voxel: Triple, sides: tuple[int, int, int]) -> None:
    assert neighbourhood(voxel) == sides
    cnr = torch.zeros(11, 11, 11)
    cnr[5, 5, 5] = 2.0
    reached = torch.nonzero(local_maximum(cnr, voxel))
    assert (reached.amax(0) - reached.amin(0) + 1).tolist() == list(sides)


def test_thick_slices_are_read_one_at_a_time() -> None:
    # The same PVS, clear in one slice and faint in the next: there it is ignored, though below half of its best.
    cnr = torch.zeros(5, 5, 3)
    cnr[2, 2] = torch.tensor([6.0, 1.5, 0.9])
    label, ignore = label_visible(cnr, THICK)
    assert torch.nonzero(label).tolist() == [[2, 2, 0]] and torch.nonzero(ignore).tolist() == [[2, 2, 1]]
    label, ignore = label_visible(cnr, ISOTROPIC)
    assert torch.nonzero(label).tolist() == [[2, 2, 0]]


def test_more_noise_never_adds_labels_to_a_scan() -> None:
    generator = torch.Generator().manual_seed(1)
    share = artefacts.blur((torch.rand(1, 20, 20, 12, generator=generator) > 0.97).float(), (0.4,) * 3)[0].clamp(0, 1)
    scene, before = scene_of(share), None
    for noise in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
        label, ignore = labels_of(scene, scan_of(noise=(noise,) * 3, present=(True, True, True), blur=(0.4,) * 3))
        if before is not None:
            assert not (label & ~before[0]).any() and not ((label | ignore) & ~(before[0] | before[1])).any()
        before = label, ignore
    assert before is not None and not before[0].any()


def test_a_scene_without_pvs_has_nothing_to_see() -> None:
    scan = acquire(scene_of(torch.zeros(6, 6, 6)), scan_of(**OWN))
    assert not scan.cnr.any() and not any(mask.any() for mask in label_visible(scan.cnr, ISOTROPIC))


def test_what_is_skull_stripped_is_not_labelled() -> None:
    scene = straight_tube(0.9, ISOTROPIC)
    fractions = scene.fractions.clone()
    fractions[:, :, :5] = 0  # half of it is air
    fractions[INDEX["air"], :, :5] = 255
    cut = replace(scene, fractions=fractions)
    scan = acquire(cut, scan_of(skull_stripped=True, mask_smooth_mm=0.5, mask_threshold=0.5))
    assert not scan.cnr[~scan.foreground].any() and (~scan.foreground).any()


# ---- what PVS contribute -------------------------------------------------------------------------------------------

MANY = {"pvs_centrum": 8.0, "pvs_basal": 8.0, "pvs_other": 4.0, "pvs_relative_contrast": 0.8}


def patch(voxel: Triple, **changes: Any) -> SceneParams:
    return replace(draw_scene(3, (22, 24, 20), voxel, target="whole", empty_share=0.0), **MANY | changes)


def with_and_without(params: SceneParams, anatomy: HeadModel, monkeypatch: pytest.MonkeyPatch) -> tuple[Scene, Scene]:
    """A scene, and the same with everything in it but its PVS."""

    def none(*args: Any) -> dict[str, Tensor]:
        return {name: m * 0 if name.startswith("pvs") else m for name, m in draw_structures(*args).items()}

    scene = render(params, anatomy)
    with monkeypatch.context() as changed:
        changed.setattr("pvs_model.simulation.render.draw_structures", none)
        bare = render(params, anatomy)
    assert len(scene.pvs_index) > 100 and not len(bare.pvs_index)
    return scene, bare


@pytest.mark.parametrize("voxel", [ISOTROPIC, (0.8, 0.8, 3.0)])
def test_pvs_add_what_the_image_without_them_lacks(
    anatomy: HeadModel, monkeypatch: pytest.MonkeyPatch, voxel: Triple
) -> None:
    scene, bare = with_and_without(patch(voxel, **MIMICS), anatomy, monkeypatch)
    signals = torch.tensor(draw_scan(2).signals)
    images = [torch.einsum("ck,kxyz->cxyz", signals, s.fractions.float() / 255) for s in (scene, bare)]
    error = images[0] - images[1] - pvs_contribution(scene, signals)
    assert float(error.abs().max()) < 0.03 and float(error.abs().mean()) < 1e-3  # shares are rounded to 1/255
    assert not pvs_contribution(bare, signals).any()
    # Nothing is forgotten, and what is displaced is as much as comes in its place.
    elsewhere = torch.ones(scene.pvs_fraction.numel(), dtype=torch.bool)
    elsewhere[scene.pvs_index.long()] = False
    assert not scene.pvs_fraction.flatten()[elsewhere].any()
    comes = scene.fractions[PVS].flatten()[scene.pvs_index.long()].float() / 255
    torch.testing.assert_close(scene.displaced.float().sum(0), comes, rtol=0, atol=0.004)


def test_a_scene_of_the_same_seed_without_pvs_differs_by_their_contribution(anatomy: HeadModel) -> None:
    quiet = dict.fromkeys(MIMICS, 0.0)
    scene = render(patch(ISOTROPIC, **quiet), anatomy)
    bare = render(patch(ISOTROPIC, **quiet | {"pvs_centrum": 0.0, "pvs_basal": 0.0, "pvs_other": 0.0}), anatomy)
    scan = scan_of(present=(True, True, True), noise=NONE)
    table = torch.tensor(draw_scan(5).signals)
    scan = replace(scan, signals=tuple(tuple(row) for row in table.tolist()))
    difference = acquire(scene, scan).images - acquire(bare, scan).images
    torch.testing.assert_close(difference, pvs_contribution(scene, table), rtol=0, atol=0.03)
    assert float(difference.abs().max()) > 0.2


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_pvs_go_the_way_of_the_image(anatomy: HeadModel, monkeypatch: pytest.MonkeyPatch, channel: int) -> None:
    # Point spread, larger voxels, shift, bias field and ringing are linear: the ratio is that of the difference of two
    # scans without noise.
    scene, bare = with_and_without(patch(ISOTROPIC, **MIMICS), anatomy, monkeypatch)
    scan = scan_of(**OWN | {
        "present": tuple(k == channel for k in range(3)), "noise": NONE, "fine_texture": NONE, "bias": (0.3,) * 3,
        "signals": draw_scan(4, random_share=0.0).signals, "kspace_fraction": (0.8,) * 3, "texture": NONE,
    })  # fmt: skip
    taken, empty = acquire(scene, scan), acquire(bare, scan)
    signals = torch.tensor(scan.signals)
    contrast = float((signals[channel, WHITE] - signals[channel, FLUID]).abs())
    clear = (taken.images[channel] > 0.1) & (empty.images[channel] > 0.1)  # ringing beside air may cross zero
    difference = (taken.images - empty.images)[channel].abs() / (MIN_NOISE * contrast)
    assert clear.float().mean() > 0.8 and float(taken.cnr.max()) > 5
    torch.testing.assert_close(taken.cnr[clear], difference[clear], rtol=0, atol=0.02 / contrast / MIN_NOISE)
    assert not empty.cnr.any()
