"""Draws patches of unlabelled real scans: inserted PVS are foreground, tissue that holds none is background.

Simulated heads have smooth cortex and plain sulci; real ones show mimics of PVS. The anatomy network marks where PVS
cannot be: cortex, fluid, cerebellum and everything outside the brain, away from their borders, are background. PVS
inserted into white matter and deep nuclei (``simulation.insertion``) are foreground where they are visible. All other
tissue is ignored by the loss, for it may hold real PVS that nobody has marked.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from pvs_model.anatomy.inference import find_regions
from pvs_model.anatomy.regions import CLASS, REGIONS, STRUCTURES, Anatomy
from pvs_model.config import STANDARD_RANGE, NetworkConfig, is_thick
from pvs_model.datasets.insertion_sites import find_insertion_sites
from pvs_model.errors import PVSError, VolumeError
from pvs_model.files import sha256_of, write_tensors
from pvs_model.inference.weights import ANATOMY
from pvs_model.layouts.base import entries
from pvs_model.layouts.names import group
from pvs_model.nets.slices import stack_slices
from pvs_model.nets.text import TRAINING_TEMPLATES, prompt
from pvs_model.preprocessing.prepare import BRAIN_MARGIN_MM
from pvs_model.simulation import artefacts
from pvs_model.simulation.acquisition import MIN_NOISE
from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE, INDEX, OTHER_BRAIN
from pvs_model.simulation.insertion import InsertionParams, RealScan, estimate_noise, grow_pvs, local_mean
from pvs_model.simulation.parameters import draw_scene, without_mimics
from pvs_model.simulation.visibility import label_visible
from pvs_model.training.batch import UNKNOWN, Batch, flip
from pvs_model.training.simulated_patches import MARGIN
from pvs_model.types import SEQUENCES, Affine, Triple, Volume
from pvs_model.volume.geometry import choose_reference, dilate_mm, resample_onto, to_ras
from pvs_model.volume.intensity import clip_outliers, correct_bias, foreground
from pvs_model.volume.io import read

log = logging.getLogger(__name__)

#: Tissue of the simulator for each structure of the anatomy network; everything else is "other".
TISSUES_OF = {
    "WM": "white_matter", "CTX": "cortex", "CAU": "caudate", "PUT": "putamen", "PAL": "pallidum", "THA": "thalamus",
    "IC": "white_matter", "HIP": "hippocampus", "AMY": "cortex", "VDC": "ventral_dc", "LV": "ventricle",
    "V34": "ventricle", "MID": "brainstem", "BST": "brainstem", "CBL": "cerebellum_gm", "CSF": "csf",
}  # fmt: skip
#: Voxels within this distance of a structure that may hold PVS are not certain background.
SURE_MM = 1.2
#: Fractions of the patches around insertion sites, without the skull, and without some of the sequences.
IN_TISSUE, STRIPPED, DROPPED = 0.6, 0.75, 0.4
#: Slice thickness to which thin slices are averaged for 2D networks, mm.
SLABS_MM = (3.0, 7.0)
#: Slices of a 2D patch, of which the middle one is labelled.
SLICES = 3
#: Increased when the content of the cache changes.
CACHE_FORMAT = 2


@dataclass(frozen=True)
class UnlabelledScan:
    """Unlabelled scan with its parcellation. Arrays (x, y, z) are in RAS+ order.

    Attributes:
        background: Images, tissues and insertion sites.
        certain: bool, voxels that are background for certain.
        head, brain: bool, foreground of the reference with and without the skull.
        levels: (2, 3, 2) mean and deviation of each sequence within the head, then within the brain, as at inference.
    """

    background: RealScan
    certain: npt.NDArray[np.bool_]
    head: npt.NDArray[np.bool_]
    brain: npt.NDArray[np.bool_]
    levels: npt.NDArray[np.float64]

    @property
    def thickness_mm(self) -> float:
        """Slice thickness: the largest voxel spacing."""
        return max(self.background.voxel_mm)


def load_unlabelled_scans(folders: Sequence[Path], weights: Path, cache: Path | None = None) -> list[UnlabelledScan]:
    """Loads every usable scan in some folders and their subfolders.

    Files of different sequences in one folder are one scan; if a sequence occurs twice, each file is a scan.

    Args:
        folders: Folders of images whose names contain the sequence, or single image files.
        weights: Weights folder with the anatomy network.
        cache: Folder for what is derived from the images (about ten seconds each).

    Raises:
        VolumeError: There is no usable scan.
    """
    scans = []
    for images in _group_files(folders):
        name = next(iter(images.values())).name
        try:
            scans.append(load_unlabelled_scan(images, weights, cache))
        except PVSError as error:
            log.warning("%s: left out: %s", name, error)
    if not scans:
        places = ", ".join(map(str, folders))
        raise VolumeError(f"{places}: expected T1w, T2w or FLAIR images, got none that can be used")
    return scans


def _group_files(folders: Sequence[Path]) -> list[dict[str, Path]]:
    """Groups files into scans, each by sequence."""
    out: list[dict[str, Path]] = []
    for folder in folders:
        if folder.is_file():
            out += [{name: folder} for name in group([folder])]
            continue
        for place in [folder, *sorted(p for p in folder.rglob("*") if p.is_dir())]:
            files = group(path for path in entries(place) if path.is_file())
            if all(len(paths) == 1 for paths in files.values()):
                out += [{name: paths[0] for name, paths in files.items()}] if files else []
            else:
                out += [{name: path} for name, paths in files.items() for path in paths]
    return out


def load_unlabelled_scan(images: dict[str, Path], weights: Path, cache: Path | None = None) -> UnlabelledScan:
    """Loads one scan on the grid of its reference sequence.

    Raises:
        VolumeError: An image cannot be read, or shows no brain.
    """
    volumes = {name: to_ras(read(path))[0] for name, path in images.items()}
    reference = choose_reference(volumes)
    grid = volumes[reference].grid
    stack = np.zeros((3, *grid.shape), np.float32)
    for channel, name in enumerate(SEQUENCES):
        if name in volumes:
            stack[channel] = resample_onto(volumes[name], grid).data
    present = (SEQUENCES[0] in volumes, SEQUENCES[1] in volumes, SEQUENCES[2] in volumes)
    name = images[reference].name
    network = weights / ANATOMY
    checksum = sha256_of(network) if network.is_file() else ""  # the regions are those of this network
    digest = hashlib.sha256(f"{CACHE_FORMAT} {reference} {checksum}".encode())
    for sequence in sorted(images):
        digest.update(images[sequence].read_bytes())
    cached = cache / f"scan-{name}-{digest.hexdigest()[:12]}.safetensors" if cache is not None else None
    if cached is not None and cached.is_file():
        return _from_cache(cached, name, stack, present, grid.affine)
    anatomy = find_regions(volumes[reference], weights)
    scan = unlabelled_scan(name, stack, present, anatomy, volumes[reference])
    if cached is not None:
        _to_cache(cached, scan)
    return scan


def _to_cache(path: Path, scan: UnlabelledScan) -> None:
    part, masks = scan.background, {name: getattr(scan, name) for name in ("certain", "head", "brain")}
    arrays = {
        "tissues": part.tissues, "regions": part.regions, "insertion_sites": part.insertion_sites.astype(np.uint8),
        "fluid": np.array(part.csf_intensity), "levels": scan.levels,
    } | {name: mask.astype(np.uint8) for name, mask in masks.items()}  # fmt: skip
    write_tensors(path, arrays)


def _from_cache(
    path: Path, name: str, images: npt.NDArray[np.float32], present: tuple[bool, bool, bool], affine: Affine
) -> UnlabelledScan:
    from safetensors.numpy import load_file

    a = load_file(path)
    t1w, t2w, flair = (float(value) for value in a["fluid"])
    sites = a["insertion_sites"] > 0
    part = RealScan(name, images, present, a["tissues"], a["regions"], sites, (t1w, t2w, flair), affine)
    return UnlabelledScan(part, a["certain"] > 0, a["head"] > 0, a["brain"] > 0, a["levels"])


def unlabelled_scan(
    name: str, images: npt.NDArray[np.float32], present: tuple[bool, bool, bool], anatomy: Anatomy, reference: Volume
) -> UnlabelledScan:
    """Prepares a scan from arrays: tissues, regions, insertion sites, certain background and intensity levels.

    Args:
        name: Name of the scan.
        images: (3, x, y, z), raw, on the grid of the reference; zeros for a missing sequence.
        present: Whether each sequence is present.
        anatomy: Parcellation on the same grid.
        reference: Sequence whose grid it is.

    Raises:
        VolumeError: There is no insertion site, or thick slices are not axial.
    """
    spacing = reference.spacing_mm
    if is_thick(max(spacing[:2])):
        raise VolumeError(f"{name}: expected axial slices where they are thick, got a spacing of {spacing}")
    tissues = np.full(anatomy.labels.shape, INDEX["other"], np.uint8)
    may_hold = np.zeros(anatomy.labels.shape, bool)
    for short, tissue in TISSUES_OF.items():
        structure = STRUCTURES[CLASS[short] - 1]
        here = np.isin(anatomy.labels, [v for v in (structure.left, structure.right) if v is not None])
        tissues[here] = INDEX[tissue]
        if short in REGIONS["PVS"]:
            may_hold |= here
    regions = np.where(anatomy.mask("parenchyma"), OTHER_BRAIN, 0).astype(np.uint8)
    regions[anatomy.mask("WM")] = CENTRUM_SEMIOVALE
    regions[anatomy.mask("BG")] = BASAL_GANGLIA
    head = foreground(reference.data)
    brain = head & dilate_mm(anatomy.brain | anatomy.mask("intracranial"), BRAIN_MARGIN_MM, spacing)
    corrected = images.copy()
    for channel in np.flatnonzero(present):
        corrected[channel] = correct_bias(Volume(images[channel], reference.affine), brain).data
    sites = find_insertion_sites(images, corrected, present, tissues, brain & anatomy.brain, spacing)
    if not sites.mask.any():
        raise VolumeError(f"{name}: expected white matter or deep nuclei that PVS can be inserted into, got none")
    distance = ndimage.distance_transform_edt(~may_hold, sampling=[1e3 if is_thick(s) else s for s in spacing])
    levels = np.zeros((2, 3, 2))
    for row, mask in enumerate((head, brain)):
        for channel in np.flatnonzero(present):
            inside = images[channel][mask & (images[channel] != 0)].astype(np.float64)
            values = clip_outliers(inside) if len(inside) else np.zeros(1)
            levels[row, channel] = values.mean(), max(float(values.std()), 1e-6)
    background = RealScan(name, images, present, tissues, regions, sites.mask, sites.csf_intensity, reference.affine)
    return UnlabelledScan(background, distance > SURE_MM, head, brain, levels)


class RealScanPatches:
    """Random patches of real scans with inserted PVS, each a function of its number alone."""

    def __init__(self, scans: Sequence[UnlabelledScan], config: NetworkConfig, patch: int, seed: int) -> None:
        """
        Args:
            scans: Scans of any slice thickness. 3D networks use those below 2.5 mm, 2D networks all (thin slices are
                averaged).
            config: Network that the patches are for.
            patch: Side of a patch, voxels.
            seed: Seed of every draw.

        Raises:
            VolumeError: The network can use none of the scans.
        """
        self.scans = [s for s in scans if config.dimensions == 2 or not is_thick(s.thickness_mm)]
        if not self.scans:
            raise VolumeError("--scans: expected scans with slices below 2.5 mm for a 3D network, got none")
        self.config, self.patch, self.seed = config, patch, seed

    def sample(self, number: int) -> Batch:
        """Draws one patch by its number: position, sequences, inserted PVS, blur, noise, contrast and prompt."""
        seed = self.seed * 5_000_011 + number
        rng = random.Random(seed)
        scan = rng.choice(self.scans)
        available = [c for c in range(3) if scan.background.present[c]]
        present = rng.sample(available, rng.randint(1, len(available))) if rng.random() < DROPPED else available
        spacing, merged = scan.background.voxel_mm, 1
        if self.config.dimensions == 2 and not is_thick(spacing[2]):
            merged = max(2, round(rng.uniform(*SLABS_MM) / spacing[2]))
        side = self.patch + 2 * MARGIN
        sides = (side, side, SLICES * merged if self.config.dimensions == 2 else side)
        piece = self._crop(scan, sides, rng)
        voxel: Triple = (spacing[0], spacing[1], spacing[2] * merged)
        images, cnr, pvs_fraction = self._acquire(piece, present, merged, voxel, seed, rng)

        def merge(mask: npt.NDArray[np.bool_]) -> Tensor:
            return -F.max_pool3d(-torch.from_numpy(mask)[None, None].float(), (1, 1, merged))[0, 0]  # the whole slab

        label, faint = label_visible(cnr, voxel, pvs_fraction)
        certain = merge(piece.certain) > 0
        ignore = (~certain & ~label) | faint
        target = torch.stack([label.float(), ignore.float(), torch.where(ignore, torch.tensor(UNKNOWN), pvs_fraction)])
        stripped = rng.random() < STRIPPED
        row, mask = (1, piece.brain) if stripped else (0, piece.head)
        inside = F.avg_pool3d(torch.from_numpy(mask)[None, None].float(), (1, 1, merged))[0, 0] >= 0.5
        for c in range(3):
            if c not in present:
                images[c] = 0
                continue
            mean, deviation = scan.levels[row, c]
            z = (images[c] - float(mean)) / float(deviation) * float(np.exp(rng.gauss(0, 0.15))) + rng.gauss(0, 0.15)
            images[c] = torch.where(inside & (images[c] != 0), z.clamp(*STANDARD_RANGE), torch.zeros_like(z))
        crop = [slice(s, s + self.patch) for s in (rng.randint(0, 2 * MARGIN) for _ in range(self.config.dimensions))]
        if self.config.dimensions == 2:
            middle = SLICES // 2
            images = stack_slices(images[:, crop[0], crop[1]], self.config.neighbour_slices)[middle]
            target = target[:, crop[0], crop[1], middle]
        else:
            images, target = (x[(slice(None), *crop)] for x in (images, target))
        images, target = flip(images, target, rng)
        names = [SEQUENCES[c] for c in sorted(present)]
        text = prompt(names, max(voxel), "brain", rng.choice(TRAINING_TEMPLATES))
        return Batch(images.contiguous()[None], target.contiguous()[None], [text])

    def _crop(self, scan: UnlabelledScan, sides: tuple[int, int, int], rng: random.Random) -> UnlabelledScan:
        """Crops a box of a scan, padded with zeros beyond the scan."""
        whole = scan.background
        where = whole.insertion_sites if rng.random() < IN_TISSUE else scan.head
        flat = np.flatnonzero(where)
        centre = np.unravel_index(int(flat[rng.randrange(len(flat))]), where.shape)
        low = [int(c) - n // 2 + rng.randint(-n // 6, n // 6) for c, n in zip(centre, sides, strict=True)]

        def cut(array: Any, fill: int = 0) -> Any:
            inner, pad = [], []
            for start, n, length in zip(low, sides, array.shape[-3:], strict=True):
                a, b = min(max(0, start), length), min(max(0, start + n), length)
                inner.append(slice(a, b))
                pad.append((min(n, max(0, -start)), n - (b - a) - min(n, max(0, -start))))
            before = [(0, 0)] * (array.ndim - 3)
            return np.pad(array[(..., *inner)], [*before, *pad], constant_values=fill)

        part = replace(
            whole, images=cut(whole.images), tissues=cut(whole.tissues, INDEX["other"]), regions=cut(whole.regions),
            insertion_sites=cut(whole.insertion_sites),
        )  # fmt: skip
        return UnlabelledScan(part, cut(scan.certain, 1), cut(scan.head), cut(scan.brain), scan.levels)

    def _acquire(
        self, piece: UnlabelledScan, present: Sequence[int], merged: int, voxel: Triple, seed: int, rng: random.Random
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inserts PVS and degrades the images a little.

        Returns:
            Images (3, x, y, z), contrast-to-noise ratio and PVS fraction (x, y, z).
        """
        part = piece.background
        x, y, z = part.insertion_sites.shape
        drawn = draw_scene(seed, (x, y, z), part.voxel_mm, empty_share=0.15)
        scene = without_mimics(drawn)
        psf = (rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6))
        pvs_fraction, signal, _ = grow_pvs(part, InsertionParams(scene, (0.15, 1.0), psf))
        generator = torch.Generator().manual_seed(seed)

        def merge(values: Tensor) -> Tensor:
            return F.avg_pool3d(values[None], (1, 1, merged))[0]

        shape = (x, y, z // merged)
        images, cnr = torch.zeros(3, *shape), torch.zeros(shape)
        sites = merge(torch.from_numpy(part.insertion_sites)[None].float())[0].numpy() > 0.5
        worse = rng.uniform(0.2, 0.7) if rng.random() < 0.3 else 0.0
        ratio = rng.uniform(1.2, 2.0) if rng.random() < 0.2 else 1.0
        for c in present:
            image = part.images[c]
            blur = tuple(0.0 if is_thick(v) else psf[c] for v in part.voxel_mm)
            share = artefacts.blur(torch.from_numpy(signal)[None], blur)  # type: ignore[arg-type]
            contrast = np.float32(part.csf_intensity[c]) - local_mean(image, part.insertion_sites, part.voxel_mm)
            layers = merge(torch.cat([torch.from_numpy(image)[None], share * torch.from_numpy(contrast)]))
            in_plane = (worse, worse, 0.0 if is_thick(voxel[2]) else worse)
            layers = artefacts.blur(layers, in_plane)
            layers = artefacts.regrid(layers, ratio, ratio / 2, 0)
            scale = float(np.median(np.abs(contrast[part.insertion_sites]))) if part.insertion_sites.any() else 0.0
            added = scale * rng.uniform(0.0, 0.06) if rng.random() < 0.5 else 0.0
            noise = max(np.hypot(estimate_noise(layers[0].numpy(), sites), added), MIN_NOISE * scale, 1e-6)
            cnr = torch.maximum(cnr, layers[1].abs() / float(noise))
            drawn_noise = torch.randn(shape, generator=generator) * added
            images[c] = torch.where(layers[0] != 0, layers.sum(0) + drawn_noise, layers[0])
        return images, cnr, merge(torch.from_numpy(pvs_fraction)[None])[0]
