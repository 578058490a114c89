"""Do the sequences of a case lie on each other? Measured, told when they do not, and mended on request.

Agreement is the normalised mutual information of Studholme (1999), doi:10.1016/S0031-3203(98)00091-0, which holds
between any two contrasts and whatever part of the other image a scan covers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.types import Affine, FloatArray, Grid, Volume
from pvs_model.volume import geometry

#: Grid of the comparison, mm: gross shifts are asked for, and a case has seconds, not minutes.
GRID_MM = 4.0
#: How far an image is moved to see whether it fits better elsewhere.
SHIFT_MM, TURN_DEG = 8.0, 10.0
#: Agreement (1 to 2) must grow by this share of what lies above 1 before a warning is given, or a fit kept.
GAIN = 0.05
#: A fit that moves the head further than this, mm, has lost it.
FARTHEST_MM = 80.0
_BINS = 32
#: Of the smaller image's box: with less in common nothing is compared.
_LEAST_COMMON = 0.2


@dataclass(frozen=True)
class Alignment:
    """How well two images agree.

    Attributes:
        agreement: normalised mutual information where they are, 1 (none) to 2; nan where hardly anything is common.
        best: the highest over the moves that were tried, ``agreement`` itself included.
        moved: that move in words; empty where none is better.
    """

    agreement: float
    best: float
    moved: str = ""

    @property
    def gross(self) -> bool:
        """Whether another place is so much better that the images cannot be registered."""
        return self.best - 1 > (1 + GAIN) * (self.agreement - 1) and bool(self.moved)


@dataclass(frozen=True)
class Fit:
    """A rigid fit: ``transform`` (4, 4) takes points of the moving image, mm RAS+, to where they belong."""

    transform: Affine
    before: float
    after: float
    moved_mm: float

    @property
    def helps(self) -> bool:
        """Whether it is to be kept."""
        return self.after - 1 > (1 + GAIN) * (self.before - 1) and self.moved_mm <= FARTHEST_MM


def agreement(a: FloatArray, b: FloatArray) -> float:
    """Normalised mutual information of two lists of values, (H(a) + H(b)) / H(a, b), 1 to 2.

    Args:
        a, b: (n,), values at the same places. Clipped to their 1st and 99th percentile, in 32 bins.

    Returns:
        1 where either has one value everywhere.
    """
    counts, _, _ = np.histogram2d(_binned(a), _binned(b), bins=_BINS, range=[[0, _BINS], [0, _BINS]])

    def entropy(p: npt.NDArray[np.float64]) -> float:
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


def check(reference: Volume, moving: Volume) -> Alignment:
    """Whether an image would fit another better if it were moved by ``SHIFT_MM`` or turned by ``TURN_DEG``.

    Two registered images agree best where they are, whatever their contrasts: so no threshold on agreement itself is
    needed, which depends on contrast and noise.

    Args:
        reference, moving: any grids and orientations; their affines say where they are.
    """
    grid, still, head = _compared(reference)
    if not head.any():
        return Alignment(math.nan, math.nan)
    small = geometry.averaged(moving, _factors(moving))
    middle = grid.affine[:3, :3] @ np.argwhere(head).mean(0) + grid.affine[:3, 3]
    here = _agreement_at(still, small, grid, np.eye(4))
    if math.isnan(here):
        return Alignment(here, here)
    best, words = here, ""
    for transform, told in _moves(middle):
        there = _agreement_at(still, small, grid, transform)
        if there > best:
            best, words = there, told
    return Alignment(here, best, words)


def register(reference: Volume, moving: Volume) -> Fit:
    """A rigid fit of one image to another by SimpleITK; the same result twice.

    Mattes mutual information, three resolutions, from where the headers place the images.

    Raises:
        RuntimeError: the images have nothing in common to start from.
    """
    import SimpleITK

    sitk: Any = SimpleITK
    grid, still, _ = _compared(reference)
    small = geometry.averaged(moving, _factors(moving))
    before = _agreement_at(still, small, grid, np.eye(4))
    fixed = _image(geometry.averaged(reference, _factors(reference, 2.0)))
    other = _image(geometry.averaged(moving, _factors(moving, 2.0)))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.3, 1)  # the seed: without one, the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=150, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 1.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    start = sitk.Euler3DTransform()
    start.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()]))
    method.SetInitialTransform(start, inPlace=True)
    # Sums over threads would come in another order each time, and the metric asks for the global number alone.
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        method.Execute(fixed, other)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    # SimpleITK maps points of the fixed image to the moving one, in LPS+.
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    pull = np.eye(4)
    pull[:3, :3] = np.array(start.GetMatrix()).reshape(3, 3)
    centre = np.array(start.GetCenter())
    pull[:3, 3] = np.array(start.GetTranslation()) + centre - pull[:3, :3] @ centre
    transform = np.asarray(np.linalg.inv(flip @ pull @ flip), np.float64)
    after = _agreement_at(still, small, grid, transform)
    return Fit(transform, before, after, _largest_move(transform, moving.grid))


def moved(volume: Volume, transform: Affine) -> Volume:
    """A volume elsewhere: no voxel changes, its affine does."""
    return Volume(volume.data, transform @ volume.affine, volume.source)


def _compared(reference: Volume) -> tuple[Grid, FloatArray, npt.NDArray[np.bool_]]:
    """The reference on about ``GRID_MM``, and where its head is."""
    from pvs_model.volume import intensity

    small = geometry.averaged(reference, _factors(reference))
    return small.grid, small.data, intensity.foreground(small.data)


def _factors(volume: Volume, spacing_mm: float = GRID_MM) -> list[int]:
    return [
        max(1, min(int(spacing_mm / s + 0.01), n // 4))
        for s, n in zip(volume.spacing_mm, volume.data.shape, strict=True)
    ]


def _agreement_at(still: FloatArray, moving: Volume, grid: Grid, transform: Affine) -> float:
    """Agreement over what both images cover; nan where that is too little."""
    from scipy import ndimage

    index = np.linalg.inv(transform @ moving.affine) @ grid.affine
    values = ndimage.affine_transform(
        moving.data, index[:3, :3], offset=index[:3, 3], output_shape=grid.shape, order=1, cval=np.nan,
        output=np.float32,
    )  # fmt: skip
    common = ~np.isnan(values)
    voxel_mm3 = [abs(float(np.linalg.det(a[:3, :3]))) for a in (grid.affine, moving.affine)]
    smaller = min(still.size, moving.data.size * voxel_mm3[1] / voxel_mm3[0])
    if common.sum() < max(1000.0, _LEAST_COMMON * smaller):
        return math.nan
    return agreement(still[common], values[common])


def _moves(middle: FloatArray) -> Iterator[tuple[Affine, str]]:
    """Shifts along and turns about each axis, both ways; turns about the middle of the head."""
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
        turn[:3, 3] = middle - turn[:3, :3] @ middle
        about = ("left to right", "back to front", "foot to head")[axis]
        yield turn, f"turned by {TURN_DEG:g} degrees about the axis from {about}"


def _largest_move(transform: Affine, grid: Grid) -> float:
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] *= np.array(grid.shape) - 1
    places = corners @ grid.affine.T
    return float(np.linalg.norm((places @ transform.T - places)[:, :3], axis=1).max())


def _image(volume: Volume) -> Any:
    import SimpleITK

    from pvs_model.volume.itk import itk_geometry

    sitk: Any = SimpleITK
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.transpose(2, 1, 0)))
    spacing, origin, direction = itk_geometry(volume.affine)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image
