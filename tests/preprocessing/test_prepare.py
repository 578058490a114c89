"""One grid, one orientation, one scale: what ``prepare`` makes of the sequences of a case."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from pvs_model.errors import VolumeError
from pvs_model.preprocessing.prepare import prepare
from pvs_model.types import SEQUENCES
from pvs_model.volume import intensity

T1, T2, FLAIR = range(3)


@pytest.mark.parametrize("present", [p for n in (1, 2, 3) for p in itertools.combinations(SEQUENCES, n)], ids="+".join)
def test_missing_sequences_are_zeros(body: Any, present: tuple[str, ...]) -> None:
    prepared = prepare({name: body.volume(name) for name in present})
    assert prepared.image.shape == (3, *prepared.grid.shape) and prepared.image.dtype == np.float32
    for channel, name in enumerate(SEQUENCES):
        assert prepared.image[channel].any() == (name in present)
    assert prepared.reference == ("T2w" if "T2w" in present else present[0])
    assert prepared.warnings == ()


def test_channels_are_standardised_within_their_head(body: Any) -> None:
    volumes = {name: body.volume(name) for name in SEQUENCES}
    prepared = prepare(volumes)
    for channel, name in enumerate(SEQUENCES):
        head = intensity.foreground(volumes[name].data)
        np.testing.assert_array_equal(prepared.image[channel], intensity.standardise(volumes[name].data, head))
    np.testing.assert_array_equal(prepared.foreground, intensity.foreground(volumes["T2w"].data))


def test_the_order_in_which_sequences_come_does_not_matter(body: Any) -> None:
    volumes = {name: body.volume(name) for name in SEQUENCES}
    there, back = prepare(volumes), prepare(dict(reversed(volumes.items())))
    np.testing.assert_array_equal(there.image, back.image)


def test_other_grids_are_brought_onto_the_t2w(body: Any) -> None:
    tilted = {"axes": (2, 0, 1), "signs": (-1, 1, -1), "spacing_mm": (0.8, 1.3, 1.0), "tilt_deg": 15.0}
    moved = prepare({"T1w": body.volume("T1w", **tilted), "T2w": body.volume("T2w")})
    same = prepare({"T1w": body.volume("T1w"), "T2w": body.volume("T2w")})
    assert moved.grid.shape == same.grid.shape
    np.testing.assert_array_equal(moved.grid.affine, body.volume("T2w").affine)
    both = same.foreground & (moved.image[T1] != 0)
    assert both.sum() > 0.97 * same.foreground.sum()
    within = ndimage.binary_erosion(same.foreground, iterations=2)  # the rim is half air on the other grid
    assert np.corrcoef(moved.image[T1][within], same.image[T1][within])[0, 1] > 0.9
    np.testing.assert_array_equal(moved.image[T2], same.image[T2])


def test_series_that_lie_apart_are_refused_by_name(body: Any) -> None:
    away = body.volume("T1w")
    away.affine[0, 3] += 500
    with pytest.raises(VolumeError, match=r"T1w.nii.gz: expected T1w to overlap in space with T2w.nii.gz.* 0%"):
        prepare({"T1w": away, "T2w": body.volume("T2w")})


def test_series_that_overlap_in_part_are_told(body: Any) -> None:
    half = body.volume("FLAIR")
    cut = half.data.shape[2] // 2
    half = replace(half, data=np.ascontiguousarray(half.data[..., :cut]))
    prepared = prepare({"FLAIR": half, "T2w": body.volume("T2w")})
    assert len(prepared.warnings) == 1
    assert "FLAIR covers only" in prepared.warnings[0] and "T2w" in prepared.warnings[0]
    assert prepared.image[FLAIR][..., : cut - 1].any() and not prepared.image[FLAIR][..., cut + 1 :].any()


def test_a_sequence_that_is_empty_where_the_reference_lies_is_left_out(body: Any) -> None:
    flair = body.volume("FLAIR")
    data = np.zeros_like(flair.data)
    data = np.concatenate([data, np.ones_like(data)], axis=2)  # something only above the T2w's box
    prepared = prepare({"FLAIR": replace(flair, data=data), "T2w": body.volume("T2w")})
    assert not prepared.image[FLAIR].any()
    assert any("FLAIR" in warning and "left out" in warning for warning in prepared.warnings)


def test_a_mask_instead_of_a_scan_is_refused(body: Any) -> None:
    scan = body.volume("T2w")
    with pytest.raises(VolumeError, match=r"T2w.nii.gz: expected contrast within the head"):
        prepare({"T2w": replace(scan, data=(scan.data > 0).astype(np.float32))})
    flat = body.volume("T1w")
    prepared = prepare({"T1w": replace(flat, data=(flat.data > 0).astype(np.float32)), "T2w": scan})
    assert not prepared.image[T1].any() and any("T1w" in warning for warning in prepared.warnings)


def test_n4_takes_out_a_slope(body: Any) -> None:
    scan = body.volume("T2w")
    x = np.linspace(-0.5, 0.5, scan.data.shape[0], dtype=np.float32)[:, None, None]
    sloped = replace(scan, data=scan.data * np.exp(x))
    clean = prepare({"T2w": scan}).image[T2]

    def error(n4: bool) -> float:
        prepared = prepare({"T2w": sloped}, n4=n4)
        return float(np.abs(prepared.image[T2] - clean)[prepared.foreground].mean())

    assert error(n4=True) < 0.7 * error(n4=False)
