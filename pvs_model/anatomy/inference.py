"""Estimates brain and regions of a scan: canonical grid, network, largest component, labels on the scan's grid.

``find_regions`` is the whole inference; ``write_regions`` reads and writes files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pvs_model.anatomy.intensity import background_of, normalise
from pvs_model.anatomy.label_refinement import refine_labels
from pvs_model.anatomy.label_tables import write_label_tables
from pvs_model.anatomy.network import SPACING_MM, AnatomyNet, load
from pvs_model.anatomy.regions import CLASS, CLASSES, Anatomy, values_of
from pvs_model.errors import VolumeError, WeightsError
from pvs_model.inference.weights import Manifest
from pvs_model.nets.precision import autocast
from pvs_model.types import Affine, BoolArray, Grid, Mask, Volume
from pvs_model.volume.components import FACES, filter_components, label_components, largest_component
from pvs_model.volume.geometry import Crop, corners_of, crop_to, to_ras

#: Shape of the grids that the network was trained on.
TRAINED_SHAPE = (80, 96, 80)
#: Margin around the brain in the second pass, voxels of ``SPACING_MM``.
_MARGIN = 5
#: In the first pass, planes need this fraction of voxels above this value; planes of air have less.
_BRIGHT, _MIN_BRIGHT = 0.12, 0.02
#: Spacing below which scans are averaged in blocks first, mm.
_FINE_MM = 0.75
#: Minimum volume of a brain, ml; the part of it in a scan of a few slices is larger.
MIN_BRAIN_ML = 20.0
#: Erosion that cuts bridges between brain and scalp, voxels.
_BRIDGE = 2
#: Minimum size of a brain component, as a fraction of the largest.
_MIN_BRAIN_PART = 0.05
#: Compact structures, whose components below this fraction of the largest one are removed.
_MIN_FRAGMENT = 0.2
_COMPACT = ("CAU", "PUT", "PAL", "THA", "IC", "HIP", "AMY", "MID", "BST", "CBL")
#: Voxel size of the labels, mm, where the voxels of the scan are smaller by an integer factor.
_LABELS_MM = 1.0


def find_regions(
    volume: Volume, weights: Path, device: torch.device | str = "cpu", grid: Grid | None = None
) -> Anatomy:
    """Estimates brain and regions of one scan.

    Any contrast, resolution and orientation, whole head or skull-stripped; most of the brain must be in the field of
    view.

    Args:
        volume: Scan as stored.
        weights: Weights folder, whose manifest names the network, or a weights file.
        device: Device of the network.
        grid: Grid of the labels; None for that of the scan.

    Returns:
        Mask and brain on that grid; on that of the scan, in the stored order of its voxels.

    Raises:
        VolumeError: The image has no contrast or shows no brain.
        WeightsError: The weights are missing or damaged.
    """
    device = torch.device(device)
    network = load_network(weights, device)
    image, affine = working_image(volume)
    if image.shape != TRAINED_SHAPE:
        box = _box(_bright(image))
        image, affine = image[box.slices].contiguous(), box.affine(affine)
    probability = classify(image, network, device)
    if image.shape != TRAINED_SHAPE:
        # A large field of view: the first pass finds the brain, a second runs on a grid like those of training.
        box = _box(_largest_brain(probability))
        if any(part.stop - part.start < length for part, length in zip(box.slices, image.shape, strict=True)):
            image, affine = image[box.slices].contiguous(), box.affine(affine)
            probability = classify(image, network, device)
    keep_brain_component(probability, volume)
    if grid is None:
        canonical, reorientation = to_ras(volume)  # so that the stored order of voxels has no influence
        labels = reorientation.invert(resample_labels(probability, affine, canonical, canonical.grid))
    else:
        labels = resample_labels(probability, affine, volume, grid)
    labels = remove_brain_fragments(labels)
    return Anatomy(labels, _filled(np.isin(labels, values_of("brain"))))


def resample_labels(probability: Tensor, affine: Affine, volume: Volume, grid: Grid) -> Mask:
    """Resamples labels onto a grid and refines them by the signal of the scan."""
    from pvs_model.volume.geometry import block_average, resample_onto

    factors = [max(1, int(_LABELS_MM / s + 1e-3)) for s in grid.spacing_mm]
    data = _clean(volume)
    if grid.shape == volume.grid.shape and np.allclose(grid.affine, volume.grid.affine, atol=1e-4):
        signal = block_average(Volume(data, grid.affine), factors)
    else:
        x, y, z = (-(-n // f) for n, f in zip(grid.shape, factors, strict=True))
        shift = np.diag([*factors, 1.0])
        shift[:3, 3] = (np.array(factors) - 1) / 2
        signal = resample_onto(Volume(data, volume.affine), Grid((x, y, z), grid.affine @ shift))
    labels = refine_labels(probability, affine, signal.grid, signal.data)
    for axis, (factor, length) in enumerate(zip(factors, grid.shape, strict=True)):
        if factor > 1:
            labels = labels.repeat(factor, axis).take(range(length), axis)
    return np.ascontiguousarray(labels)


def load_network(weights: Path, device: torch.device | str = "cpu") -> AnatomyNet:
    """The network that the manifest of a weights folder names, or that lies in a file; kept for the next call.

    Raises:
        WeightsError: when it is missing, damaged, or not the one that the manifest describes.
    """
    weights = Path(weights)
    if weights.is_file():
        return _cached(weights, None, weights.stat().st_mtime_ns, str(device))
    manifest = Manifest.read(weights)
    file, sha256 = manifest.file("anatomy", "the entry of the anatomy network")
    if not file.is_file():
        raise WeightsError(f"{manifest.path}: expected the anatomy network in {file.name!r}, got no such file")
    return _cached(file, sha256, file.stat().st_mtime_ns, str(device))


@lru_cache(maxsize=2)
def _cached(file: Path, sha256: str | None, modified: int, device: str) -> AnatomyNet:
    return load(file, sha256, device)


def working_image(volume: Volume) -> tuple[Tensor, Affine]:
    """Resamples a scan onto the canonical grid of ``SPACING_MM`` and normalises it for the network.

    The axes are those of the scanner, however the slices were tilted, and the grid covers the whole scan:
    ``TRAINED_SHAPE`` if that is enough, else more, in steps of 16.

    Returns:
        float32 (x, y, z), 0 to 1, and its affine.

    Raises:
        VolumeError: Every voxel has the same value.
    """
    from pvs_model.volume.geometry import block_average, resample_onto, to_ras

    volume, _ = to_ras(volume)  # so that the stored order of voxels has no influence
    data = _clean(volume)
    source = volume.source or "the scan"
    if data.min() == data.max():
        raise VolumeError(f"{source}: expected an image of a head, got one value in every voxel")
    small = block_average(
        Volume(data, volume.affine), [max(1, int(SPACING_MM / s)) if s <= _FINE_MM else 1 for s in volume.spacing_mm]
    )
    places = corners_of([-0.5] * 3, np.array(data.shape) - 0.5) @ volume.affine.T
    low, high = places[:, :3].min(0), places[:, :3].max(0)
    needed = np.ceil((high - low) / SPACING_MM - 0.01).astype(int)
    x, y, z = (max(least, -(-int(n) // 16) * 16) for n, least in zip(needed, TRAINED_SHAPE, strict=True))
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = (low + high) / 2 - (np.array((x, y, z)) - 1) / 2 * SPACING_MM
    image = normalise(torch.from_numpy(resample_onto(small, Grid((x, y, z), affine)).data))
    if not image.any():
        raise VolumeError(f"{source}: expected an image of a head, got almost only background")
    return image, affine


def _clean(volume: Volume) -> npt.NDArray[np.float32]:
    """Replaces values that are not finite and sets the background to 0."""
    data = np.nan_to_num(volume.data.astype(np.float32, copy=False), posinf=0.0, neginf=0.0)
    return data - np.float32(background_of(data))


def classify(image: Tensor, network: AnatomyNet, device: torch.device) -> Tensor:
    """Computes probabilities (classes + 1, x, y, z), float32 on the CPU; the last channel is that of the right side."""
    with torch.no_grad():
        with autocast(device):
            logits = network(image[None, None].to(device))[0].float()
        logits[:CLASSES] = logits[:CLASSES].softmax(0)
        logits[CLASSES] = logits[CLASSES].sigmoid()
    return logits.cpu()


def _bright(image: Tensor) -> BoolArray:
    """Mask (x, y, z) of the box of the planes with signal."""
    above = image.numpy() > _BRIGHT
    mask = np.ones(image.shape, bool)
    for axis in range(3):
        planes = above.mean(tuple(other for other in range(3) if other != axis)) > _MIN_BRIGHT
        mask &= planes.reshape([-1 if other == axis else 1 for other in range(3)])
    return mask


def _largest_brain(probability: Tensor) -> BoolArray:
    classes = probability[:CLASSES].argmax(0).numpy()
    return largest_component((classes != 0) & (classes != CLASS["CSF"]))


def _box(mask: BoolArray) -> Crop:
    """Bounding box of a mask: at least ``TRAINED_SHAPE`` where the grid allows it, sides multiples of 16."""
    tight, parts = crop_to(mask), []
    for part, length, least in zip(tight.slices, tight.shape, TRAINED_SHAPE, strict=True):
        n = min(length, max(least, -(-(part.stop - part.start + 2 * _MARGIN) // 16) * 16))
        start = min(max(0, (part.start + part.stop - n) // 2), length - n)
        parts.append(slice(start, start + n))
    return Crop((parts[0], parts[1], parts[2]), tight.shape)


def keep_brain_component(probability: Tensor, volume: Volume) -> None:
    """Keeps the largest component of the brain, and removes isolated fragments of compact structures; in place.

    Raises:
        VolumeError: There is no brain.
    """
    classes = probability[:CLASSES].argmax(0).numpy()
    brain = (classes != 0) & (classes != CLASS["CSF"])
    kept = _without_scalp(brain)
    brain_ml = kept.sum() * SPACING_MM**3 / 1000
    if brain_ml < MIN_BRAIN_ML:
        raise VolumeError(
            f"{volume.source or 'the scan'}: expected a brain in the image, got {brain_ml:.0f} ml that might be one"
        )
    inside = torch.from_numpy(_component_with(classes > 0, kept) & ~(brain & ~kept))
    probability[1:CLASSES] *= inside
    probability[0][~inside] = 1.0
    right = probability[CLASSES].numpy() > 0.5
    for name in _COMPACT:
        for side in (False, True):
            fragments = torch.from_numpy(_fragments((classes == CLASS[name]) & (right == side) & kept))
            probability[CLASS[name]][fragments] = 0.0


def _without_scalp(brain: BoolArray) -> BoolArray:
    """Largest component, without parts such as scalp that are connected by thin bridges only."""
    from scipy import ndimage

    core = largest_component(ndimage.binary_erosion(brain, iterations=_BRIDGE))
    if not core.any():
        return largest_component(brain)
    cube = np.ones((3, 3, 3), bool)  # so that corners are kept
    return np.asarray(ndimage.binary_dilation(core, cube, iterations=_BRIDGE + 1, mask=brain))


def _component_with(mask: BoolArray, seed: BoolArray) -> BoolArray:
    """Components of a mask that overlap a seed."""
    labels, sizes = label_components(mask, FACES)
    table = np.zeros(len(sizes), bool)
    table[np.unique(labels[seed & mask])] = True
    table[0] = False
    return np.asarray(table[labels])


def remove_brain_fragments(labels: Mask) -> Mask:
    """Removes brain labels outside the largest connected component of the brain.

    On thick slices, label refinement scatters hundreds of small brain components over dura and scalp. Components of at
    least ``_MIN_BRAIN_PART`` of the largest are kept: a gap between slices, or between hemispheres, may divide a brain.

    Args:
        labels: uint8 (x, y, z), values of ``label_table``.

    Returns:
        A copy without the brain labels of the other components; labels that are not of the brain are unchanged.
    """
    brain = np.isin(labels, values_of("brain"))
    fragments = filter_components(brain, lambda sizes: sizes < _MIN_BRAIN_PART * sizes.max(), FACES)
    return np.where(fragments, np.uint8(0), labels)


def _fragments(mask: BoolArray) -> BoolArray:
    """Components that are small compared with the largest one."""
    return filter_components(mask, lambda sizes: sizes < _MIN_FRAGMENT * sizes.max(), FACES)


def _filled(brain: BoolArray) -> BoolArray:
    from scipy import ndimage

    box = crop_to(brain)
    return box.invert(np.asarray(ndimage.binary_fill_holes(box.apply(brain))))


@dataclass(frozen=True)
class RegionFiles:
    """Files written by ``write_regions``; ``tables`` as of ``write_label_tables``."""

    brain: Path
    regions: Path
    tables: dict[str, Path]


def write_regions(scan: Path, folder: Path, weights: Path, device: torch.device | str = "cpu") -> RegionFiles:
    """Estimates the regions of a scan in a file and writes them on its exact grid.

    Writes ``<name>_brain.nii.gz`` (0 and 1), ``<name>_regions.nii.gz`` (values of the table) and its label table
    (``<name>_regions.tsv`` and the forms of ITK-SNAP, FSLeyes and FreeSurfer), each atomically.

    Args:
        scan: Any image that ``volume.io.read`` reads.
        folder: Folder of the files; it is made if necessary.
        weights: As in ``find_regions``.
        device: Device of the network.

    Raises:
        VolumeError: The scan cannot be read, is empty, shows no brain, or a file cannot be written.
        WeightsError: The weights are missing or damaged.
    """
    from pvs_model.volume.io import read, write_mask

    scan, folder = Path(scan), Path(folder)
    anatomy = find_regions(read(scan), weights, device)
    name = _bare_name(scan)
    brain, regions = (folder / f"{name}_{end}.nii.gz" for end in ("brain", "regions"))
    write_mask(brain, anatomy.brain, scan)
    write_labels(regions, anatomy.labels, scan)
    return RegionFiles(brain, regions, write_label_tables(folder, f"{name}_regions"))


def _bare_name(path: Path) -> str:
    from pvs_model.volume.itk import ITK_IO
    from pvs_model.volume.nifti import NIBABEL

    ending = next((e for e in (*NIBABEL, *ITK_IO) if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def write_labels(path: Path, labels: Mask, like: Path) -> None:
    """Writes a label map as NIfTI on the grid of an image, whose NIfTI header is copied as in ``write_mask``.

    Args:
        path: File to write.
        labels: uint8 (x, y, z), in the stored order of the image.
        like: The image.

    Raises:
        VolumeError: The image cannot be read, or the file cannot be written.
    """
    from pvs_model.volume.io import read_grid
    from pvs_model.volume.nifti import NIBABEL, nifti_header, open_nibabel, write_nifti

    extension = next((e for e in NIBABEL if like.name.lower().endswith(e)), None)
    header = open_nibabel(like, extension).nifti if extension is not None else None
    write_nifti(path, labels, nifti_header(read_grid(like).affine) if header is None else header.copy())
