"""Intensities: where the head is, one scale for every scanner, and the bias field."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.types import FloatArray, Volume

Bool = npt.NDArray[np.bool_]

#: Values after standardisation lie in this range: CSF in T2w, at the top, is not to be cut off.
STANDARD_RANGE = (-4.0, 8.0)

#: Percentiles of the foreground between which mean and deviation are taken.
_STATISTICS_PERCENT = (0.5, 99.5)

#: A voxel differs from the background from this share of the bright end (99.5th percentile) on.
_NOTHING = 0.01

#: Share of the far background that may differ from its value for it to count as exact. Measured:
#: skull-stripped scans 0 to 0.0025, scans with air noise 0.0096 (zero-padded) to 0.22.
_EXACT_BACKGROUND = 0.005

#: Voxels looked at to find the background value and the percentiles.
_SAMPLE = 500_000

_N4_SPACING_MM = 4.0


def foreground(data: FloatArray) -> Bool:
    """The head, or the brain where the image is skull-stripped.

    1. The background value is the most common one, where it is common enough (half of all
       voxels; or 5 % with next to nothing below it), else 0. Distances from it are taken without
       their sign, so that a brain that was standardised around 0 is found, too.
    2. A first mask of the head: above half of Otsu's threshold (air noise lies far below, dark
       tissue mostly above), the largest component, holes filled slice by slice along all axes.
    3. If hardly a voxel away from that mask differs from the background, the background is
       exact, as in skull-stripped images, and the mask becomes everything that differs, so that
       the dark CSF at the rim is kept. Else there is air noise, and the first mask stands.

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
    differs = distance > _NOTHING * bright
    far = ~ndimage.binary_dilation(head, iterations=2)
    if not far.any() or float(differs[far].mean()) < _EXACT_BACKGROUND:
        head |= _solid(differs)
    return head if head.any() else differs | (distance > 0)


def _sampled(data: FloatArray) -> FloatArray:
    """At most about ``_SAMPLE`` voxels, evenly spread; always the same ones."""
    step = max(1, round((data.size / _SAMPLE) ** (1 / 3)))
    return np.ravel(data[::step, ::step, ::step])


def _background_value(data: FloatArray) -> float:
    sample = _sampled(data)
    values, counts = np.unique(sample, return_counts=True)
    common = int(counts.argmax())
    share = counts[common] / sample.size
    below = counts[:common].sum() / sample.size
    # In a brain without margin, stored as bytes, white matter is the most common value.
    if share >= 0.5 or (share >= 0.05 and below < 0.05):
        return float(values[common])
    return float(max(0.0, values[0]))


def _otsu(values: FloatArray, highest: float) -> float:
    """Otsu's threshold of values in 0 to ``highest``, on 256 bins."""
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


def _solid(mask: Bool) -> Bool:
    """The largest component of a mask (by faces), holes filled slice by slice along each axis."""
    from scipy import ndimage

    labels, number = ndimage.label(mask)
    if number == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = int(sizes.argmax())
    box = ndimage.find_objects(labels, max_label=largest)[-1]
    part: Bool = labels[box] == largest
    filled = part.copy()
    for axis in range(3):
        filled |= _holes(part, axis)
    solid = np.zeros_like(mask)
    solid[box] = filled
    return solid


def _holes(mask: Bool, axis: int) -> Bool:
    """What a mask encloses in each of its slices perpendicular to an axis."""
    from scipy import ndimage

    # All slices at once: neighbours are only those within the slice.
    within = ndimage.generate_binary_structure(3, 1)
    within = within & (np.abs(np.arange(3) - 1) == 0).reshape([3 if other == axis else 1 for other in range(3)])
    labels, number = ndimage.label(~mask, within)
    enclosed = np.ones(number + 1, dtype=bool)
    enclosed[0] = False
    for other in range(3):
        if other != axis:
            for end in (0, -1):
                enclosed[labels.take(end, axis=other)] = False
    holes: Bool = enclosed[labels]
    return holes


def standardise(data: FloatArray, mask: Bool) -> FloatArray:
    """Zero mean and unit deviation within a mask, robustly.

    Mean and deviation are those of the values clipped to the mask's 0.5th and 99.5th percentile;
    the values themselves are clipped only to -4 and 8 deviations.

    Args:
        data: (x, y, z).
        mask: (x, y, z), where the head or brain is.

    Returns:
        float32 (x, y, z) in [-4, 8], 0 outside the mask; 0 everywhere where the mask is empty or
        all is equal inside.

    Raises:
        ValueError: another shape than the mask's.
    """
    if data.shape != mask.shape:
        raise ValueError(f"expected a mask of shape {data.shape}, got {mask.shape}")
    out = np.zeros(data.shape, dtype=np.float32)
    inside = data[mask].astype(np.float64)
    if inside.size == 0:
        return out
    low, high = np.percentile(inside, _STATISTICS_PERCENT)
    clipped = np.clip(inside, low, high)
    mean, deviation = float(clipped.mean()), float(clipped.std())
    # To float32 rounding, not to 0: a deviation from rounding alone would become an image.
    if deviation > 1e-6 * max(abs(mean), abs(high - low)):
        out[mask] = np.clip((inside - mean) / deviation, *STANDARD_RANGE)
    return out


def correct_bias(volume: Volume, mask: Bool) -> Volume:
    """Correct the bias field by N4 (Tustison 2010, doi:10.1109/TMI.2010.2046908).

    The field is smooth, so it is fitted to a copy shrunk to about 4 mm, within the mask, and
    evaluated at full resolution. Its mean within the mask is 1. The same input gives the same
    output.

    Args:
        volume: the image; values of 0 or less take no part in the fit.
        mask: (x, y, z), where the head or brain is.

    Returns:
        The image divided by its field; unchanged where fewer than 100 voxels could be fitted.
    """
    import SimpleITK

    sitk: Any = SimpleITK
    if volume.data.shape != mask.shape:
        raise ValueError(f"expected a mask of shape {volume.data.shape}, got {mask.shape}")
    usable = mask & (volume.data > 0)

    def image_of(array: npt.NDArray[Any]) -> Any:
        # Position does not matter to the field, only the spacing does.
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
    n4.SetNumberOfThreads(1)  # sums over threads would come in another order each time
    n4.Execute(small, small_mask)
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    # Far from the mask the spline is free; a coil's field is within a factor of about 10.
    field = np.exp(np.clip(log_field, -2.3, 2.3))
    field /= field[usable].mean()
    return Volume((volume.data / field).astype(np.float32), volume.affine, volume.source)
