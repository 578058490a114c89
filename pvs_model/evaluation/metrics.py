"""Scores of a mask against the truth: pure functions of boolean arrays (x, y, z).

Two masks are compared once (``overlap``: one labelling of each, 26-connected); four named sets of scores are made
from what that counts. With |T|, |P| voxels and t, p clusters of truth and prediction, t' truth clusters that the
prediction touches and p' predicted clusters that touch the truth (to touch: to share a voxel):

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
set         both empty                     truth empty                     prediction empty
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

Bool = npt.NDArray[np.bool_]
Values = dict[str, float | None]

#: Clusters match one to one from this intersection over union on; a fraction, since 3 of 30 voxels are enough.
MATCH_IOU = Fraction(1, 10)
#: Surfaces agree within this distance.
SURFACE_TOLERANCE_MM = 1.0
#: What a header's rounding may add to a distance: the next voxel at 1.0000001 mm is still at 1 mm.
_ROUNDING_MM = 1e-4

#: The scores of each set, in the order in which they are shown.
SETS: dict[str, tuple[str, ...]] = {
    "official": ("dice", "avd", "avd_capped", "recall", "precision"),
    "detection": ("recall", "precision", "f1", "matched_recall", "matched_precision", "matched_f1"),
    "volume": (
        "truth_mm3",
        "predicted_mm3",
        "signed_mm3",
        "absolute_mm3",
        "symmetric_difference_mm3",
        "surface_dice_1mm",
    ),
    "voxels": ("dice", "iou", "sensitivity", "ppv"),
}

#: What a prediction that is missing gets, where it is worse than what an empty mask gets.
WORST: dict[str, Values] = {
    "official": {"dice": 0.0, "avd": 1.0, "avd_capped": 1.0, "recall": 0.0, "precision": 0.0},
    "detection": dict.fromkeys(SETS["detection"], 0.0),
    "volume": {"surface_dice_1mm": 0.0},
    "voxels": dict.fromkeys(SETS["voxels"], 0.0),
}

#: The papers' own names for the voxel scores, so that their tables can be compared.
PAPERS: Mapping[str, Mapping[str, str]] = {
    "cross_modal_graph_learning_2025": {"DICE": "dice", "IoU": "iou", "Recall": "sensitivity", "Precision": "ppv"},
    "mcpvs_net_2024": {"DICE": "dice", "Precision": "ppv", "Recall": "sensitivity"},
    "mfns_de_t2_2024": {"DSC": "dice", "SEN": "sensitivity", "PPV": "ppv"},
}


@dataclass(frozen=True)
class Overlap:
    """What two masks have and share, counted once; every score but the surface Dice follows from it.

    Attributes:
        truth_voxels, predicted_voxels, shared_voxels: numbers of voxels.
        truth_clusters, predicted_clusters: numbers of 26-connected components.
        touched_truth: truth clusters that share a voxel with the prediction.
        touching_predicted: predicted clusters that share a voxel with the truth.
        matched: pairs in the largest one-to-one matching at ``MATCH_IOU``.
    """

    truth_voxels: int
    predicted_voxels: int
    shared_voxels: int
    truth_clusters: int
    predicted_clusters: int
    touched_truth: int
    touching_predicted: int
    matched: int


def clusters(mask: Bool) -> tuple[npt.NDArray[np.int32], int]:
    """26-connected components: labels (0 = none) and their number."""
    from scipy import ndimage

    labels = np.empty(mask.shape, np.int32)
    return labels, int(ndimage.label(mask, np.ones((3, 3, 3)), output=labels))


def dice(prediction: Bool, truth: Bool) -> float:
    """2 |P and T| / (|P| + |T|); NaN when both are empty."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else float("nan")


def without_ignored(prediction: Bool, truth: Bool, ignore: Bool) -> Bool:
    """A prediction without what scores leave out: PVS so faint that neither finding nor missing them is an error.

    Clusters that touch an ignored voxel and no true one are dropped whole, as are ignored voxels of other clusters.

    Args:
        prediction, truth, ignore: bool (x, y, z).

    Example:
        >>> prediction = np.array([1, 1, 0, 1, 1]) > 0
        >>> truth, ignore = np.array([0, 0, 0, 0, 1]) > 0, np.array([0, 1, 0, 0, 0]) > 0
        >>> without_ignored(*(m.reshape(5, 1, 1) for m in (prediction, truth, ignore))).ravel().astype(int).tolist()
        [0, 0, 0, 1, 1]
    """
    labels, count = clusters(prediction)
    dropped = np.zeros(count + 1, bool)
    dropped[labels[ignore]] = True
    dropped[labels[truth]] = False
    dropped[0] = False
    kept: Bool = prediction & ~dropped[labels] & ~(ignore & ~truth)
    return kept


def overlap(prediction: Bool, truth: Bool) -> Overlap:
    """Compare two masks (x, y, z); anything but 0 is inside.

    Costs one labelling of each within the box around both, whatever the number of clusters.

    Raises:
        ValueError: when the shapes differ.
    """
    prediction, truth = _cropped(prediction, truth)
    found, predicted_clusters = clusters(prediction)
    real, truth_clusters = clusters(truth)
    both = prediction & truth
    # Each pair of clusters that share voxels as one number, so that one sort counts them all.
    pairs, shared = np.unique(real[both].astype(np.int64) * (predicted_clusters + 1) + found[both], return_counts=True)
    true, guessed = np.divmod(pairs, predicted_clusters + 1)
    union = np.bincount(real.ravel())[true] + np.bincount(found.ravel())[guessed] - shared
    close = shared * MATCH_IOU.denominator >= union * MATCH_IOU.numerator
    return Overlap(
        truth_voxels=int(truth.sum()),
        predicted_voxels=int(prediction.sum()),
        shared_voxels=int(both.sum()),
        truth_clusters=truth_clusters,
        predicted_clusters=predicted_clusters,
        touched_truth=len(np.unique(true)),
        touching_predicted=len(np.unique(guessed)),
        matched=_matched(true[close], guessed[close]),
    )


def official(o: Overlap) -> Values:
    """The challenge's scores, as its script computes them."""
    avd = _ratio(abs(o.predicted_voxels - o.truth_voxels), o.truth_voxels)
    return {
        "dice": _ratio(2 * o.shared_voxels, o.truth_voxels + o.predicted_voxels),
        "avd": avd,
        "avd_capped": 1.0 if avd is None else min(1.0, avd),
        "recall": _ratio(o.touched_truth, o.truth_clusters) or 0.0,
        "precision": _ratio(o.touched_truth, o.predicted_clusters) or 0.0,
    }


def detection(o: Overlap) -> Values:
    """Recall, precision and F1 of clusters: by touching, and matched one to one."""
    t, p = o.truth_clusters, o.predicted_clusters
    touched, touching = o.touched_truth, o.touching_predicted
    return {
        "recall": _ratio(touched, t),
        "precision": _ratio(touching, p),
        # The harmonic mean of both in whole numbers, rounded once.
        "f1": None if not t + p else _ratio(2 * touched * touching, touched * p + touching * t) or 0.0,
        "matched_recall": _ratio(o.matched, t),
        "matched_precision": _ratio(o.matched, p),
        "matched_f1": _ratio(2 * o.matched, t + p),
    }


def voxels(o: Overlap) -> Values:
    """Dice, intersection over union, sensitivity and positive predictive value of voxels."""
    return {
        "dice": _ratio(2 * o.shared_voxels, o.truth_voxels + o.predicted_voxels),
        "iou": _ratio(o.shared_voxels, o.truth_voxels + o.predicted_voxels - o.shared_voxels),
        "sensitivity": _ratio(o.shared_voxels, o.truth_voxels),
        "ppv": _ratio(o.shared_voxels, o.predicted_voxels),
    }


def volume(o: Overlap, voxel_mm3: float, surface_dice_1mm: float | None) -> Values:
    """Volumes in mm3, and the surface Dice that ``surface_dice`` gives."""
    return {
        "truth_mm3": o.truth_voxels * voxel_mm3,
        "predicted_mm3": o.predicted_voxels * voxel_mm3,
        "signed_mm3": (o.predicted_voxels - o.truth_voxels) * voxel_mm3,
        "absolute_mm3": abs(o.predicted_voxels - o.truth_voxels) * voxel_mm3,
        "symmetric_difference_mm3": (o.truth_voxels + o.predicted_voxels - 2 * o.shared_voxels) * voxel_mm3,
        "surface_dice_1mm": surface_dice_1mm,
    }


def surface_dice(
    prediction: Bool, truth: Bool, spacing_mm: tuple[float, float, float], tolerance_mm: float = SURFACE_TOLERANCE_MM
) -> float | None:
    """Normalised surface Dice: the share of surface voxels within ``tolerance_mm`` of the other mask's surface.

    A surface voxel has one of its six neighbours outside the mask; distances run between voxel centres
    (MONAI's ``compute_surface_dice``, after Nikolov et al. 2018).

    Returns:
        0 to 1; None when both masks are empty.

    Raises:
        ValueError: when the shapes differ.
    """
    prediction, truth = _cropped(prediction, truth)
    if not prediction.any() or not truth.any():
        return None if not prediction.any() and not truth.any() else 0.0
    import warnings

    import torch
    from monai.metrics import compute_surface_dice

    # A voxel of margin: what lies at the edge of the image is a surface, too.
    masks = [torch.from_numpy(np.pad(mask, 1))[None, None] for mask in (prediction, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of an option that MONAI sets itself
        found = compute_surface_dice(
            *masks, [tolerance_mm + _ROUNDING_MM], include_background=True, spacing=[float(s) for s in spacing_mm]
        )
    return float(found)


def all_sets(
    prediction: Bool, truth: Bool, spacing_mm: tuple[float, float, float]
) -> tuple[Overlap, dict[str, Values]]:
    """The counts and the four sets of scores of one pair of masks (x, y, z).

    Raises:
        ValueError: when the shapes differ.
    """
    o = overlap(prediction, truth)
    surfaces = surface_dice(prediction, truth, spacing_mm)
    return o, {
        "official": official(o),
        "detection": detection(o),
        "volume": volume(o, float(np.prod(spacing_mm)), surfaces),
        "voxels": voxels(o),
    }


def worst(truth: Bool, spacing_mm: tuple[float, float, float]) -> tuple[Overlap, dict[str, Values]]:
    """The scores of a case without a prediction: those of an empty mask, and the worst where that has no value."""
    o, sets = all_sets(np.zeros_like(truth), truth, spacing_mm)
    return o, {name: {**values, **WORST[name]} for name, values in sets.items()}


def _cropped(prediction: Bool, truth: Bool) -> tuple[Bool, Bool]:
    """Both masks as bool within the smallest box that holds them."""
    if prediction.shape != truth.shape:
        raise ValueError(f"expected equal shapes, found {prediction.shape} and {truth.shape}")
    prediction, truth = prediction != 0, truth != 0
    either = prediction | truth
    box = []
    for axis in range(either.ndim):
        inside = np.flatnonzero(either.any(tuple(other for other in range(either.ndim) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 1))
    return prediction[tuple(box)], truth[tuple(box)]


def _matched(true: npt.NDArray[np.int64], guessed: npt.NDArray[np.int64]) -> int:
    """The most pairs that can be chosen so that no cluster is in two of them."""
    if not len(true):
        return 0
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_array((np.ones(len(true), np.int8), (true, guessed)))
    return int((maximum_bipartite_matching(graph) >= 0).sum())


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
