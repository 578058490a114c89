"""Applies effects of the scanner to images (C, X, Y, Z): point spread, thick slices, shifts, ringing and noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(image: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    """Blurs with a Gaussian, sigma in voxels per axis, borders replicated."""
    for axis, s in enumerate(sigma):
        if s < 0.12:
            continue
        radius = max(1, min(math.ceil(3 * s), image.shape[axis + 1] - 1))
        edges = torch.arange(-radius, radius + 2, device=image.device, dtype=image.dtype) - 0.5
        kernel = torch.erf(
            edges / (s * math.sqrt(2))
        ).diff()  # integrated over voxels: sampling would miss a narrow Gaussian
        image = _along(image, kernel / kernel.sum(), axis)
    return image


def _along(image: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Convolves along one spatial axis by summing shifted copies, which is several times faster than a convolution."""
    radius = len(kernel) // 2
    n = image.shape[axis + 1]
    index = torch.arange(-radius, n + radius, device=image.device).clamp(0, n - 1)
    padded = image.index_select(axis + 1, index)
    out = torch.zeros_like(image)
    for k, weight in enumerate(kernel.tolist()):
        out.add_(padded.narrow(axis + 1, k, n), alpha=weight)
    return out


def regrid(image: Tensor, factor: float, offset: float, axis: int) -> Tensor:
    """Averages over voxels ``factor`` times as long along one axis, then interpolates linearly onto the grid.

    Args:
        image: (C, X, Y, Z).
        factor: Acquired voxel size over that of the grid, not only integers; up to 1 nothing is done.
        offset: Centre of the first acquired voxel, in voxels from the centre of the first grid voxel.
        axis: Spatial axis, 0 to 2.
    """
    if factor <= 1.001:
        return image
    n = image.shape[axis + 1]
    along = [-1 if a == axis + 1 else 1 for a in range(image.ndim)]
    centres = _centres(n, factor, offset, image.device)
    low, high = centres - factor / 2 + 0.5, centres + factor / 2 + 0.5  # grid voxel i extends from i to i + 1
    acquired = torch.zeros((), device=image.device)
    for step in range(math.ceil(factor) + 1):
        voxel = low.floor() + step
        share = (torch.minimum(voxel + 1, high) - torch.maximum(voxel, low)).clamp_min(0) / factor
        acquired = acquired + image.index_select(axis + 1, voxel.clamp(0, n - 1).long()) * share.reshape(along)
    return _interpolate(acquired, n, factor, offset, axis)


def interpolate_noise(noise: Tensor, factor: float, offset: float, axis: int) -> Tensor:
    """Interpolates white noise of acquired voxels onto the grid, as ``regrid`` interpolates the signal.

    Args:
        noise: (C, X, Y, Z), white on the grid; each acquired voxel takes the nearest value along the axis.
        factor, offset, axis: As for ``regrid``.
    """
    if factor <= 1.001:
        return noise
    n = noise.shape[axis + 1]
    # Acquired voxels are longer than those of the grid: except at the ends, each has its own nearest value.
    nearest = _centres(n, factor, offset, noise.device).round().clamp(0, n - 1).long()
    return _interpolate(noise.index_select(axis + 1, nearest), n, factor, offset, axis)


def _centres(n: int, factor: float, offset: float, device: torch.device) -> Tensor:
    """Computes centres of acquired voxels in grid voxels: all within a grid of length n, and one on each side."""
    first, last = math.floor(-offset / factor), math.floor((n - 1 - offset) / factor) + 1
    return torch.arange(first, last + 1, device=device, dtype=torch.float32) * factor + offset


def _interpolate(acquired: Tensor, n: int, factor: float, offset: float, axis: int) -> Tensor:
    """Interpolates acquired voxels, centred at ``_centres``, linearly at the n voxels of the grid."""
    count = acquired.shape[axis + 1]
    along = [-1 if a == axis + 1 else 1 for a in range(acquired.ndim)]
    position = torch.arange(n, device=acquired.device, dtype=torch.float32) - offset
    position = position / factor - math.floor(-offset / factor)
    below = position.floor().clamp(0, count - 2)  # float32 may round a position up to the last slice
    weight = (position - below).reshape(along)
    near, far = (acquired.index_select(axis + 1, (below + k).long()) for k in (0, 1))
    return near * (1 - weight) + far * weight


def shift(image: Tensor, voxels: tuple[float, float, float]) -> Tensor:
    """Shifts by fractions of a voxel with linear interpolation, borders replicated."""
    for axis, v in enumerate(voxels):
        if abs(v) < 0.02:
            continue
        n = image.shape[axis + 1]
        position = torch.arange(n, device=image.device, dtype=torch.float32) - v
        low = position.floor()
        weight = (position - low).reshape([-1 if a == axis + 1 else 1 for a in range(image.ndim)])
        a = low.clamp(0, n - 1).long()
        b = (low + 1).clamp(0, n - 1).long()
        image = image.index_select(axis + 1, a) * (1 - weight) + image.index_select(axis + 1, b) * weight
    return image


def smooth_noise(
    shape: tuple[int, ...], cells: tuple[int, int, int], generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """Draws noise (C, X, Y, Z) with unit variance at the nodes of a coarse grid, interpolated linearly."""
    coarse = torch.randn((1, shape[0], *(max(2, c) for c in cells)), generator=generator, device=device)
    return F.interpolate(coarse, size=shape[1:], mode="trilinear", align_corners=True)[0]


def ring(image: Tensor, kspace_fraction: float, axis: int) -> Tensor:
    """Adds Gibbs ringing: keeps only a fraction of k-space, the lowest frequencies along one axis."""
    spectrum = torch.fft.rfft(image, dim=axis + 1)
    n = spectrum.shape[axis + 1]
    limit = max(2, int(n * kspace_fraction))
    window = (torch.arange(n, device=image.device) < limit).to(spectrum.real.dtype)
    window = window.reshape([-1 if a == axis + 1 else 1 for a in range(image.ndim)])
    return torch.fft.irfft(spectrum * window, n=image.shape[axis + 1], dim=axis + 1)


def rician(
    image: Tensor, sigma: float, correlation: float, generator: torch.Generator,
    acquired: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:  # fmt: skip
    """Adds complex Gaussian noise to an image and takes the magnitude.

    Args:
        image: (C, X, Y, Z).
        sigma: Standard deviation of the noise in acquired voxels, in the image's units.
        correlation: Spatial correlation of the noise, sigma in voxels; 0 for white noise.
        generator: Random generator.
        acquired: Acquired voxel size over that of the grid along each axis; noise is interpolated like the signal.
    """
    noise = torch.randn((2, *image.shape), generator=generator, device=image.device).flatten(0, 1)
    for axis, factor in enumerate(acquired):
        noise = interpolate_noise(noise, factor, factor / 2, axis)
    if correlation > 0.12:
        noise = blur(noise, (correlation,) * 3)
        noise = noise / noise.std().clamp_min(1e-6)
    real, imaginary = noise.unflatten(0, (2, -1))
    return ((image + sigma * real) ** 2 + (sigma * imaginary) ** 2).sqrt()
