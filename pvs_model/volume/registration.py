"""Checks the alignment of two images and optionally corrects it by rigid registration.

Agreement is the normalised mutual information of Studholme (1999), doi:10.1016/S0031-3203(98)00091-0, which is valid
for any two contrasts and for partial overlap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pvs_model.types import Affine, BoolArray, Float64Array, FloatArray, Grid, Volume
from pvs_model.volume import geometry
from pvs_model.volume.itk import itk_geometry, one_itk_thread, to_itk

#: Spacing of the comparison, mm: sufficient for gross shifts, at a cost of seconds.
GRID_MM = 4.0
#: Translations and rotations at which the agreement is compared.
SHIFT_MM, TURN_DEG = 8.0, 10.0
#: Smallest relative gain of (agreement - 1) for a warning, and for a registration to be accepted.
MIN_GAIN = 0.05
#: Largest displacement of an accepted registration, mm.
MAX_DISPLACEMENT_MM = 80.0
_BINS = 32
#: Smallest overlap, relative to the smaller image, for which the agreement is computed.
_MIN_OVERLAP = 0.2


@dataclass(frozen=True)
class Alignment:
    """Agreement of two images at their position and at displaced ones.

    Attributes:
        agreement: Normalised mutual information, 1 (none) to 2; nan if they hardly overlap.
        best: Highest value over all positions, ``agreement`` included.
        displacement: Description of the best displacement, such as "moved 8 mm left"; empty if none is better.
    """

    agreement: float
    best: float
    displacement: str = ""

    @property
    def misaligned(self) -> bool:
        """Whether a displaced position agrees so much better that the images cannot be registered."""
        return self.best - 1 > (1 + MIN_GAIN) * (self.agreement - 1) and bool(self.displacement)


@dataclass(frozen=True)
class RigidFit:
    """Result of a rigid registration.

    Attributes:
        transform: (4, 4), maps points of the moving image to the fixed image, mm RAS+.
        before, after: Agreement before and after registration.
        displacement_mm: Largest displacement of a corner of the moving image.
    """

    transform: Affine
    before: float
    after: float
    displacement_mm: float

    @property
    def accepted(self) -> bool:
        """Whether the registration improves the agreement by a plausible displacement."""
        return self.after - 1 > (1 + MIN_GAIN) * (self.before - 1) and self.displacement_mm <= MAX_DISPLACEMENT_MM


def agreement(a: FloatArray, b: FloatArray) -> float:
    """Computes the normalised mutual information (H(a) + H(b)) / H(a, b), 1 to 2.

    Args:
        a, b: Intensities (n,) at the same points; clipped to their 1st and 99th percentile, in 32 bins.

    Returns:
        The agreement; 1 if either is constant.
    """
    counts, _, _ = np.histogram2d(_binned(a), _binned(b), bins=_BINS, range=[[0, _BINS], [0, _BINS]])

    def entropy(p: Float64Array) -> float:
        p = p[p > 0] / p.sum()
        return float(-(p * np.log(p)).sum())

    both = entropy(counts.ravel())
    return (entropy(counts.sum(0)) + entropy(counts.sum(1))) / both if both > 0 else 1.0


def _binned(values: FloatArray) -> FloatArray:
    low, high = np.percentile(values, (1, 99))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) / max(high - low, 1e-30)
    return np.asarray(np.clip(scaled * _BINS, 0, _BINS - 0.5))


def check_alignment(fixed: Volume, moving: Volume) -> Alignment:
    """Compares the agreement of two images with that after translations by ``SHIFT_MM`` and rotations by ``TURN_DEG``.

    Registered images agree best at their position for any contrasts. No threshold on the agreement itself is needed,
    which depends on contrast and noise.

    Args:
        fixed, moving: Images on any grids, positioned by their affines.
    """
    grid, fixed_data, head = _coarse(fixed)
    if not head.any():
        return Alignment(math.nan, math.nan)
    small = geometry.block_average(moving, _factors(moving))
    centre = grid.affine[:3, :3] @ np.argwhere(head).mean(0) + grid.affine[:3, 3]
    current = _agreement_at(fixed_data, small, grid, np.eye(4))
    if math.isnan(current):
        return Alignment(current, current)
    best, displacement = current, ""
    for transform, description in _displacements(centre):
        value = _agreement_at(fixed_data, small, grid, transform)
        if value > best:
            best, displacement = value, description
    return Alignment(current, best, displacement)


def register(fixed: Volume, moving: Volume) -> RigidFit:
    """Registers one image rigidly to another with SimpleITK; deterministic.

    Mattes mutual information at three resolutions, initialised by the affines of the images.

    Raises:
        RuntimeError: The images do not overlap.
    """
    import SimpleITK

    sitk: Any = SimpleITK
    grid, fixed_data, _ = _coarse(fixed)
    small = geometry.block_average(moving, _factors(moving))
    before = _agreement_at(fixed_data, small, grid, np.eye(4))
    finer = [geometry.block_average(volume, _factors(volume, 2.0)) for volume in (fixed, moving)]
    fixed_image, moving_image = (to_itk(volume.data, itk_geometry(volume.affine)) for volume in finer)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.3, 1)  # with a fixed seed
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=150, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 1.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    start = sitk.Euler3DTransform()
    middle = [(n - 1) / 2 for n in fixed_image.GetSize()]
    start.SetCenter(fixed_image.TransformContinuousIndexToPhysicalPoint(middle))
    method.SetInitialTransform(start, inPlace=True)
    with one_itk_thread():  # the metric only respects the global number of threads
        method.Execute(fixed_image, moving_image)
    # SimpleITK maps points of the fixed image to the moving one, in LPS+.
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    pull = np.eye(4)
    pull[:3, :3] = np.array(start.GetMatrix()).reshape(3, 3)
    centre = np.array(start.GetCenter())
    pull[:3, 3] = np.array(start.GetTranslation()) + centre - pull[:3, :3] @ centre
    transform = np.asarray(np.linalg.inv(flip @ pull @ flip), np.float64)
    after = _agreement_at(fixed_data, small, grid, transform)
    return RigidFit(transform, before, after, _largest_displacement(transform, moving.grid))


def transformed(volume: Volume, transform: Affine) -> Volume:
    """Moves a volume in space by changing its affine, without resampling."""
    return Volume(volume.data, transform @ volume.affine, volume.source)


def _coarse(volume: Volume) -> tuple[Grid, FloatArray, BoolArray]:
    """Averages a volume to about ``GRID_MM`` and segments its head."""
    from pvs_model.volume import intensity

    small = geometry.block_average(volume, _factors(volume))
    return small.grid, small.data, intensity.foreground(small.data)


def _factors(volume: Volume, spacing_mm: float = GRID_MM) -> list[int]:
    return [
        max(1, min(int(spacing_mm / s + 0.01), n // 4))
        for s, n in zip(volume.spacing_mm, volume.data.shape, strict=True)
    ]


def _agreement_at(fixed_data: FloatArray, moving: Volume, grid: Grid, transform: Affine) -> float:
    """Computes the agreement over the overlap of both images; nan if that is too small."""
    from scipy import ndimage

    index = np.linalg.inv(transform @ moving.affine) @ grid.affine
    values = ndimage.affine_transform(
        moving.data, index[:3, :3], offset=index[:3, 3], output_shape=grid.shape, order=1, cval=np.nan,
        output=np.float32,
    )  # fmt: skip
    common = ~np.isnan(values)
    voxel_mm3 = [abs(float(np.linalg.det(a[:3, :3]))) for a in (grid.affine, moving.affine)]
    smaller = min(fixed_data.size, moving.data.size * voxel_mm3[1] / voxel_mm3[0])
    if common.sum() < max(1000.0, _MIN_OVERLAP * smaller):
        return math.nan
    return agreement(fixed_data[common], values[common])


def _displacements(centre: FloatArray) -> Iterator[tuple[Affine, str]]:
    """Yields translations along and rotations about each axis in both directions, and their descriptions."""
    ways = (("right", "left"), ("forwards", "backwards"), ("up", "down"))
    for axis, sign in itertools.product(range(3), (0, 1)):
        shift = np.eye(4)
        shift[axis, 3] = SHIFT_MM * (1 - 2 * sign)
        yield shift, f"moved {SHIFT_MM:g} mm {ways[axis][sign]}"
    for axis, sign in itertools.product(range(3), (0, 1)):
        angle = math.radians(TURN_DEG) * (1 - 2 * sign)
        turn = np.eye(4)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        turn[:3, 3] = centre - turn[:3, :3] @ centre
        about = ("left to right", "back to front", "foot to head")[axis]
        yield turn, f"turned by {TURN_DEG:g} degrees about the axis from {about}"


def _largest_displacement(transform: Affine, grid: Grid) -> float:
    points = geometry.corners_of([0] * 3, np.array(grid.shape) - 1) @ grid.affine.T
    return float(np.linalg.norm((points @ transform.T - points)[:, :3], axis=1).max())


@dataclass(frozen=True)
class SymmetricFit:
    """Rigid registration of two images that treats both alike.

    Attributes:
        transform: (4, 4), maps points of the moving image to the fixed image, mm RAS+.
        disagreement_mm: Largest distance, over the corners of the moving image, between the two registrations that it
            is the mean of: an estimate of the error.
    """

    transform: Affine
    disagreement_mm: float


def register_symmetric(fixed: Volume, moving: Volume) -> SymmetricFit:
    """Registers two images rigidly in both directions and returns the transform in the middle.

    Raises:
        RuntimeError: The images do not overlap.
    """
    from scipy.linalg import expm, logm

    forwards = register(fixed, moving).transform
    backwards = np.linalg.inv(register(moving, fixed).transform)
    half = np.real(expm(np.real(logm(np.linalg.inv(forwards) @ backwards)) / 2))
    difference = _largest_displacement(np.linalg.inv(forwards) @ backwards, moving.grid)
    return SymmetricFit(np.asarray(forwards @ half, np.float64), difference)
