"""Scores of a mask against the truth: pure functions of boolean arrays (x, y, z)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Voxel-wise Dice, and cluster-wise recall and precision (26-connected; a cluster counts when it touches).

    ``recall`` = truth clusters touched by the prediction / truth clusters; ``precision`` = predicted
    clusters that touch the truth / predicted clusters. Each is NaN where its denominator is 0.
    """

    dice: float
    recall: float
    precision: float
    truth_clusters: int
    predicted_clusters: int
    truth_voxels: int
    predicted_voxels: int
    found_clusters: int  # truth clusters that the prediction touches

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision; NaN where either is."""
        total = self.recall + self.precision
        return 2 * self.recall * self.precision / total if total else total

    @property
    def challenge_precision(self) -> float:
        """The challenge's own (Table 3): truth clusters that are touched / predicted clusters. It can pass 1."""
        return self.found_clusters / self.predicted_clusters if self.predicted_clusters else float("nan")

    @property
    def volume_difference(self) -> float:
        """The challenge's AVD (Table 3): min(1, ||P| - |G|| / |G|); NaN without truth."""
        if not self.truth_voxels:
            return float("nan")
        return min(1.0, abs(self.predicted_voxels - self.truth_voxels) / self.truth_voxels)


def dice(prediction: Bool, truth: Bool) -> float:
    """2 |P and G| / (|P| + |G|); NaN when both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else float("nan")


def clusters(mask: Bool) -> tuple[npt.NDArray[np.int32], int]:
    """26-connected components: labels (0 = none) and their number."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return labels.astype(np.int32), int(count)


def scores(prediction: Bool, truth: Bool) -> Scores:
    """All scores of one case.

    Raises:
        ValueError: when the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"expected equal shapes, found {prediction.shape} and {truth.shape}")
    prediction, truth = prediction.astype(bool), truth.astype(bool)
    found, predicted = clusters(prediction)
    real, true = clusters(truth)
    both = prediction & truth
    touched_truth = len(np.unique(real[both]))
    touching = len(np.unique(found[both]))
    return Scores(
        dice=dice(prediction, truth),
        recall=touched_truth / true if true else float("nan"),
        precision=touching / predicted if predicted else float("nan"),
        truth_clusters=true,
        predicted_clusters=predicted,
        truth_voxels=int(truth.sum()),
        predicted_voxels=int(prediction.sum()),
        found_clusters=touched_truth,
    )
