"""Removes components of a mask whose signal in T2w or FLAIR is not that of a perivascular space."""

from __future__ import annotations

import numpy as np

from pvs_model.types import SEQUENCES, BoolArray, FloatArray, Mask, Triple
from pvs_model.volume.components import label_components
from pvs_model.volume.geometry import dilate_mm

#: Contrast to the surroundings that a PVS has at least in T2w, and at most in FLAIR, in units of the noise; chosen on
#: held-out simulated heads (docs/method.md).
MIN_T2W, MAX_FLAIR = 0.0, 1.5
#: Distance up to which tissue counts as surroundings, and distance of the voxels whose difference gives the noise, mm.
SURROUNDINGS_MM, NOISE_LAG_MM = 2.5, 2.0
#: Fraction of a component's highest probability that the voxels reach by which its signal is measured.
CORE = 0.7
#: Fewest voxels of surroundings; a sequence with fewer decides nothing.
MIN_SURROUNDINGS = 8


def remove_components_unlike_csf(
    mask: Mask, probability: FloatArray, images: FloatArray, tissue: BoolArray, spacing_mm: Triple
) -> tuple[Mask, int]:
    """Removes components that are darker than the tissue around them in T2w, or brighter in FLAIR.

    PVS have the signal of CSF in all sequences (STRIVE-2). Vessels with flow are dark in FLAIR as PVS are, but also
    in T2w; lesions are bright in T2w as PVS are, but also in FLAIR. For voxels below 2.5 mm: in thick slices, which mix
    a PVS with what lies above and below, the rule removes more PVS than false positives.

    Args:
        mask: uint8 (x, y, z), 0 and 1.
        probability: (x, y, z), 0 to 1.
        images: (3, x, y, z), T1w, T2w, FLAIR in any scale; 0 where a sequence is missing or has no data, which decides
            nothing.
        tissue: bool (x, y, z), where PVS can be.
        spacing_mm: Voxel spacing.

    Returns:
        The remaining mask, and the number of 26-connected components that were removed.

    Example:
        >>> images, mask = np.zeros((3, 9, 9, 9), np.float32), np.zeros((9, 9, 9), np.uint8)
        >>> images[1:] = np.random.default_rng(0).normal(size=(9, 9, 9))  # T2w and FLAIR
        >>> mask[4, 4, 4], images[:, 4, 4, 4] = 1, 9  # bright in both: a lesion
        >>> remove_components_unlike_csf(mask, mask.astype(float), images, np.ones(mask.shape, bool), (1, 1, 1))[1]
        1
    """
    from scipy import ndimage

    rules = [
        (image, sign, limit * noise)
        for name, sign, limit in (("T2w", -1, -MIN_T2W), ("FLAIR", 1, MAX_FLAIR))
        if (noise := noise_of(image := images[SEQUENCES.index(name)], tissue & (image != 0), spacing_mm)) > 0
    ]
    labels, sizes = label_components(mask)
    near_any = ndimage.binary_dilation(mask, np.ones((3, 3, 3), bool))
    reach = [max(1, round(SURROUNDINGS_MM / step)) for step in spacing_mm]
    keep = np.ones(len(sizes), bool)
    keep[0] = False
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        around = tuple(slice(max(0, part.start - n), part.stop + n) for part, n in zip(box, reach, strict=True))
        near = dilate_mm(labels[around] == number, SURROUNDINGS_MM, spacing_mm)
        surroundings = near & tissue[around] & ~near_any[around]
        inside = np.where(labels[around] == number, probability[around], 0)
        core = inside >= CORE * inside.max()
        for image, sign, limit in rules:
            signal = image[around]
            known = signal != 0
            if (core & ~known).any() or np.count_nonzero(surroundings & known) < MIN_SURROUNDINGS:
                continue  # the sequence does not cover it
            contrast = signal[core].mean() - np.median(signal[surroundings & known])
            keep[number] &= sign * contrast <= limit
    return keep[labels].astype(np.uint8), int(len(sizes) - 1 - keep.sum())


def noise_of(image: FloatArray, tissue: BoolArray, spacing_mm: Triple) -> float:
    """Robust standard deviation of the noise: from the differences of voxels of tissue ``NOISE_LAG_MM`` apart.

    Neighbouring voxels of interpolated images are too alike, and so are more distant ones across thick slices: of the
    three axes, that with the largest differences counts.

    Args:
        image: (x, y, z), in any scale.
        tissue: bool (x, y, z).
        spacing_mm: Voxel spacing.

    Returns:
        The deviation in the image's scale; 0 where most differences are equal, or without voxels at that distance.
    """
    deviations = [0.0]
    for axis, step in enumerate(spacing_mm):
        lag, values, inside = (
            max(1, round(NOISE_LAG_MM / step)),
            np.moveaxis(image, axis, 0),
            np.moveaxis(tissue, axis, 0),
        )
        differences = (values[lag:] - values[:-lag])[inside[lag:] & inside[:-lag]]
        if differences.size:
            deviations.append(1.4826 * np.median(np.abs(differences - np.median(differences))) / np.sqrt(2))
    return float(max(deviations))
