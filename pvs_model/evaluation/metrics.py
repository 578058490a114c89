"""Scores of a predicted mask against its reference: pure functions of boolean arrays (x, y, z).

Two masks are compared once (``overlap``: one labelling of each, 26-connected); four named sets of scores follow
from its counts. With |T|, |P| voxels and t, p clusters of reference and prediction, t' reference clusters that the
prediction touches and p' predicted clusters that touch the reference (share a voxel with it):

``official``: the challenge's own (epvs_challenge_2024, Table 3 and its published script)
    dice = 2 |T and P| / (|T| + |P|); avd = ||P| - |T|| / |T|; avd_capped = min(1, avd), as in its test phase;
    recall = t' / t; precision = t' / p, which passes 1 where one predicted cluster touches several.
``detection``: of clusters
    recall = t' / t; precision = p' / p; f1 = their harmonic mean; matched_* = the same from the largest one-to-one
    matching of clusters whose intersection over union is at least 0.1.
``volume``: in mm3
    truth, predicted, signed = P - T, absolute = |P - T|, symmetric difference = |T or P| - |T and P|;
    surface_dice_1mm = share of both surfaces' voxels that lie within 1 mm of the other surface.
``voxels``: what the other three papers report (``PAPERS`` says under which names)
    dice; iou = |T and P| / |T or P|; sensitivity = |T and P| / |T|; ppv = |T and P| / |P|.

Where a mask is empty, a score is None (has no value) or a number by these rules, all of them tested:

=========== ============================== =============================== ====================================
set         both empty                     reference empty                 prediction empty
=========== ============================== =============================== ====================================
official    dice, avd None, avd_capped 1,  dice 0, avd None, avd_capped 1, all 0, avd and avd_capped 1
            recall, precision 0            recall, precision 0
detection   None                           recall None, the others 0       precision None, the others 0
volume      volumes 0, surface Dice None   surface Dice 0                  surface Dice 0
voxels      None                           sensitivity None, the others 0  ppv None, the others 0
=========== ============================== =============================== ====================================

The official column is what the challenge's script gives: 0 where it gives 0, None where it gives NaN or infinity;
its ``min(1, avd)`` is 1 for either of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pvs_model.types import BoolArray, Triple

Values = dict[str, float | None]

#: Smallest intersection over union of matching clusters; a fraction, since 3 of 30 voxels are enough.
MATCH_IOU = Fraction(1, 10)
#: Largest distance of surfaces that agree.
SURFACE_TOLERANCE_MM = 1.0
#: Tolerance of distances, as headers are rounded: a voxel at 1.0000001 mm is at 1 mm.
_ROUNDING_MM = 1e-4

#: Scores of each set, in the order of reports.
SETS: dict[str, tuple[str, ...]] = {
    "official": ("dice", "avd", "avd_capped", "recall", "precision"),
    "detection": ("recall", "precision", "f1", "matched_recall", "matched_precision", "matched_f1"),
    "volume": (
        "reference_mm3",
        "predicted_mm3",
        "signed_mm3",
        "absolute_mm3",
        "symmetric_difference_mm3",
        "surface_dice_1mm",
    ),
    "voxels": ("dice", "iou", "sensitivity", "ppv"),
}

#: Scores of a missing prediction that are worse than those of an empty mask.
PENALTY: dict[str, Values] = {
    "official": {"dice": 0.0, "avd": 1.0, "avd_capped": 1.0, "recall": 0.0, "precision": 0.0},
    "detection": dict.fromkeys(SETS["detection"], 0.0),
    "volume": {"surface_dice_1mm": 0.0},
    "voxels": dict.fromkeys(SETS["voxels"], 0.0),
}

#: Names in the papers for the voxel scores, so that their tables can be compared.
PAPERS: Mapping[str, Mapping[str, str]] = {
    "cross_modal_graph_learning_2025": {"DICE": "dice", "IoU": "iou", "Recall": "sensitivity", "Precision": "ppv"},
    "mcpvs_net_2024": {"DICE": "dice", "Precision": "ppv", "Recall": "sensitivity"},
    "mfns_de_t2_2024": {"DSC": "dice", "SEN": "sensitivity", "PPV": "ppv"},
}


@dataclass(frozen=True)
class Overlap:
    """Counts of two masks and their intersection, from which all scores but the surface Dice follow.

    Attributes:
        reference_voxels, predicted_voxels, shared_voxels: Numbers of voxels.
        reference_clusters, predicted_clusters: Numbers of 26-connected components.
        detected_reference_clusters: Detected reference clusters, which share a voxel with the prediction.
        true_positive_clusters: True-positive predicted clusters, which share a voxel with the reference.
        matched: Pairs in the largest one-to-one matching at ``MATCH_IOU``.
    """

    reference_voxels: int
    predicted_voxels: int
    shared_voxels: int
    reference_clusters: int
    predicted_clusters: int
    detected_reference_clusters: int
    true_positive_clusters: int
    matched: int


def clusters(mask: BoolArray) -> tuple[npt.NDArray[np.int32], int]:
    """Labels the 26-connected components (0 in the background) and counts them."""
    from scipy import ndimage

    labels = np.empty(mask.shape, np.int32)
    return labels, int(ndimage.label(mask, np.ones((3, 3, 3)), output=labels))


def dice(prediction: BoolArray, reference: BoolArray) -> float:
    """Computes 2 |P and T| / (|P| + |T|); NaN if both are empty."""
    total = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / total if total else float("nan")


def without_ignored(prediction: BoolArray, reference: BoolArray, ignore: BoolArray) -> BoolArray:
    """Removes PVS from a prediction that are so faint that neither detecting nor missing them is an error.

    Clusters that touch an ignored voxel and no reference voxel are removed, as are ignored voxels of other clusters.

    Args:
        prediction, reference, ignore: bool (x, y, z).

    Example:
        >>> prediction = np.array([1, 1, 0, 1, 1]) > 0
        >>> reference, ignore = np.array([0, 0, 0, 0, 1]) > 0, np.array([0, 1, 0, 0, 0]) > 0
        >>> without_ignored(*(m.reshape(5, 1, 1) for m in (prediction, reference, ignore))).ravel().astype(int).tolist()
        [0, 0, 0, 1, 1]
    """
    labels, count = clusters(prediction)
    dropped = np.zeros(count + 1, bool)
    dropped[labels[ignore]] = True
    dropped[labels[reference]] = False
    dropped[0] = False
    kept: BoolArray = prediction & ~dropped[labels] & ~(ignore & ~reference)
    return kept


def overlap(prediction: BoolArray, reference: BoolArray) -> Overlap:
    """Counts voxels and clusters of two masks (x, y, z), foreground where not 0.

    Costs one labelling of each within the box around both, for any number of clusters.

    Raises:
        ValueError: The shapes differ.
    """
    prediction, reference = _cropped(prediction, reference)
    predicted, predicted_clusters = clusters(prediction)
    actual, reference_clusters = clusters(reference)
    both = prediction & reference
    # Pairs of overlapping clusters, encoded as one number for a single sort.
    pairs, shared = np.unique(
        actual[both].astype(np.int64) * (predicted_clusters + 1) + predicted[both], return_counts=True
    )
    in_reference, in_prediction = np.divmod(pairs, predicted_clusters + 1)
    sizes = np.bincount(actual.ravel())[in_reference] + np.bincount(predicted.ravel())[in_prediction]
    union = sizes - shared
    close = shared * MATCH_IOU.denominator >= union * MATCH_IOU.numerator
    return Overlap(
        reference_voxels=int(reference.sum()),
        predicted_voxels=int(prediction.sum()),
        shared_voxels=int(both.sum()),
        reference_clusters=reference_clusters,
        predicted_clusters=predicted_clusters,
        detected_reference_clusters=len(np.unique(in_reference)),
        true_positive_clusters=len(np.unique(in_prediction)),
        matched=_matched(in_reference[close], in_prediction[close]),
    )


def official(o: Overlap) -> Values:
    """Computes the challenge's scores as its script does."""
    avd = _ratio(abs(o.predicted_voxels - o.reference_voxels), o.reference_voxels)
    return {
        "dice": _ratio(2 * o.shared_voxels, o.reference_voxels + o.predicted_voxels),
        "avd": avd,
        "avd_capped": 1.0 if avd is None else min(1.0, avd),
        "recall": _ratio(o.detected_reference_clusters, o.reference_clusters) or 0.0,
        "precision": _ratio(o.detected_reference_clusters, o.predicted_clusters) or 0.0,
    }


def detection(o: Overlap) -> Values:
    """Computes recall, precision and F1 of clusters, by overlap and by one-to-one matching."""
    t, p = o.reference_clusters, o.predicted_clusters
    touched, touching = o.detected_reference_clusters, o.true_positive_clusters
    return {
        "recall": _ratio(touched, t),
        "precision": _ratio(touching, p),
        # The harmonic mean in integers, rounded once.
        "f1": None if not t + p else _ratio(2 * touched * touching, touched * p + touching * t) or 0.0,
        "matched_recall": _ratio(o.matched, t),
        "matched_precision": _ratio(o.matched, p),
        "matched_f1": _ratio(2 * o.matched, t + p),
    }


def voxels(o: Overlap) -> Values:
    """Computes Dice, intersection over union, sensitivity and positive predictive value of voxels."""
    return {
        "dice": _ratio(2 * o.shared_voxels, o.reference_voxels + o.predicted_voxels),
        "iou": _ratio(o.shared_voxels, o.reference_voxels + o.predicted_voxels - o.shared_voxels),
        "sensitivity": _ratio(o.shared_voxels, o.reference_voxels),
        "ppv": _ratio(o.shared_voxels, o.predicted_voxels),
    }


def volume(o: Overlap, voxel_mm3: float, surface_dice_1mm: float | None) -> Values:
    """Computes volumes in mm3; also returns the given surface Dice."""
    return {
        "reference_mm3": o.reference_voxels * voxel_mm3,
        "predicted_mm3": o.predicted_voxels * voxel_mm3,
        "signed_mm3": (o.predicted_voxels - o.reference_voxels) * voxel_mm3,
        "absolute_mm3": abs(o.predicted_voxels - o.reference_voxels) * voxel_mm3,
        "symmetric_difference_mm3": (o.reference_voxels + o.predicted_voxels - 2 * o.shared_voxels) * voxel_mm3,
        "surface_dice_1mm": surface_dice_1mm,
    }


def surface_dice(
    prediction: BoolArray, reference: BoolArray, spacing_mm: Triple, tolerance_mm: float = SURFACE_TOLERANCE_MM
) -> float | None:
    """Computes the normalised surface Dice: the share of surface voxels close to the surface of the other mask.

    A surface voxel has one of its six neighbours outside the mask; distances run between voxel centres
    (MONAI's ``compute_surface_dice``, after Nikolov et al. 2018).

    Returns:
        0 to 1; None if both masks are empty.

    Raises:
        ValueError: The shapes differ.
    """
    prediction, reference = _cropped(prediction, reference)
    if not prediction.any() or not reference.any():
        return None if not prediction.any() and not reference.any() else 0.0
    import warnings

    import torch
    from monai.metrics import compute_surface_dice

    # With a margin of one voxel, the edge of the image is a surface, too.
    masks = [torch.from_numpy(np.pad(mask, 1))[None, None] for mask in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of an option that MONAI sets itself
        score = compute_surface_dice(
            *masks, [tolerance_mm + _ROUNDING_MM], include_background=True, spacing=[float(s) for s in spacing_mm]
        )
    return float(score)


def all_sets(prediction: BoolArray, reference: BoolArray, spacing_mm: Triple) -> tuple[Overlap, dict[str, Values]]:
    """Computes the counts and the four sets of scores of two masks (x, y, z).

    Raises:
        ValueError: The shapes differ.
    """
    o = overlap(prediction, reference)
    surfaces = surface_dice(prediction, reference, spacing_mm)
    return o, {
        "official": official(o),
        "detection": detection(o),
        "volume": volume(o, float(np.prod(spacing_mm)), surfaces),
        "voxels": voxels(o),
    }


def penalty_scores(reference: BoolArray, spacing_mm: Triple) -> tuple[Overlap, dict[str, Values]]:
    """Returns the scores of a missing prediction: those in ``PENALTY``, and for the others those of an empty mask."""
    o, sets = all_sets(np.zeros_like(reference), reference, spacing_mm)
    return o, {name: {**values, **PENALTY[name]} for name, values in sets.items()}


def _cropped(prediction: BoolArray, reference: BoolArray) -> tuple[BoolArray, BoolArray]:
    """Crops both masks to their common bounding box, as bool."""
    if prediction.shape != reference.shape:
        raise ValueError(f"expected equal shapes, got {prediction.shape} and {reference.shape}")
    prediction, reference = prediction != 0, reference != 0
    either = prediction | reference
    box = []
    for axis in range(either.ndim):
        inside = np.flatnonzero(either.any(tuple(other for other in range(either.ndim) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 1))
    return prediction[tuple(box)], reference[tuple(box)]


def _matched(reference: npt.NDArray[np.int64], prediction: npt.NDArray[np.int64]) -> int:
    """Returns the size of the largest one-to-one matching of pairs of cluster labels."""
    if not len(reference):
        return 0
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_array((np.ones(len(reference), np.int8), (reference, prediction)))
    return int((maximum_bipartite_matching(graph) >= 0).sum())


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
