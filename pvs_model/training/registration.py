"""A label map onto a scan: an image is made from the labels, moved by an affine map and then by demons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pvs_model.synth.anatomy import INDEX, PARENCHYMA, TISSUES, fill_outer_csf, is_tissue
from pvs_model.synth.contrast import PRIOR
from pvs_model.types import SEQUENCES, Affine, FloatArray, Grid

SEED = 20240101
ATLAS_MARGIN, SCAN_MARGIN = 4, 12  # voxels around the brain
AFFINE_MM, DEMONS_MM = (4.0, 2.0), (2.0, 1.0)
DEMONS_ITERATIONS = (80, 25)
#: A tissue's intensity is taken from the scan where so many voxels hold it, else from the tissue priors.
LEAST_VOXELS = 300


@dataclass(frozen=True)
class Atlas:
    """A brain's tissue map: ``tissues`` uint8 (x, y, z), index into ``TISSUES``; ``affine`` voxel to RAS+ mm."""

    name: str
    tissues: npt.NDArray[np.uint8]
    affine: Affine


@dataclass(frozen=True)
class Registered:
    """An atlas on a scan's grid: ``similarity`` is the correlation of scan and image made from it, in the brain."""

    atlas: str
    tissues: npt.NDArray[np.uint8]
    similarity: float


def atlas(name: str, tissues: npt.NDArray[np.uint8], affine: Affine) -> Atlas:
    """A tissue map as if skull-stripped: nothing outside the brain, CSF only in ventricles and sulci."""
    from pvs_model.volume.geometry import crop_to

    brain = is_tissue(tissues, *PARENCHYMA, "ventricle")
    box = crop_to(brain, margin=ATLAS_MARGIN)
    kept = np.where(box.apply(brain), box.apply(tissues), np.uint8(INDEX["air"]))
    return Atlas(name, fill_outer_csf(kept), box.affine(affine))


def register(scan: FloatArray, grid: Grid, inside: npt.NDArray[np.bool_], sequence: str,
             atlases: Sequence[Atlas]) -> Registered:  # fmt: skip
    """The best of some atlases on a scan's grid; equal input gives equal output.

    Args:
        scan: (x, y, z), free of a strong bias field.
        grid: where it lies.
        inside: (x, y, z), the brain.
        sequence: of the scan, one of ``SEQUENCES``.
        atlases: brain only (``atlas``). All are moved by an affine map; the one that then
            shares most information with the scan is deformed.
    """
    sitk = _sitk()
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums over threads come in another order each time
    try:
        return _register(scan, grid, inside, sequence, atlases)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _register(scan: FloatArray, grid: Grid, inside: npt.NDArray[np.bool_], sequence: str,
              atlases: Sequence[Atlas]) -> Registered:  # fmt: skip
    from pvs_model.volume.geometry import crop_to

    box = crop_to(inside, margin=SCAN_MARGIN)
    brain, top = box.apply(inside), float(np.percentile(scan[inside], 99.5))
    bounded = np.where(brain, np.clip(box.apply(scan) / top, 0, 1), 0).astype(np.float32)
    image = _image(bounded, box.affine(grid.affine))
    channel = SEQUENCES.index(sequence)
    prior = np.array([PRIOR[name][channel] for name in TISSUES], np.float32)
    tried = []
    for number, candidate in enumerate(atlases):
        transform, metric = _affine(image, _image(prior[candidate.tissues], candidate.affine))
        tried.append((metric, number, transform))
    _, number, transform = min(tried)  # the metric is negative information
    chosen = atlases[number]
    labels = _image(chosen.tissues, chosen.affine)
    for spacing, iterations in zip(DEMONS_MM, DEMONS_ITERATIONS, strict=True):
        transform = _demons(image, labels, transform, prior, spacing, iterations)
    tissues = _array(_resample(labels, image, transform, nearest=True)).astype(np.uint8)
    made = _means(bounded, tissues, prior)[tissues]
    both = brain & (tissues > 0)
    similarity = float(np.corrcoef(made[both], bounded[both])[0, 1])
    return Registered(chosen.name, box.undo(tissues), similarity)


def _sitk() -> Any:
    import SimpleITK

    return SimpleITK


def _image(array: npt.NDArray[Any], affine: Affine) -> Any:
    """Array (x, y, z) to a SimpleITK image in its place in space."""
    from pvs_model.volume.itk import itk_geometry

    image = _sitk().GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    spacing, origin, direction = itk_geometry(affine)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def _array(image: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = _sitk().GetArrayFromImage(image).transpose(2, 1, 0)
    return array


def _resample(image: Any, like: Any, transform: Any, nearest: bool = False) -> Any:
    sitk = _sitk()
    return sitk.Resample(image, like, transform, sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear, 0.0)


def _coarse(image: Any, spacing_mm: float) -> Any:
    """The image on a grid of about ``spacing_mm``, averaged first."""
    sitk = _sitk()
    factors = [max(1, round(spacing_mm / s)) for s in image.GetSpacing()]
    sigmas = [max(0.3 * s, 0.4 * f * s) for f, s in zip(factors, image.GetSpacing(), strict=True)]
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, sigmas), factors)


def _affine(fixed: Any, moving: Any) -> tuple[Any, float]:
    """Affine map from fixed to moving points by mutual information, and the metric (lower is better)."""
    sitk = _sitk()
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    metric = 0.0
    for spacing in AFFINE_MM:
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(0.5, SEED)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 150, 0.6)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(start, inPlace=True)
        method.Execute(_coarse(fixed, spacing), _coarse(moving, spacing))
        metric = float(method.GetMetricValue())
    return start, metric


def _means(scan: FloatArray, tissues: npt.NDArray[np.uint8], prior: FloatArray) -> FloatArray:
    """Median intensity of each tissue in the scan; tissues of few voxels keep their prior, fitted to the others."""
    core = ndimage.grey_erosion(tissues, size=3) == ndimage.grey_dilation(tissues, size=3)
    counts = np.bincount(tissues[core], minlength=len(TISSUES))
    seen = [k for k in range(1, len(TISSUES)) if counts[k] >= LEAST_VOXELS]
    medians = [float(np.median(scan[core & (tissues == k)])) for k in seen]
    slope, offset = np.polyfit(prior[seen], medians, 1, w=np.sqrt(counts[seen])) if len(seen) > 2 else (1.0, 0.0)
    means = (slope * prior + offset).astype(np.float32)
    means[seen] = medians
    means[INDEX["air"]] = 0
    return means


def _demons(image: Any, labels: Any, transform: Any, prior: FloatArray, spacing_mm: float, iterations: int) -> Any:
    """One level of diffeomorphic demons between the scan and the image made from its tissues' own intensities."""
    sitk = _sitk()
    fixed = _coarse(image, spacing_mm)
    tissues = _array(_resample(labels, image, transform, nearest=True)).astype(np.uint8)
    means = _means(_array(image), tissues, prior)
    made = sitk.GetImageFromArray(means[sitk.GetArrayFromImage(labels)])
    made.CopyInformation(labels)
    moving = _resample(_coarse(made, spacing_mm), fixed, transform)
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(iterations)
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(1.5)
    field = demons.Execute(fixed, moving)
    # A point of the scan is first moved by the field, then by what was known before.
    return sitk.CompositeTransform([transform, sitk.DisplacementFieldTransform(field)])
