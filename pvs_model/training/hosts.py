"""Where PVS may be put in a real scan: tissue that a registered map says is there, and that looks the part.

A registered map is a voxel or two off in places. So each tissue's own intensities are taken from its core,
and a voxel is a host only where every sequence agrees with them; CSF and lesions keep a distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pvs_model.synth.anatomy import PVS_HOSTS, is_tissue
from pvs_model.synth.params import Triple
from pvs_model.types import SEQUENCES

Bool = npt.NDArray[np.bool_]

#: A host lies within so many robust deviations of its tissue's median, in every sequence.
MOST_DEVIATIONS = 2.5
#: A lesion is brighter than cortex by so many deviations, in FLAIR, or in T2w where there is no FLAIR.
LESION_DEVIATIONS = 3.0
#: Lesions of this volume and above (tumours with their oedema) keep three voxels' distance, smaller ones one.
LARGE_LESION_MM3, LARGE_LESION_VOXELS = 1500.0, 3
SMALLEST_LESION_MM3, SMALLEST_HOST_MM3 = 8.0, 200.0
SMOOTH_MM = 0.6  # what noise does to single voxels is no reason to leave them out
LEAST_VOXELS = 60


@dataclass(frozen=True)
class Found:
    """Masks (x, y, z) and the intensity of CSF in each sequence (raw units; 0 where it is missing)."""

    hosts: Bool
    lesions: Bool
    fluid: Triple


def find_hosts(images: npt.NDArray[np.float32], corrected: npt.NDArray[np.float32], present: tuple[bool, bool, bool],
               tissues: npt.NDArray[np.uint8], inside: Bool, voxel_mm: Triple) -> Found:  # fmt: skip
    """Hosts, lesions and CSF of a scan.

    Args:
        images: (3, x, y, z), raw.
        corrected: the same without their bias fields.
        present: which sequences there are.
        tissues: (x, y, z), registered, index into ``TISSUES``.
        inside: (x, y, z), the brain.
        voxel_mm: spacing.
    """
    channels = [c for c in range(3) if present[c]]
    ventricles = core_of(is_tissue(tissues, "ventricle") & inside, 2)
    white = core_of(is_tissue(tissues, "white_matter") & inside, 1)
    cortex = is_tissue(tissues, "cortex") & inside
    t1w, t2w, flair = (float(np.median(images[c][ventricles])) if c in channels else 0.0 for c in range(3))
    sigma = [SMOOTH_MM / v for v in voxel_mm]
    smooth = {c: ndimage.gaussian_filter(corrected[c], sigma) for c in channels}

    hosts = np.zeros_like(inside)
    for name in PVS_HOSTS:
        here = is_tissue(tissues, name) & inside
        core = core_of(here, 1)
        if name == "wmh" or np.count_nonzero(core) < LEAST_VOXELS:
            continue
        fits = here
        for c in channels:
            middle, deviation = robust(smooth[c][core])
            fits = fits & (np.abs(smooth[c] - middle) < MOST_DEVIATIONS * deviation)
        hosts |= fits

    fluid = is_tissue(tissues, "ventricle", "csf") | ~inside
    wet = inside.copy()
    for c in channels:
        water, solid = float(np.median(corrected[c][ventricles])), float(np.median(corrected[c][white]))
        wet &= np.abs(corrected[c] - water) < np.abs(corrected[c] - solid)
    lesions = find_lesions(smooth, white, cortex, inside, voxel_mm)
    near = ndimage.binary_dilation(fluid | wet, np.ones((3, 3, 3)))
    hosts &= ~near & ~lesions
    return Found(without_small(hosts, SMALLEST_HOST_MM3, voxel_mm), lesions, (t1w, t2w, flair))


def find_lesions(smooth: dict[int, npt.NDArray[np.float32]], white: Bool, cortex: Bool, inside: Bool,
                 voxel_mm: Triple) -> Bool:  # fmt: skip
    """What is brighter than white matter and cortex in FLAIR (else in T2w, else nothing), with a margin."""
    flair, t2w = SEQUENCES.index("FLAIR"), SEQUENCES.index("T2w")
    channel = flair if flair in smooth else t2w
    if channel not in smooth:
        return np.zeros_like(inside)
    image = smooth[channel]
    limit = max(m + LESION_DEVIATIONS * d for m, d in (robust(image[white]), robust(image[cortex])))
    bright = without_small(inside & (image > limit), SMALLEST_LESION_MM3, voxel_mm)
    large = ndimage.binary_fill_holes(without_small(bright, LARGE_LESION_MM3, voxel_mm))
    ball = np.ones((3, 3, 3))
    return np.asarray(
        ndimage.binary_dilation(bright, ball) | ndimage.binary_dilation(large, ball, iterations=LARGE_LESION_VOXELS)
    )


def robust(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Median, and the deviation that the median distance from it stands for in a normal distribution."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def core_of(mask: Bool, voxels: int) -> Bool:
    """A mask eroded by up to so many voxels, fewer where next to nothing would be left."""
    for depth in range(voxels, 0, -1):
        core = ndimage.binary_erosion(mask, iterations=depth)
        if np.count_nonzero(core) >= LEAST_VOXELS:
            return np.asarray(core)
    return mask


def without_small(mask: Bool, least_mm3: float, voxel_mm: Triple) -> Bool:
    """A mask without its components (by faces) below a volume."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel()) * float(np.prod(voxel_mm))
    keep = sizes >= least_mm3
    keep[0] = False
    return np.asarray(keep[labels])
