"""Acquisition: signals of pure tissue, missing sequences, normalisation as at inference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scenes import clean_scan

from pvs_model.simulation.acquisition import Scan, acquire, standardise
from pvs_model.simulation.head import tissue_ids
from pvs_model.simulation.render import Scene
from pvs_model.volume import intensity


def test_a_perfect_scan_is_fractions_times_signals(full: Scene) -> None:
    perfect = clean_scan(
        skull_stripped=False, texture=(0.0,) * 3, fine_texture=(0.0,) * 3, psf=((0.0,) * 3,) * 3,
        shift=((0.0,) * 3,) * 3, bias=(0.0,) * 3, noise=(0.0,) * 3,
    )  # fmt: skip
    taken = acquire(full, perfect)
    expected = torch.einsum("ck,kxyz->cxyz", torch.tensor(perfect.signals), full.fractions.float() / 255)
    torch.testing.assert_close(taken.images, expected, rtol=0, atol=1e-5)
    assert taken.foreground.all()


def test_missing_sequences_and_stripped_skulls_are_zero(whole_brain: Scene) -> None:
    taken = acquire(whole_brain, clean_scan(present=(True, False, True)))
    assert not taken.images[1].any() and taken.images[0].any() and taken.images[2].any()
    outside = ~taken.foreground
    assert outside.any() and not taken.images[:, outside].any()
    z = standardise(taken, whole_brain)
    assert not z[1].any() and not z[:, outside].any() and z.isfinite().all()
    assert float(z.min()) >= -4 and float(z.max()) <= 8


def run_time(scan: Scan) -> npt.NDArray[np.float32]:
    """Standardised as the container would."""
    images = [channel.numpy() * np.float32(600) for channel in scan.images]
    return np.stack([intensity.standardise(image, intensity.foreground(image)) for image in images])


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_training_and_running_standardise_alike(whole_brain: Scene, seed: int) -> None:
    # Training uses the histogram of the head's tissues. Blur and partial volume narrow that of the image, so contrast
    # is up to a half larger at inference (T2w of this small head, whose CSF is mostly one voxel thick). The networks'
    # instance normalisation removes a scale, but not a shift.
    scan = acquire(whole_brain, clean_scan(seed))
    trained, run = standardise(scan, whole_brain).numpy(), run_time(scan)
    brain = (whole_brain.fractions[tissue_ids("white_matter", "cortex", "ventricle")] > 230).any(0).numpy()
    for channel in range(3):
        slope, offset = np.polyfit(run[channel][brain], trained[channel][brain], 1)
        assert 0.65 < slope < 1.1 and abs(offset) < 0.3
        assert np.corrcoef(run[channel][brain], trained[channel][brain])[0, 1] > 0.99
