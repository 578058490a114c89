"""Recall by diameter and calibration, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pvs_model.training.validation import score


def target_of(label: list[float], ignore: list[float], diameter: list[float] | None = None) -> torch.Tensor:
    rows = [label, ignore, [0.0] * len(label)] + ([diameter] if diameter else [])
    return torch.tensor(rows)[None]


def test_recall_by_diameter_by_hand() -> None:
    probability = torch.tensor([[[0.9, 0.4, 0.6, 0.2, 0.9, 0.9]]])
    target = target_of([1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1], [0.6, 0.7, 1.0, 1.4, 2.0, 0.6])
    scores = score([probability, probability], [target, target])
    assert (scores.recall_thin, scores.recall_wide) == (0.5, 0.5), "the ignored voxel does not count"
    single = score([probability], [target_of([1, 1, 1, 1, 0, 1], [0] * 6)])
    assert math.isnan(single.recall_thin) and math.isnan(single.recall_wide), "diameters are not known"


def test_calibration_by_hand() -> None:
    probability = torch.tensor([[[0.01, 0.55, 0.58, 0.95]]])
    scores = score([probability], [target_of([0, 1, 0, 1], [0] * 4)])
    # Bins 0.5 to 0.6: sum of probabilities 1.13, one labelled; 0.9 to 1: 0.95, one labelled; 3 voxels.
    assert scores.calibration_error == pytest.approx((0.13 + 0.05) / 3, abs=1e-6)
    assert scores.predicted_volume == pytest.approx(2.09 / 2, abs=1e-6)


def test_calibrated_probabilities_have_no_error() -> None:
    generator = torch.Generator().manual_seed(1)
    probability = torch.rand(1, 1, 200_000, generator=generator) ** 3
    label = (torch.rand(1, 200_000, generator=generator) < probability[0]).float()
    target = torch.stack([label[0], torch.zeros(200_000), torch.zeros(200_000)])[None]
    right, wrong = score([probability], [target]), score([probability**0.5], [target])
    assert right.calibration_error < 0.01 < 0.1 < wrong.calibration_error
    assert right.predicted_volume == pytest.approx(1, abs=0.02)
