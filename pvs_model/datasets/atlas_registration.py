"""Registers a label map to a scan: an image made from the labels is moved by an affine map, then by demons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pvs_model.simulation.head import INDEX, PARENCHYMA, TISSUES, fill_outer_csf, is_tissue
from pvs_model.simulation.tissue_contrast import TISSUE_SIGNALS
from pvs_model.types import SEQUENCES, Affine, FloatArray, Grid
from pvs_model.volume.geometry import crop_to
from pvs_model.volume.itk import itk_geometry, one_itk_thread, to_itk

SEED = 20240101
#: Margins around the brain, voxels.
ATLAS_MARGIN, SCAN_MARGIN = 4, 12
AFFINE_MM, DEMONS_MM = (4.0, 2.0), (2.0, 1.0)
DEMONS_ITERATIONS = (80, 25)
#: Minimum number of voxels of a tissue to take its intensity from the scan rather than from the priors.
MIN_VOXELS = 300


@dataclass(frozen=True)
class Atlas:
    """Tissue map of a brain: ``tissues`` uint8 (x, y, z), index into ``TISSUES``; ``affine`` voxel to RAS+ mm."""

    name: str
    tissues: npt.NDArray[np.uint8]
    affine: Affine


@dataclass(frozen=True)
class RegisteredAtlas:
    """Atlas on the grid of a scan; ``similarity`` is the correlation of the scan and the image made from it."""

    atlas: str
    tissues: npt.NDArray[np.uint8]
    similarity: float


def make_atlas(name: str, tissues: npt.NDArray[np.uint8], affine: Affine) -> Atlas:
    """Skull-strips a tissue map: nothing outside the brain, CSF only in ventricles and sulci."""
    brain = is_tissue(tissues, *PARENCHYMA, "ventricle")
    box = crop_to(brain, margin=ATLAS_MARGIN)
    kept = np.where(box.apply(brain), box.apply(tissues), np.uint8(INDEX["air"]))
    return Atlas(name, fill_outer_csf(kept), box.affine(affine))


@one_itk_thread()
def register(scan: FloatArray, grid: Grid, inside: npt.NDArray[np.bool_], sequence: str,
             atlases: Sequence[Atlas]) -> RegisteredAtlas:  # fmt: skip
    """Registers the best of some atlases to a scan; equal inputs give equal outputs.

    Args:
        scan: (x, y, z), without a strong bias field.
        grid: Its grid.
        inside: (x, y, z), the brain.
        sequence: Sequence of the scan, one of ``SEQUENCES``.
        atlases: Brain only (``make_atlas``). All are moved by an affine map; the one with the highest mutual
            information is deformed.
    """
    box = crop_to(inside, margin=SCAN_MARGIN)
    brain, top = box.apply(inside), float(np.percentile(scan[inside], 99.5))
    bounded = np.where(brain, np.clip(box.apply(scan) / top, 0, 1), 0).astype(np.float32)
    image = to_itk(bounded, itk_geometry(box.affine(grid.affine)))
    channel = SEQUENCES.index(sequence)
    prior = np.array([TISSUE_SIGNALS[name][channel] for name in TISSUES], np.float32)
    candidates = []
    for number, candidate in enumerate(atlases):
        transform, metric = _affine(image, to_itk(prior[candidate.tissues], itk_geometry(candidate.affine)))
        candidates.append((metric, number, transform))
    _, number, transform = min(candidates)  # the metric is negative information
    chosen = atlases[number]
    labels = to_itk(chosen.tissues, itk_geometry(chosen.affine))
    for spacing, iterations in zip(DEMONS_MM, DEMONS_ITERATIONS, strict=True):
        transform = _demons(image, labels, transform, prior, spacing, iterations)
    tissues = _array(_resample(labels, image, transform, nearest=True)).astype(np.uint8)
    made = _means(bounded, tissues, prior)[tissues]
    both = brain & (tissues > 0)
    similarity = float(np.corrcoef(made[both], bounded[both])[0, 1])
    return RegisteredAtlas(chosen.name, box.invert(tissues), similarity)


def _sitk() -> Any:
    import SimpleITK

    return SimpleITK


def _array(image: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = _sitk().GetArrayFromImage(image).transpose(2, 1, 0)
    return array


def _resample(image: Any, like: Any, transform: Any, nearest: bool = False) -> Any:
    sitk = _sitk()
    return sitk.Resample(image, like, transform, sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear, 0.0)


def _coarse(image: Any, spacing_mm: float) -> Any:
    """Smooths an image and shrinks it to about ``spacing_mm``."""
    sitk = _sitk()
    factors = [max(1, round(spacing_mm / s)) for s in image.GetSpacing()]
    sigmas = [max(0.3 * s, 0.4 * f * s) for f, s in zip(factors, image.GetSpacing(), strict=True)]
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, sigmas), factors)


def _affine(fixed: Any, moving: Any) -> tuple[Any, float]:
    """Finds the affine map from fixed to moving points by mutual information; returns it and its metric."""
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
    """Takes the median intensity of each tissue from the scan; small tissues keep their prior, fitted to the others."""
    core = ndimage.grey_erosion(tissues, size=3) == ndimage.grey_dilation(tissues, size=3)
    counts = np.bincount(tissues[core], minlength=len(TISSUES))
    measured = [k for k in range(1, len(TISSUES)) if counts[k] >= MIN_VOXELS]
    medians = [float(np.median(scan[core & (tissues == k)])) for k in measured]
    slope, offset = 1.0, 0.0
    if len(measured) > 2:
        slope, offset = np.polyfit(prior[measured], medians, 1, w=np.sqrt(counts[measured]))
    means = (slope * prior + offset).astype(np.float32)
    means[measured] = medians
    means[INDEX["air"]] = 0
    return means


def _demons(image: Any, labels: Any, transform: Any, prior: FloatArray, spacing_mm: float, iterations: int) -> Any:
    """Runs one level of diffeomorphic demons between the scan and the image made from its tissues' intensities."""
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
    # A point of the scan is moved by the field first, then by the earlier transform.
    return sitk.CompositeTransform([transform, sitk.DisplacementFieldTransform(field)])
