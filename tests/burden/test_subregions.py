"""Centrum semiovale and deep white matter: a head of boxes, measured by hand, in any pose and on any grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.transform import Rotation

from pvs_model.anatomy.regions import Anatomy, values_of
from pvs_model.burden.records import POTTER
from pvs_model.burden.regions import burden_of
from pvs_model.burden.subregions import _CENTRES, superior_axis, white_matter_parts

SHAPE, MIDDLE = (80, 96, 84), np.array([39.5, 56.0, 40.0])


def head(rotation: Rotation | None = None, spacing_mm: float = 1.0) -> tuple[Anatomy, npt.NDArray[np.float64]]:
    """White matter with a cortex around it, deep structures of 7 mm at their centres, ventricles of 9 x 21 x 7 mm.

    Args:
        rotation: Pose of the head, about its middle; the grid stays along the scanner's axes.
        spacing_mm: Voxel size.
    """
    shape = tuple(round(n / spacing_mm) for n in SHAPE)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    at = np.moveaxis(np.indices(shape), 0, -1) * spacing_mm - MIDDLE
    x, y, z = np.moveaxis(at if rotation is None else rotation.inv().apply(at.reshape(-1, 3)).reshape(at.shape), -1, 0)
    labels = np.zeros(shape, np.uint8)
    for side, sign in (("L", -1), ("R", 1)):
        own = sign * x > 0
        labels[own & (abs(x) < 36) & (y > -50) & (y < 34) & (abs(z) < 36)] = values_of(f"{side}-CTX")[0]
        labels[own & (abs(x) < 32) & (y > -46) & (y < 30) & (abs(z) < 32)] = values_of(f"{side}-WM")[0]
        for name, (right, anterior, superior) in _CENTRES.items():
            size = (4.5, 10.5, 3.5) if name == "LV" else (3.5,) * 3
            near = [abs(a - b) < s for a, b, s in zip((sign * x, y, z), (right, anterior, superior), size, strict=True)]
            labels[own & np.logical_and.reduce(near)] = values_of(f"{side}-{name}")[0]
    return Anatomy(labels, labels > 0), affine


def test_the_centrum_semiovale_lies_above_the_roof_and_deep_white_matter_4_mm_from_the_cortex() -> None:
    """The roof is the ventricle's highest voxel: z = 52 + 3 in the grid."""
    anatomy, affine = head()
    axis = superior_axis(anatomy, affine)
    assert axis is not None and np.degrees(np.arccos(axis[2])) < 2  # overlapping boxes shift some centres
    parts = white_matter_parts(anatomy, affine)
    white = anatomy.mask("WM")
    masks = parts.masks(white)
    assert not masks["CSO"][..., :52].any()
    assert np.array_equal(masks["CSO"][..., 60:], white[..., 60:])
    deep = np.argwhere(masks["deep WM"])
    assert (deep.min(0) == [11, 14, 12]).all() and (deep.max(0) == [68, 82, 68]).all()
    section = parts.rated_section(5.0)
    assert section is not None
    column = np.flatnonzero(section[52, 49])  # through the middle of the ventricle
    assert len(column) == 5 and abs(column.mean() - 65) <= 1.0


@pytest.mark.parametrize("angles", [(16, 0, 0), (-12, 5, 8)])
def test_the_pose_of_the_head_does_not_matter(angles: tuple[float, float, float]) -> None:
    rotation = Rotation.from_euler("xyz", angles, degrees=True)
    upright, affine = head()
    turned, _ = head(rotation)
    axes = [superior_axis(anatomy, affine) for anatomy in (upright, turned)]
    assert axes[0] is not None and axes[1] is not None
    assert np.degrees(np.arccos(rotation.apply(axes[0]) @ axes[1])) < 0.5
    volumes = [white_matter_parts(a, affine).masks(a.mask("WM"))["CSO"].sum() for a in (upright, turned)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.03)
    along_the_scanner = (turned.mask("WM") & (np.indices(SHAPE)[2] > np.nonzero(turned.mask("LV"))[2].max())).sum()
    assert abs(along_the_scanner - volumes[0]) > 0.05 * volumes[0]


def test_voxel_size_and_stored_order_do_not_matter() -> None:
    anatomy, affine = head()
    coarse, coarse_affine = head(spacing_mm=2.0)
    volume = white_matter_parts(anatomy, affine).masks(anatomy.mask("WM"))["CSO"].sum()
    other = white_matter_parts(coarse, coarse_affine).masks(coarse.mask("WM"))["CSO"].sum() * 8
    assert other == pytest.approx(volume, rel=0.1)
    stored = np.eye(4)  # array axes superior, anterior, left
    stored[0, 3] = SHAPE[0] - 1
    flipped = Anatomy(np.transpose(anatomy.labels[::-1], (2, 1, 0)), np.transpose(anatomy.brain[::-1], (2, 1, 0)))
    stored[:3, :3] = [[0, 0, -1], [0, 1, 0], [1, 0, 0]]
    parts = white_matter_parts(flipped, stored)
    assert parts.masks(flipped.mask("WM"))["CSO"].sum() == volume


def test_each_hemisphere_has_its_own_roof() -> None:
    anatomy, affine = head()
    left = values_of("L-LV")[0]
    labels = anatomy.labels.copy()
    labels[(labels == left) & (np.indices(SHAPE)[2] > 52)] = values_of("L-WM")[0]  # 3 mm lower
    heights = white_matter_parts(Anatomy(labels, labels > 0), affine).height_mm
    assert heights is not None
    assert heights[20, 49, 60] - heights[59, 49, 60] == pytest.approx(3.0, abs=0.7)


def test_without_ventricles_or_cortex_the_parts_are_unknown() -> None:
    anatomy, affine = head()
    labels = anatomy.labels.copy()
    labels[anatomy.mask("L-LV")] = 0
    labels[anatomy.mask("CTX")] = 0
    without = Anatomy(labels, labels > 0)
    assert white_matter_parts(without, affine).masks(without.mask("WM")) == {}
    burden = burden_of(np.zeros(SHAPE, np.uint8), affine, without)
    assert {row.region for row in burden.regions} == {"WM", "BG", "hippocampus", "midbrain", "all"}
    assert burden.estimated_score(POTTER, "CSO") is None
    assert any("centrum semiovale (CSO) is not measured" in warning for warning in burden.warnings)
    assert white_matter_parts(Anatomy(labels * 0, labels > 255), affine).masks(labels > 255) == {}
    assert superior_axis(Anatomy(labels * 0, labels > 255), affine) is None


def test_a_temporal_pvs_is_in_the_white_matter_but_not_in_the_centrum_semiovale() -> None:
    anatomy, affine = head()
    mask = np.zeros(SHAPE, np.uint8)
    mask[15, 60:63, 15] = 1  # low
    mask[15, 60:63, 64] = 1  # about 1 cm above the roof
    burden = burden_of(mask, affine, anatomy)
    assert [(p.region, p.parts, p.potter_sections) for p in burden.pvs] == [
        ("WM", ("deep WM",), ()),
        ("WM", ("CSO", "deep WM"), ("CSO",)),
    ]
    assert [burden.row(name).count for name in ("WM", "CSO", "deep WM", "all")] == [2, 1, 2, 2]
    score = burden.estimated_score(POTTER, "CSO")
    assert score is not None and (score.score, score.counted, score.hemisphere) == (1, 1, "left")
