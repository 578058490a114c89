"""Faces of simulated heads: what may be painted over, symmetry, sinuses, necks, signals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pvs_model.anatomy.regions import CLASS
from pvs_model.errors import VolumeError
from pvs_model.simulation.head import INDEX
from pvs_model.training.anatomy.face import (
    FACE,
    FaceParams,
    add_face,
    add_fat,
    draw_face,
    face_signals,
    paint_face,
)
from pvs_model.training.anatomy.label_maps import EXTRA_CEREBRAL, SIGNALS, LabelMap
from pvs_model.training.anatomy.scans import draw, render

SEEDS = range(2)
#: Ids that may be painted over: air, eyes, soft tissue, rectus muscles, mucosa, optic nerve.
FREE = (0, 506, 507, 508, 509, 530)
LOWEST = 20


def head_ids() -> npt.NDArray[np.uint16]:
    """Head of natural size, symmetric about x = 74.5: scalp, skull, CSF, brain, face, eyes, and a neck cut off."""
    x, y, z = np.meshgrid(np.arange(150) - 74.5, np.arange(200), np.arange(190), indexing="ij", sparse=True)

    def ball(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> npt.NDArray[np.bool_]:
        return np.asarray(sum(((a - c) / r) ** 2 for a, c, r in zip((x, y, z), centre, radii, strict=True)) < 1)

    ids = np.zeros((150, 200, 190), np.uint16)
    for grow, label in ((4, 511), (0, 507)):
        ids[ball((0, 115, 60), (55 + grow, 70 + grow, 70 + grow))] = label
    for grow, label in ((12, 511), (8, 507), (5, 515), (0, 24), (-4, 3), (-8, 2)):
        ids[ball((0, 90, 120), (56 + grow, 70 + grow, 50 + grow))] = label
    stem = x**2 + (y - 85) ** 2
    for label, area, top in ((24, 81, 75), (16, 25, 110), (512, 25, 60)):
        ids[np.broadcast_to((stem < area) & (z < top), ids.shape)] = label
    ids[:, :, :LOWEST] = 0
    for side in (-1, 1):
        ids[ball((side * 31, 160, 85), (12, 12, 12))] = 506
    return ids


def label_map(ids: npt.NDArray[np.uint16]) -> LabelMap:
    """What ``prepare`` makes of it, apart from its derived regions, which take seconds."""
    labels = (0, 2, 3, 16, 24, 506, 507, 511, 512, 515)
    tissues = dict(zip(labels[:5], ("air", "white_matter", "cortex", "brainstem", "csf"), strict=True))
    classes = {2: "WM", 3: "CTX", 16: "BST", 24: "CSF"}
    return LabelMap(
        name="head",
        codes=torch.from_numpy(np.searchsorted(labels, ids).astype(np.uint8)),
        signal=torch.tensor(
            [INDEX[tissues[k]] if k in tissues else len(INDEX) + EXTRA_CEREBRAL.index(k) for k in labels]
        ),
        target=torch.tensor([CLASS[classes[k]] if k in classes else 0 for k in labels], dtype=torch.uint8),
        side=torch.zeros(len(labels), dtype=torch.uint8),
        centre=torch.tensor([74.5, 90.0, 110.0]),
        whole_head=bool((ids > 500).any()),
    )


@pytest.fixture(scope="module")
def ids() -> npt.NDArray[np.uint16]:
    return head_ids()


@pytest.fixture(scope="module")
def plain(ids: npt.NDArray[np.uint16]) -> LabelMap:
    return label_map(ids)


@pytest.fixture(scope="module")
def head(plain: LabelMap) -> LabelMap:
    return add_face(plain)


def face(seed: int, **changes: object) -> FaceParams:
    """A face whose head does not end early."""
    return replace(draw_face(seed), **{"end_mm": math.inf} | changes)  # type: ignore[arg-type]


def where(head: LabelMap, *names: str) -> npt.NDArray[np.bool_]:
    return np.isin(head.signal.numpy(), [FACE[name] for name in names])[head.codes.numpy()]


def test_only_soft_tissue_and_air_behind_tissue_are_painted_over(
    ids: npt.NDArray[np.uint16], plain: LabelMap, head: LabelMap
) -> None:
    free = np.isin(ids, FREE)
    tissue_ahead = np.logical_or.accumulate((ids > 0)[:, ::-1], axis=1)[:, ::-1]
    free &= (ids > 0) | tissue_ahead
    free[:, :, :LOWEST] = True  # the neck
    for seed in SEEDS:
        painted = paint_face(head, face(seed))
        changed = (painted.codes != plain.codes).numpy()
        assert changed.any() and not (changed & ~free).any()
        for table in ("target", "side"):
            before, after = (getattr(m, table)[m.codes.long()] for m in (plain, painted))
            assert torch.equal(before, after)


def test_a_face_is_a_function_of_its_parameters_and_leaves_the_head_as_it_was(head: LabelMap) -> None:
    before = head.codes.clone()
    first, again, other = (paint_face(head, draw_face(seed)).codes for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(head.codes, before)


def test_eyes_are_a_pair_symmetric_about_the_midline(head: LabelMap) -> None:
    for seed in SEEDS:
        params = face(seed)
        painted = paint_face(head, params)
        left, right = (np.argwhere(half) for half in np.split(where(painted, "vitreous", "lens"), [75]))
        mirrored = right * (-1, 1, 1) + (74, 0, 0)
        assert np.allclose(left.mean(0), mirrored.mean(0), atol=0.05)  # a voxel just at the border may differ
        assert left[:, 0].mean() == pytest.approx(74.5 - 31 * params.distance, abs=0.5)
        assert len(left) == pytest.approx(4 / 3 * math.pi * (params.globe_mm - 1) ** 3, rel=0.1)
        assert where(painted, "nerve")[:75, :, 75:].any() and where(painted, "fat")[:75].any()


def test_eyes_of_a_map_without_them_are_placed_by_the_brain(plain: LabelMap) -> None:
    soft, eyes = (len(INDEX) + EXTRA_CEREBRAL.index(label) for label in (507, 506))
    blind = replace(plain, signal=torch.where(plain.signal == eyes, soft, plain.signal))
    frame = add_face(blind).frame
    assert frame is not None
    # Brain from y = 21 to 159 (CSF), from z = 20 (canal) to 169.
    assert frame.tolist() == [[74.5, 159 - 8, pytest.approx(20 + 0.33 * 149)], [30, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_sinuses_hold_air_unless_filled(head: LabelMap) -> None:
    empty, half, full = (paint_face(head, face(0, filling=(level,) * 10)) for level in (0.0, 0.5, 1.1))
    added = [(m.codes == 0).sum() - (head.codes == 0).sum() for m in (empty, half, full)]
    assert 20_000 < added[0] < 90_000  # mm3
    assert added[0] > added[1] > added[2] == 0
    secretions = [int(where(m, "secretion").sum()) for m in (empty, half, full)]
    assert secretions[0] == 0 < secretions[1] < secretions[2]
    assert where(empty, "mucosa").any()
    # Lying on the back, secretions collect there.
    y = np.argwhere(where(half, "secretion"))[:, 1].mean()
    assert y < np.argwhere((half.codes == 0).numpy() & (head.codes > 0).numpy())[:, 1].mean()


def test_a_neck_is_continued_to_the_edge_of_the_map(plain: LabelMap, head: LabelMap) -> None:
    assert not plain.codes[:, :, :LOWEST].any()
    for z in (0, LOWEST - 1):
        cord, canal = (where(head, name)[:, :, z] for name in ("nerve", "sheath"))
        assert cord[74, 85] and canal[74, 85 + 7] and not (cord & canal).any()
    assert (head.codes[:, :, 0] > 0).sum() < (head.codes[:, :, LOWEST] > 0).sum()
    # A map whose head reaches the edge is left as it is.
    uncut = replace(plain, codes=plain.codes[:, :, LOWEST:])
    assert torch.equal(uncut.codes == 0, add_face(uncut).codes == 0)


def test_a_head_may_end_below_the_brain(head: LabelMap) -> None:
    end = paint_face(head, face(0, end_mm=80.0))
    plane = int(head.centre[2] - 80)
    assert not end.codes[:, :, :plane].any() and end.codes[:, :, plane].any()


def test_brains_without_a_skull_get_no_face(ids: npt.NDArray[np.uint16]) -> None:
    bare = label_map(np.where(ids > 500, 0, ids))
    assert add_face(bare) is bare and paint_face(bare, draw_face(0)) is bare


def test_signals_of_other_tissues_and_images_without_soft_tissue_stay(head: LabelMap) -> None:
    g = torch.Generator().manual_seed(0)
    mean, spread = torch.rand(SIGNALS, generator=g), torch.rand(SIGNALS, generator=g)
    for sequence in ("T1w", "T2w", "FLAIR", "any"):
        more, wider = face_signals(mean, spread, 3, sequence)
        assert torch.equal(more[:SIGNALS], mean) and torch.equal(wider[:SIGNALS], spread)
        assert len(more) == len(wider) == SIGNALS + len(FACE) == int(head.signal.max()) + 1
    image, signal = torch.rand((16, 16, 16), generator=g), torch.full((16, 16, 16), FACE["mucosa"])
    assert torch.equal(add_fat(image, signal, more, 3, 2.0), image)


def test_soft_tissue_lies_between_muscle_and_fat() -> None:
    mean = torch.zeros(SIGNALS + len(FACE))
    mean[FACE["fat"]], mean[FACE["soft_tissue"]], mean[FACE["under_skin"]] = 0.8, 0.2, 0.2
    shape = (24, 24, 24)
    for seed in range(6):
        image, signal = torch.full(shape, 0.2), torch.full(shape, FACE["soft_tissue"])
        mixed = add_fat(image, signal, mean, seed, 2.0)
        assert 0.2 <= float(mixed.min()) < float(mixed.max()) <= 0.8 + 1e-6


def test_eyes_are_like_csf_and_fat_is_brighter_than_muscle() -> None:
    mean = torch.full((SIGNALS,), 0.5)
    usual = {}
    for sequence in ("T1w", "T2w", "FLAIR"):
        draws = torch.stack([face_signals(mean, mean, seed, sequence)[0] for seed in range(60)])
        usual[sequence] = {name: float(draws[:, FACE[name]].median()) for name in FACE}
        assert usual[sequence]["fat"] > 1.5 * usual[sequence]["muscle"]
        assert usual[sequence]["vitreous"] == pytest.approx(0.5, abs=0.1)  # that of CSF
    assert usual["T2w"]["mucosa"] > 2 * usual["T2w"]["muscle"]


def test_scans_of_heads_with_a_face_keep_their_targets(plain: LabelMap, head: LabelMap) -> None:
    for seed in SEEDS:
        params = replace(draw(seed), strip="no", sequence="T2w")
        before, after, again = (render(m, params, (40, 48, 40), 4.0) for m in (plain, head, head))
        assert torch.equal(after.image, again.image)
        assert not torch.equal(before.image, after.image)
        lost = (before.target > 0) & (after.target == 0)
        assert torch.equal(before.target[~lost], after.target[~lost]) and float(lost.float().mean()) < 0.01


def test_too_many_kinds_of_voxels_are_refused(plain: LabelMap) -> None:
    crowded = replace(plain, signal=torch.zeros(250, dtype=torch.int64))
    with pytest.raises(VolumeError, match="head: expected at most 245 kinds of voxels, got 250"):
        add_face(crowded)
