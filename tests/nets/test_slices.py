"""Stacks of neighbouring slices."""

from __future__ import annotations

import pytest
import torch

from pvs_model.nets.slices import stack_slices


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_stacked_slices_against_a_loop(neighbours: int) -> None:
    volume = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    stacked = stack_slices(volume, neighbours)
    assert stacked.shape == (6, 3 * neighbours, 4, 5)
    for z in range(6):
        for c in range(3):
            for k in range(neighbours):
                source = min(max(z + k - neighbours // 2, 0), 5)
                assert torch.equal(stacked[z, c * neighbours + k], volume[c, :, :, source])
