"""Where windows lie, and how their maps are joined."""

from __future__ import annotations

import itertools

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from pvs_model.inference.windows import join_windows, starts, windows


@pytest.mark.parametrize(
    ("length", "overlap", "expected"),
    # Two windows of 64 reach 128 voxels, or 120 with an overlap of an eighth; 64 + 48 k with one of a quarter.
    [
        (40, 0.25, [0]),
        (64, 0.0, [0]),
        (65, 0.0, [0, 1]),
        (128, 0.0, [0, 64]),
        (129, 0.0, [0, 32, 65]),
        (120, 0.125, [0, 56]),
        (160, 0.25, [0, 48, 96]),
        (161, 0.25, [0, 32, 64, 97]),
    ],
)
def test_the_fewest_windows_evenly_spaced(length: int, overlap: float, expected: list[int]) -> None:
    assert starts(length, 64, overlap) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.125, 0.25, 0.5])
def test_neighbours_overlap_by_at_least_what_is_asked_and_reach_the_end(overlap: float) -> None:
    for length in range(65, 300):
        first = starts(length, 64, overlap)
        assert first[0] == 0 and first[-1] == length - 64
        assert all(0 < b - a <= 64 * (1 - overlap) for a, b in itertools.pairwise(first))


def test_windows_without_anything_to_search_are_left_out() -> None:
    searched = torch.zeros(64, 16, 8, dtype=torch.bool)
    searched[5, 3, 2] = searched[40, 15, 7] = True
    boxes = windows((64, 16, 8), (16, 16, 1), 0.0, searched)
    assert boxes == [
        (slice(0, 16), slice(0, 16), slice(2, 3)),
        (slice(32, 48), slice(0, 16), slice(7, 8)),
    ]
    image = torch.ones(1, 64, 16, 8)
    maps = join_windows(image, (16, 16, 1), boxes, lambda batch: batch.expand(-1, 2, -1, -1, -1), batch_size=3)
    assert maps.shape == (2, 64, 16, 8)
    assert float(maps.sum()) == 2 * 2 * 16 * 16  # 0 where no window lies
    assert bool((maps[:, searched] == 1).all())


def test_windows_join_as_those_of_monai() -> None:
    # 16 + 2 * 12 voxels: with an overlap of a quarter both place windows in steps of 12.
    image = torch.randn(1, 40, 16, 28, generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(16.0)[:, None, None]

    def predict(batch: Tensor) -> Tensor:
        return batch * ramp  # depends on the place within the window

    expected = SlidingWindowInferer(roi_size=16, overlap=0.25, mode="gaussian")(image[None], predict)
    joined = join_windows(image, (16, 16, 16), windows(image.shape[1:], (16,) * 3, 0.25), predict)
    torch.testing.assert_close(joined[None], expected, rtol=1e-4, atol=1e-4)
