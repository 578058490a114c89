"""Refines the network's coarse probabilities to labels on the voxels of a scan, by the signal of the scan.

Ashburner and Friston (2005), doi:10.1016/j.neuroimage.2005.02.018, with the network in place of their atlas: each class
has a Gaussian of signals, the bias field is smooth, and the probabilities of the network are the prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pvs_model.anatomy.intensity import normalise
from pvs_model.anatomy.regions import CLASSES, to_labels
from pvs_model.types import Affine, BoolArray, FloatArray, Grid, Mask
from pvs_model.volume.geometry import corners_of, crop_to

#: Number of voxels of the scan per chunk.
_CHUNK = 150_000
#: Approximate number of voxels to which a mixture is fitted.
_SAMPLE = 150_000
_ROUNDS = 5
#: Blur of the prior, in voxels of the network: its borders are that uncertain.
_BLUR = 0.5
#: Minimum prior of a class.
_MIN_PRIOR = 1e-4
#: Maximum log-likelihood ratio of two classes, so that a lesion keeps the label of its surroundings.
_MAX_RATIO = 3.0
#: Probability above which the class of the network is kept, if the whole neighbourhood agrees.
_CERTAIN = 0.95
#: Size of the cells of the bias field, mm, and the field's range.
_CELL_MM = 32.0
_FIELD = (0.5, 2.0)
#: Minimum deviation of the signals of a class, for a range of 1.
_MIN_DEVIATION = 0.02


def refine_labels(probability: Tensor, affine: Affine, grid: Grid, signal: FloatArray | None = None) -> Mask:
    """Computes labels on another grid by interpolating probabilities and, if given, weighing them with the signal.

    Voxels whose eight neighbouring probabilities agree on class and side are not changed.

    Args:
        probability: (classes + 1, x, y, z) from ``classify``.
        affine: Affine of the probabilities.
        grid: Grid of the labels.
        signal: Scan on that grid with background 0, in any scale.

    Returns:
        uint8 of the grid's shape, values of ``label_table``.
    """
    if signal is not None:
        probability = _softened(probability)
    source = _Source.of(probability, certain=0.0 if signal is None else _CERTAIN)
    index = np.linalg.inv(affine) @ grid.affine
    out = np.zeros(grid.shape, np.uint8)
    box = _box_of(source.labels.reshape(probability.shape[1:]).numpy() > 0, index, grid.shape)
    if box is None:
        return out
    values = None if signal is None else normalise(torch.from_numpy(np.ascontiguousarray(signal, np.float32))[box])
    spacing = np.array(grid.spacing_mm)
    mixture = None if values is None else _fit(values, source, index, box, spacing)
    for slab in _slabs(box):
        cell, fractions = source.cells(_positions(slab, index))
        labels = source.labels[cell]
        open_ = torch.nonzero(~source.certain[cell])[:, 0]
        total = source.interpolated(cell[open_], [f[open_] for f in fractions])
        if mixture is not None and values is not None:
            start = slab[0].start - box[0].start
            part = values[start : start + slab[0].stop - slab[0].start].reshape(-1)[open_]
            where = _own_mm(slab, box, spacing).reshape(3, -1)[:, open_]
            total[:, :CLASSES] = total[:, :CLASSES].clamp_min(_MIN_PRIOR).log() + mixture.log_likelihood(part, where)
        refined = to_labels(total[:, :CLASSES].argmax(1).numpy(), total[:, CLASSES].numpy() > 0.5)
        labels[open_] = torch.from_numpy(refined)
        out[slab] = labels.numpy().reshape(out[slab].shape)
    return out


@dataclass(frozen=True)
class _Source:
    """Probabilities as rows (voxels, classes + 1), labels and certainty (voxels,), and the shape of their grid."""

    rows: Tensor
    labels: Tensor
    certain: Tensor
    shape: tuple[int, int, int]

    @staticmethod
    def of(probability: Tensor, certain: float) -> _Source:
        largest, classes = probability[:CLASSES].max(0)
        labels = to_labels(classes.numpy(), probability[CLASSES].numpy() > 0.5)
        x, y, z = probability.shape[1:]
        rows = probability.flatten(1).T.contiguous()  # a corner of a cell is one row
        agreed = _agreed(labels, (largest >= certain).numpy())
        return _Source(rows, torch.from_numpy(labels.reshape(-1)), torch.from_numpy(agreed.reshape(-1)), (x, y, z))

    def cells(self, position: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Index of the lower corner of the cell around each position, and the fractions within it per axis."""
        strides = (self.shape[1] * self.shape[2], self.shape[2], 1)
        cell, fractions = torch.zeros(len(position[0]), dtype=torch.long), []
        for along, length, stride in zip(position, self.shape, strides, strict=True):
            floor = along.floor().clamp_(0, length - 2)
            fractions.append((along - floor).clamp_(0, 1))
            cell += floor.long() * stride
        return cell, fractions

    def interpolated(self, cell: Tensor, fractions: list[Tensor]) -> Tensor:
        """Trilinear interpolation (n, classes + 1)."""
        strides = (self.shape[1] * self.shape[2], self.shape[2], 1)
        total = torch.zeros((len(cell), CLASSES + 1))
        for corner in range(8):
            bits = [(corner >> k) & 1 for k in range(3)]
            weight = torch.ones(len(cell))
            for bit, fraction in zip(bits, fractions, strict=True):
                weight = weight * (fraction if bit else 1 - fraction)
            offset = sum(bit * stride for bit, stride in zip(bits, strides, strict=True))
            total.addcmul_(self.rows[cell + offset], weight[:, None])
        return total


@dataclass(frozen=True)
class Mixture:
    """Gaussian of each class, and the bias field.

    Attributes:
        mean, variance: (classes,), for signals divided by the field.
        field: (x, y, z), about 1, at the centres of cells of ``_CELL_MM``.
    """

    mean: Tensor
    variance: Tensor
    field: Tensor

    def at(self, position_mm: Tensor) -> Tensor:
        """Field (n,) at positions (3, n), linear between the cells."""
        return _linear(self.field, position_mm)

    def log_likelihood(self, signal: Tensor, position_mm: Tensor) -> Tensor:
        """Log-likelihood (n, classes), 0 for the likeliest class of a voxel and at least ``-_MAX_RATIO``."""
        return _log_likelihood(signal / self.at(position_mm), self.mean, self.variance)


def fit(signal: Tensor, prior: Tensor, position_mm: Tensor, extent_mm: tuple[float, ...]) -> Mixture:
    """Fits a mixture by expectation maximisation.

    Args:
        signal: (n,), 0 to 1.
        prior: (n, classes), logarithms.
        position_mm: (3, n), from the corner of the field of view.
        extent_mm: Extent of the field of view.
    """
    n = len(signal)
    x, y, z = (max(1, round(e / _CELL_MM)) for e in extent_mm)
    cell = torch.zeros(n, dtype=torch.long)
    for along, number in zip(position_mm, (x, y, z), strict=True):
        cell = cell * number + (along / _CELL_MM).long().clamp_(0, number - 1)
    posterior = prior.softmax(1)
    mixture = Mixture(torch.zeros(CLASSES), torch.ones(CLASSES), torch.ones((x, y, z)))
    corrected = signal
    for turn in range(_ROUNDS):
        weight = posterior.sum(0) + 1e-6 * n
        overall = corrected.mean()
        mean = (posterior.T @ corrected + 1e-6 * n * overall) / weight
        square = (posterior * (corrected[:, None] - mean).square()).sum(0)
        variance = (square + 1e-6 * n * 0.01) / weight + _MIN_DEVIATION**2
        if turn > 0:
            # Measured signal against the means of tissues; background says little about the coil.
            inside = posterior[:, 1:].sum(1)
            expected = posterior[:, 1:] @ mean[1:]
            number = x * y * z
            measured = torch.zeros(number).index_add_(0, cell, inside * signal)
            predicted = torch.zeros(number).index_add_(0, cell, expected)
            regular = 0.02 * n / number * overall
            field = ((measured + regular) / (predicted + regular)).clamp_(*_FIELD).reshape(x, y, z)
            mixture = Mixture(mean, variance, field)
            corrected = signal / mixture.at(position_mm)
        else:
            mixture = Mixture(mean, variance, mixture.field)
        posterior = (prior + _log_likelihood(corrected, mixture.mean, mixture.variance)).softmax(1)
    return mixture


def _log_likelihood(signal: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    out = (signal[:, None] - mean).square_().div_(-2 * variance).sub_(0.5 * variance.log())
    return out.sub_(out.amax(1, keepdim=True)).clamp_min_(-_MAX_RATIO)


def _fit(values: Tensor, source: _Source, index: Affine, box: tuple[slice, ...], spacing: FloatArray) -> Mixture:
    """Fits the mixture of a box of the scan to an even sample of its voxels."""
    step = max(1, round((values.numel() / _SAMPLE) ** (1 / 3)))
    steps = [step if n >= 3 * step else 1 for n in values.shape]
    ranges = [torch.arange(b.start, b.stop, s, dtype=torch.float32) for b, s in zip(box, steps, strict=True)]
    sample = values[:: steps[0], :: steps[1], :: steps[2]].reshape(-1)
    cell, fractions = source.cells(_grid_positions(ranges, index))
    total = source.interpolated(cell, fractions)[:, :CLASSES].clamp_min(_MIN_PRIOR).log()
    own = [(r - b.start) * float(s) for r, b, s in zip(ranges, box, spacing, strict=True)]
    position = torch.stack([m.reshape(-1) for m in torch.meshgrid(*own, indexing="ij")])
    extent = tuple(n * float(s) for n, s in zip(values.shape, spacing, strict=True))
    return fit(sample, total, position, extent)


def _linear(field: Tensor, position_mm: Tensor) -> Tensor:
    size = torch.tensor(field.shape, dtype=torch.float32)
    # -1 and 1 are the outer faces of the first and the last cell.
    where = (2 * position_mm.T / (_CELL_MM * size) - 1).flip(1)
    grid = where.reshape(1, 1, 1, -1, 3)
    return F.grid_sample(field[None, None], grid, padding_mode="border", align_corners=False).reshape(-1)


def _softened(probability: Tensor) -> Tensor:
    from scipy.ndimage import gaussian_filter

    soft = probability.clone()
    for part in soft[:CLASSES].numpy():
        gaussian_filter(part, _BLUR, output=part, mode="nearest")
    soft[:CLASSES] /= soft[:CLASSES].sum(0).clamp_min(1e-6)
    return soft


def _slabs(box: tuple[slice, slice, slice]) -> list[tuple[slice, slice, slice]]:
    step = max(1, _CHUNK // max(1, (box[1].stop - box[1].start) * (box[2].stop - box[2].start)))
    return [
        (slice(first, min(first + step, box[0].stop)), box[1], box[2])
        for first in range(box[0].start, box[0].stop, step)
    ]


def _positions(box: tuple[slice, ...], index: Affine) -> list[Tensor]:
    return _grid_positions([torch.arange(b.start, b.stop, dtype=torch.float32) for b in box], index)


def _grid_positions(ranges: list[Tensor], index: Affine) -> list[Tensor]:
    x, y, z = ranges
    return [
        ((x * row[0])[:, None, None] + (y * row[1])[:, None] + (z * row[2] + row[3])).reshape(-1)
        for row in index[:3].tolist()
    ]


def _own_mm(slab: tuple[slice, ...], box: tuple[slice, ...], spacing: FloatArray) -> Tensor:
    """Positions (3, x, y, z) of the voxels of a slab, mm from the corner of the box."""
    ranges = [
        (torch.arange(part.start, part.stop, dtype=torch.float32) - whole.start) * float(mm)
        for part, whole, mm in zip(slab, box, spacing, strict=True)
    ]
    return torch.stack(torch.meshgrid(*ranges, indexing="ij"))


def _agreed(labels: Mask, certain: BoolArray) -> BoolArray:
    """Whether a voxel and the seven others of its cell (upwards) have the same label with certainty."""
    out = certain.copy()
    for corner in range(1, 8):
        bits = [(corner >> k) & 1 for k in range(3)]
        here = tuple(slice(0, n - bit) for n, bit in zip(labels.shape, bits, strict=True))
        there = tuple(slice(bit, n) for n, bit in zip(labels.shape, bits, strict=True))
        out[here] &= (labels[here] == labels[there]) & certain[there]
    return out


def _box_of(mask: BoolArray, index: Affine, shape: tuple[int, int, int]) -> tuple[slice, slice, slice] | None:
    """Bounding box in a grid of a mask on another; ``index`` maps voxels of the grid to those of the mask."""
    if not mask.any():
        return None
    slices = crop_to(mask).slices
    positions = corners_of([part.start - 1 for part in slices], [part.stop for part in slices]) @ np.linalg.inv(index).T
    low = np.maximum(0, np.floor(positions[:, :3].min(0)).astype(int))
    high = np.minimum(shape, np.ceil(positions[:, :3].max(0)).astype(int) + 1)
    if (high <= low).any():
        return None
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return x, y, z
