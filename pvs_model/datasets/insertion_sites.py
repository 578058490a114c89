"""Selects voxels of a real scan into which synthetic PVS can be inserted.

A registered tissue map is off by a voxel or two in places. So the intensities of each tissue are taken from its core,
and a voxel is an insertion site only if every sequence agrees with them. CSF and lesions keep a margin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pvs_model.errors import VolumeError
from pvs_model.simulation.head import PVS_TISSUES, is_tissue
from pvs_model.types import SEQUENCES, BoolArray, Triple
from pvs_model.volume.components import FACES, filter_components

#: Maximum distance of a site's intensity from the median of its tissue, in robust deviations, in every sequence.
MAX_DEVIATIONS = 2.5
#: Minimum distance of a lesion's intensity above cortex, in deviations, in FLAIR, or in T2w without FLAIR.
LESION_DEVIATIONS = 3.0
#: Lesions of at least this volume (tumours with their oedema) get a margin of three voxels, smaller ones of one.
LARGE_LESION_MM3, LARGE_LESION_VOXELS = 1500.0, 3
MIN_LESION_MM3, MIN_SITE_MM3 = 8.0, 200.0
#: Smoothing, so that noise excludes no single voxels.
SMOOTH_MM = 0.6
MIN_VOXELS = 60


@dataclass(frozen=True)
class InsertionSites:
    """Sites and lesions of a scan.

    Attributes:
        mask: bool (x, y, z), insertion sites.
        lesions: bool (x, y, z).
        csf_intensity: Intensity of CSF in each sequence, raw units; 0 for a missing one.
    """

    mask: BoolArray
    lesions: BoolArray
    csf_intensity: Triple


def find_insertion_sites(
    images: npt.NDArray[np.float32],
    corrected: npt.NDArray[np.float32],
    present: tuple[bool, bool, bool],
    tissues: npt.NDArray[np.uint8],
    inside: BoolArray,
    voxel_mm: Triple,
) -> InsertionSites:
    """Selects the insertion sites of a scan.

    Args:
        images: (3, x, y, z), raw.
        corrected: The same without bias fields.
        present: Whether each sequence is present.
        tissues: (x, y, z), registered, index into ``TISSUES``.
        inside: (x, y, z), the brain.
        voxel_mm: Voxel spacing.

    Raises:
        VolumeError: There is no core of the ventricles or of white matter, whose signals are the scale of the contrast.
    """
    channels = [c for c in range(3) if present[c]]
    ventricles = core_of(is_tissue(tissues, "ventricle") & inside, 2)
    white = core_of(is_tissue(tissues, "white_matter") & inside, 1)
    cortex = is_tissue(tissues, "cortex") & inside
    if not ventricles.any() or not white.any():
        raise VolumeError("expected ventricles and white matter in the tissues of the scan, got none")
    t1w, t2w, flair = (float(np.median(images[c][ventricles])) if c in channels else 0.0 for c in range(3))
    sigma = [SMOOTH_MM / v for v in voxel_mm]
    smooth = {c: ndimage.gaussian_filter(corrected[c], sigma) for c in channels}

    sites = np.zeros_like(inside)
    for name in PVS_TISSUES:
        here = is_tissue(tissues, name) & inside
        core = core_of(here, 1)
        if name == "wmh" or np.count_nonzero(core) < MIN_VOXELS:
            continue
        fits = here
        for c in channels:
            middle, deviation = robust(smooth[c][core])
            fits = fits & (np.abs(smooth[c] - middle) < MAX_DEVIATIONS * deviation)
        sites |= fits

    fluid = is_tissue(tissues, "ventricle", "csf") | ~inside
    wet = inside.copy()
    for c in channels:
        water, solid = float(np.median(corrected[c][ventricles])), float(np.median(corrected[c][white]))
        wet &= np.abs(corrected[c] - water) < np.abs(corrected[c] - solid)
    lesions = find_lesions(smooth, white, cortex, inside, voxel_mm)
    near = ndimage.binary_dilation(fluid | wet, np.ones((3, 3, 3)))
    sites &= ~near & ~lesions
    return InsertionSites(remove_small_components(sites, MIN_SITE_MM3, voxel_mm), lesions, (t1w, t2w, flair))


def find_lesions(smooth: dict[int, npt.NDArray[np.float32]], white: BoolArray, cortex: BoolArray, inside: BoolArray,
                 voxel_mm: Triple) -> BoolArray:  # fmt: skip
    """Finds what is brighter than white matter and cortex in FLAIR (else in T2w, else nothing), with a margin."""
    flair, t2w = SEQUENCES.index("FLAIR"), SEQUENCES.index("T2w")
    channel = flair if flair in smooth else t2w
    if channel not in smooth:
        return np.zeros_like(inside)
    image = smooth[channel]
    limit = max(m + LESION_DEVIATIONS * d for m, d in (robust(image[white]), robust(image[cortex])))
    bright = remove_small_components(inside & (image > limit), MIN_LESION_MM3, voxel_mm)
    large = ndimage.binary_fill_holes(remove_small_components(bright, LARGE_LESION_MM3, voxel_mm))
    ball = np.ones((3, 3, 3))
    return np.asarray(
        ndimage.binary_dilation(bright, ball) | ndimage.binary_dilation(large, ball, iterations=LARGE_LESION_VOXELS)
    )


def robust(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Computes the median and the deviation of the normal distribution with the same median distance from it."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def core_of(mask: BoolArray, voxels: int) -> BoolArray:
    """Erodes a mask by up to ``voxels``, fewer if less than ``MIN_VOXELS`` would be left."""
    for depth in range(voxels, 0, -1):
        core = ndimage.binary_erosion(mask, iterations=depth)
        if np.count_nonzero(core) >= MIN_VOXELS:
            return np.asarray(core)
    return mask


def remove_small_components(mask: BoolArray, min_mm3: float, voxel_mm: Triple) -> BoolArray:
    """Removes face-connected components below a volume."""
    voxel_mm3 = float(np.prod(voxel_mm))
    return filter_components(mask, lambda sizes: sizes * voxel_mm3 >= min_mm3, FACES)
