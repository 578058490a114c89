"""Anatomies from files, and an endless stream of simulated patches with prompts."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor

from pvs_model.config import NetworkConfig
from pvs_model.errors import VolumeError
from pvs_model.nets.slices import stack_slices
from pvs_model.nets.text import TRAINING_TEMPLATES, prompt
from pvs_model.synth.anatomy import BASAL_GANGLIA, CENTRUM_SEMIOVALE, Anatomy, build
from pvs_model.synth.engine import Scene, acquire, draw_scan, draw_scene, draw_voxel, render, standardise
from pvs_model.training.distributed import ALONE, Ranks
from pvs_model.types import SEQUENCES

#: Fine grids get a margin, so that blurs and shifts bring nothing invented into the patch.
MARGIN = 4
#: One scene in so many is kept as drawn; the others hold at least ``FEW_VOXELS`` if ``ATTEMPTS`` draws bring them.
EMPTY_EVERY, FEW_VOXELS, ATTEMPTS = 3, 12, 3
#: Axes (RAS) of the planes of a view, the one across them last.
PLANE_AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
REGION_VALUES = {"basal ganglia": BASAL_GANGLIA, "centrum semiovale": CENTRUM_SEMIOVALE}
#: The arrays of an anatomy.
TENSORS = ("tissues", "regions", "field", "histogram")


def load_anatomy(path: Path, cache: Path | None = None) -> Anatomy:
    """An anatomy from a label map with FreeSurfer ids, of any orientation and spacing.

    Args:
        path: ``.nii``, ``.nii.gz`` or ``.mgz``.
        cache: folder that keeps the prepared anatomy (building takes some 10 s).

    Raises:
        VolumeError: when the file cannot be read or holds no FreeSurfer ids.
    """
    kept = cache / f"{path.name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}.safetensors" if cache else None
    if kept is not None and kept.is_file():
        return replace(kept_anatomy(kept), name=path.name)
    from pvs_model.volume.geometry import to_ras
    from pvs_model.volume.io import read

    volume, _ = to_ras(read(path))
    labels = np.rint(volume.data).astype(np.int32)
    zoom = np.asarray(volume.spacing_mm)
    if not np.allclose(zoom, 1.0, atol=0.02):
        labels = ndimage.zoom(labels, zoom, order=0, grid_mode=True, mode="nearest")
    anatomy = build(labels, path.name)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        keep_anatomy(kept, anatomy)
    return anatomy


def keep_anatomy(path: Path, anatomy: Anatomy) -> None:
    """Write a prepared anatomy as safetensors."""
    # The processes of one run may share a cache.
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file({name: getattr(anatomy, name).contiguous() for name in TENSORS}, part, metadata={
        "name": anatomy.name, "whole_head": str(int(anatomy.whole_head)),
    })  # fmt: skip
    part.replace(path)


def kept_anatomy(path: Path) -> Anatomy:
    """An anatomy as ``keep_anatomy`` wrote it. Its arrays stay in the file until they are looked at."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tissues, regions, field, histogram = (file.get_tensor(name) for name in TENSORS)
    return Anatomy(metadata.get("name", path.stem), tissues, regions, field, histogram, metadata["whole_head"] == "1")


def label_maps(folder: Path) -> list[Path]:
    """Label map files of a folder, sorted by name.

    Raises:
        VolumeError: when the folder is missing or holds none.
    """
    visible = (p for p in folder.glob("*") if not p.name.startswith("."))  # macOS leaves ._NAME beside each file
    paths = sorted(p for p in visible if p.name.lower().endswith((".nii", ".nii.gz", ".mgz")))
    if not paths:
        raise VolumeError(f"{folder}: expected label maps (.nii.gz with FreeSurfer ids), found none")
    return paths


@dataclass(frozen=True)
class Batch:
    """images (B, C, *spatial) float32, label (B, 1, *spatial) float32 0/1, one prompt per sample."""

    images: Tensor
    label: Tensor
    prompts: list[str]


def join(parts: Sequence[Batch], device: torch.device) -> Batch:
    """Batches end to end, on a device."""
    return Batch(
        torch.cat([part.images.to(device) for part in parts]),
        torch.cat([part.label.to(device) for part in parts]),
        [words for part in parts for words in part.prompts],
    )


def flipped(image: Tensor, label: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    """An image (C, *spatial) and its label flipped alike.

    Left and right are alike; now and then any axis, for scans in unusual orientations.
    """
    axes = [a for a in range(1, image.ndim) if rng.random() < (0.5 if a == 1 else 0.1)]
    return (image.flip(axes), label.flip(axes)) if axes else (image, label)


class PatchStream:
    """Endless simulated patches, on the device of the anatomies.

    Scenes are rendered once and kept in a pool; each visit draws a new scan of one (contrast, noise,
    blur, missing sequences), a new crop, a flip, and a prompt. Every ``refresh`` samples a new scene joins
    the pool, and the oldest leaves a full one. Which scenes a visit chooses from, and which it takes,
    follows from its number alone, so a stream set to ``visits`` goes on as if it had never stopped.

    Of several processes each has scenes and visits of its own: ``ranks`` turns their numbers into those
    that seeds are made of.
    """

    def __init__(
        self,
        anatomies: Sequence[Anatomy],
        config: NetworkConfig,
        patch: int,
        seed: int,
        pool: int = 300,
        refresh: int = 3,
        region_share: float = 0.2,
        ranks: Ranks = ALONE,
        coverage: float | None = None,
    ) -> None:
        self.anatomies = anatomies
        self.config = config
        self.patch = patch
        self.seed = seed
        self.capacity = pool
        self.refresh = refresh
        self.region_share = region_share
        self.ranks = ranks
        self.coverage = coverage
        self.scenes: dict[int, Scene] = {}
        self.visits = 0
        #: Where scenes come from by their number; None: ``render``, when they are first taken.
        self.source: Callable[[int], Scene] | None = None

    def render(self, number: int) -> Scene:
        """Render a scene of this stream by its number.

        Left to chance, half of the small patches hold no PVS: two in three of those are drawn again, a
        few times at most. More would teach the network a world too full of PVS.
        """
        side, view = self.patch + 2 * MARGIN, self.config.view
        shape = (side, side, side if self.config.dimensions == 3 else 5)
        if view:  # planes of a volume with thin slices
            shape = tuple(5 if axis == PLANE_AXES[view][2] else side for axis in range(3))  # type: ignore[assignment]
        for attempt in range(1 if number % EMPTY_EVERY == 0 else ATTEMPTS):
            seed = (self.seed * 1_000_003 + number) * ATTEMPTS + attempt
            rng = random.Random(seed)
            voxel, plane = draw_voxel(seed, 3 if view else self.config.dimensions)
            plane = "axial" if view else plane  # the view is that of the head
            scene = render(draw_scene(seed, shape, voxel, plane), rng.choice(self.anatomies))
            if int(scene.label.sum()) >= FEW_VOXELS:
                break
        return scene

    def sample(self, scene: Scene, seed: int, region: str | None = None, template: int | None = None) -> Batch:
        """One patch of a scene: a new scan, crop, flip and prompt, all from ``seed``."""
        rng = random.Random(seed)
        scan_params = draw_scan(seed, 3 if self.config.view else self.config.dimensions)
        images = standardise(acquire(scene, scan_params), scene)
        label = scene.label if self.coverage is None else scene.coverage >= math.ceil(self.coverage * 255)
        if region is None:
            asked = rng.random() < self.region_share
            region = rng.choice(list(REGION_VALUES)) if asked else "brain"
        if region != "brain":
            label = label & (scene.regions == REGION_VALUES[region])
        if self.config.regions:
            images = torch.cat([images, (scene.regions > 0).to(images.dtype)[None]])
        if self.config.view:
            axes = PLANE_AXES[self.config.view]
            images, label = images.permute(0, *(a + 1 for a in axes)), label.permute(axes)
        start = [rng.randint(0, n - self.patch) for n in images.shape[1:3]]
        crop = [slice(s, s + self.patch) for s in start]
        if self.config.dimensions == 3:
            last = rng.randint(0, images.shape[3] - self.patch)
            crop.append(slice(last, last + self.patch))
            images, label = images[(slice(None), *crop)], label[tuple(crop)][None]
        else:
            z = rng.randint(1, images.shape[3] - 2)
            window = images[:, crop[0], crop[1], z - 1 : z + 2]
            images = stack_slices(window, self.config.neighbour_slices)[1]
            label = label[crop[0], crop[1], z][None]
        images, label = flipped(images, label, rng)
        present = [name for name, there in zip(SEQUENCES, scan_params.present, strict=True) if there]
        words = prompt(
            present, scene.thickness_mm, region, rng.choice(TRAINING_TEMPLATES) if template is None else template
        )
        return Batch(images.contiguous()[None], label.float().contiguous()[None], [words])

    def choose(self, visit: int) -> tuple[int, int]:
        """The number of the scene that a visit takes, and of the oldest scene still in the pool then."""
        newest = visit // self.refresh
        oldest = max(0, newest + 1 - self.capacity)
        own = random.Random(self._seed(visit)).randrange(oldest, newest + 1)
        return self.ranks.number(own), self.ranks.number(oldest)

    def _seed(self, visit: int) -> int:
        return self.seed * 7_000_003 + self.ranks.number(visit)

    def batch(self, size: int) -> Batch:
        """The next ``size`` samples."""
        parts = []
        for _ in range(size):
            number, oldest = self.choose(self.visits)
            self.scenes = {k: scene for k, scene in self.scenes.items() if k >= oldest}
            if number not in self.scenes:
                self.scenes[number] = (self.source or self.render)(number)
            parts.append(self.sample(self.scenes[number], self._seed(self.visits)))
            self.visits += 1
        return join(parts, parts[0].images.device)
