"""Foreground masks, standardisation of intensities and correction of the bias field."""

from __future__ import annotations

from typing import Any

import numpy as np

from pvs_model.config import STANDARD_RANGE
from pvs_model.types import AnyArray, BoolArray, Float64Array, FloatArray, Volume
from pvs_model.volume.components import FACES, label_components

#: Percentiles to which the foreground is clipped for its mean and deviation.
_STATISTICS_PERCENT = (0.5, 99.5)

#: Smallest distance from the background, relative to the 99.5th percentile, that counts as a difference.
_MIN_DIFFERENCE = 0.01

#: Share of the far background that may differ from its value if the background is constant. Measured:
#: skull-stripped scans 0 to 0.0025, scans with air noise 0.0096 (zero-padded) to 0.22.
_CONSTANT_BACKGROUND = 0.005

#: Number of voxels sampled to estimate the background value and the percentiles.
_SAMPLE = 500_000

_N4_SPACING_MM = 4.0


def foreground(data: FloatArray) -> BoolArray:
    """Segments the head, or the brain if the image is skull-stripped.

    1. The background value is the most frequent one if it is frequent enough (half of all voxels; or 5 % with almost no
       lower values), else 0. Distances from it are absolute, so that a brain standardised around 0 is segmented, too.
    2. First mask of the head: above half of Otsu's threshold (air noise is far below, dark tissue mostly above),
       largest component, holes filled slice by slice along all axes.
    3. If almost no voxel away from that mask differs from the background, the background is constant, as in
       skull-stripped images, and the mask is extended to all voxels that differ, which keeps the dark CSF at the rim.
       Otherwise there is air noise, and the first mask is used.

    Args:
        data: (x, y, z), not constant.

    Returns:
        Mask (x, y, z), never empty.
    """
    from scipy import ndimage

    background = _background_value(data)
    distance = np.abs(data - np.float32(background))
    sample = _sampled(distance)
    above = sample[sample > 0]
    bright = float(np.percentile(above, 99.5)) if above.size else float(distance.max())
    if bright <= 0.0:
        return np.ones(data.shape, dtype=bool)
    threshold = 0.5 * _otsu(np.minimum(sample, bright), bright)
    head = _solid(distance > threshold)
    differs = distance > _MIN_DIFFERENCE * bright
    far = ~ndimage.binary_dilation(head, iterations=2)
    if not far.any() or float(differs[far].mean()) < _CONSTANT_BACKGROUND:
        head |= _solid(differs)
    return head if head.any() else differs | (distance > 0)


def _sampled(data: FloatArray) -> FloatArray:
    """Returns about ``_SAMPLE`` evenly spaced voxels at most."""
    step = max(1, round((data.size / _SAMPLE) ** (1 / 3)))
    return np.ravel(data[::step, ::step, ::step])


def _background_value(data: FloatArray) -> float:
    sample = _sampled(data)
    values, counts = np.unique(sample, return_counts=True)
    mode = int(counts.argmax())
    share = counts[mode] / sample.size
    below = counts[:mode].sum() / sample.size
    # In a brain without margin that is stored as bytes, white matter is the most frequent value.
    if share >= 0.5 or (share >= 0.05 and below < 0.05):
        return float(values[mode])
    return float(max(0.0, values[0]))


def _otsu(values: FloatArray, highest: float) -> float:
    """Computes Otsu's threshold of values in 0 to ``highest``, on 256 bins.

    scikit-image sums in float32, which moves the threshold on about 1 of 200 histograms.
    """
    counts, edges = np.histogram(values, 256, range=(0.0, highest))
    centres = (edges[1:] + edges[:-1]) / 2
    low = np.cumsum(counts).astype(np.float64)
    high = low[-1] - low
    sums = np.cumsum(counts * centres)
    valid = (low > 0) & (high > 0)
    between = np.zeros_like(low)
    difference = sums[valid] / low[valid] - (sums[-1] - sums[valid]) / high[valid]
    between[valid] = low[valid] * high[valid] * difference**2
    return float(centres[between.argmax()])


def _solid(mask: BoolArray) -> BoolArray:
    """Returns the largest component of a mask with holes filled slice by slice along each axis."""
    from scipy import ndimage

    labels, sizes = label_components(mask, FACES)
    largest = int(sizes.argmax())
    if largest == 0:
        return mask
    box = ndimage.find_objects(labels, max_label=largest)[-1]
    component: BoolArray = labels[box] == largest
    filled = component.copy()
    for axis in range(3):
        in_plane = ndimage.generate_binary_structure(3, 1)
        in_plane[tuple([0, 2] if other == axis else slice(None) for other in range(3))] = False
        filled |= ndimage.binary_fill_holes(component, in_plane)
    solid = np.zeros_like(mask)
    solid[box] = filled
    return solid


def standardise(data: FloatArray, mask: BoolArray) -> FloatArray:
    """Standardises to zero mean and unit deviation within a mask, robustly.

    Mean and deviation are computed from values clipped to the mask's 0.5th and 99.5th percentile;
    the values themselves are clipped only to -4 and 8 deviations.

    Args:
        data: (x, y, z).
        mask: (x, y, z), head or brain.

    Returns:
        float32 (x, y, z) in [-4, 8], 0 outside the mask; all 0 if the mask is empty or its values are constant.

    Raises:
        ValueError: The shapes differ.
    """
    if data.shape != mask.shape:
        raise ValueError(f"expected a mask of shape {data.shape}, got {mask.shape}")
    out = np.zeros(data.shape, dtype=np.float32)
    inside = data[mask].astype(np.float64)
    if inside.size == 0:
        return out
    clipped = clip_outliers(inside)
    mean, deviation = float(clipped.mean()), float(clipped.std())
    # Not 0: a deviation from float32 rounding alone would become an image.
    if deviation > 1e-6 * max(abs(mean), float(np.ptp(clipped))):
        out[mask] = np.clip((inside - mean) / deviation, *STANDARD_RANGE)
    return out


def clip_outliers(values: Float64Array) -> Float64Array:
    """Clips values (n,), n > 0, to their 0.5th and 99.5th percentile, for a robust mean and deviation."""
    low, high = np.percentile(values, _STATISTICS_PERCENT)
    return np.clip(values, low, high)


def correct_bias(volume: Volume, mask: BoolArray) -> Volume:
    """Corrects the bias field by N4 (Tustison 2010, doi:10.1109/TMI.2010.2046908).

    The field is smooth, so it is fitted at about 4 mm within the mask and evaluated at full resolution. Its mean within
    the mask is 1. The result is deterministic.

    Args:
        volume: Image; values of 0 or less are excluded from the fit.
        mask: (x, y, z), head or brain.

    Returns:
        The image divided by its field; unchanged if fewer than 100 voxels are available for the fit.
    """
    import SimpleITK

    sitk: Any = SimpleITK
    if volume.data.shape != mask.shape:
        raise ValueError(f"expected a mask of shape {volume.data.shape}, got {mask.shape}")
    usable = mask & (volume.data > 0)

    def image_of(array: AnyArray) -> Any:
        # The field depends on the spacing but not on the position.
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetSpacing(volume.spacing_mm)
        return image

    image = image_of(np.where(usable, volume.data, np.float32(0)))
    factors = [
        max(1, min(round(_N4_SPACING_MM / spacing), size // 4))
        for spacing, size in zip(volume.spacing_mm, volume.data.shape, strict=True)
    ]
    small = sitk.Shrink(image, factors)
    small_mask = sitk.Shrink(image_of(usable.astype(np.uint8)), factors)
    if int(sitk.GetArrayViewFromImage(small_mask).sum()) < 100:
        return volume
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([50, 50, 50])
    n4.SetConvergenceThreshold(1e-4)
    n4.SetNumberOfThreads(1)  # for deterministic sums
    n4.Execute(small, small_mask)
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    # The spline is not constrained far from the mask; a coil's field is within a factor of about 10.
    field = np.exp(np.clip(log_field, -2.3, 2.3))
    field /= field[usable].mean()
    return Volume((volume.data / field).astype(np.float32), volume.affine, volume.source)
