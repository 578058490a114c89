"""Anatomies from files, and an endless stream of simulated patches with prompts."""

from __future__ import annotations

import hashlib
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
from pvs_model.datasets.labelled_cases import REGION_VALUES
from pvs_model.errors import VolumeError
from pvs_model.nets.slices import stack_slices
from pvs_model.nets.text import TRAINING_TEMPLATES, prompt
from pvs_model.synth.anatomy import BUILD_VERSION, Anatomy, build
from pvs_model.synth.engine import Scene, acquire, draw_scan, draw_scene, draw_voxel, render, standardise
from pvs_model.synth.params import with_clear_pvs
from pvs_model.synth.visibility import label_visible
from pvs_model.training.distributed import ALONE, Ranks
from pvs_model.types import SEQUENCES

#: Fine grids get a margin, so that blurs and shifts bring nothing invented into the patch.
MARGIN = 4
#: One scene of ``EMPTY_EVERY`` is kept as drawn; in the others PVS reach ``FEW_VOXELS`` if ``ATTEMPTS`` draws do it.
EMPTY_EVERY, FEW_VOXELS, ATTEMPTS = 3, 40, 3
#: Share of the 2D samples that are the slice with the most PVS of their scene.
PVS_SLICES = 0.25
#: Fluid fraction where it is not known.
UNKNOWN = -1.0
#: Axes (RAS) of the planes of a view, the one across them last.
PLANE_AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
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
    digest = hashlib.sha256(b"%d" % BUILD_VERSION + path.read_bytes()).hexdigest()[:12]
    kept = cache / f"{path.name}-{digest}.safetensors" if cache else None
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
    """Samples for one step.

    Attributes:
        images: float32 (B, C, *spatial).
        target: float32 (B, 3, *spatial): the label (0 or 1), voxels that losses and scores ignore (1; never labelled),
            and the fluid fraction (0 to 1; ``UNKNOWN`` where it is not known).
        prompts: one per sample.
    """

    images: Tensor
    target: Tensor
    prompts: list[str]

    @property
    def label(self) -> Tensor:
        """(B, 1, *spatial), 0 or 1."""
        return self.target[:, :1]

    @property
    def ignore(self) -> Tensor:
        """(B, 1, *spatial), 1 where losses and scores do not look."""
        return self.target[:, 1:2]


def join(parts: Sequence[Batch], device: torch.device) -> Batch:
    """Batches end to end, on a device."""
    return Batch(
        torch.cat([part.images.to(device) for part in parts]),
        torch.cat([part.target.to(device) for part in parts]),
        [words for part in parts for words in part.prompts],
    )


def flipped(image: Tensor, target: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    """An image (C, *spatial) and its target flipped alike.

    Left and right are alike; now and then any axis, for scans in unusual orientations.
    """
    axes = [a for a in range(1, image.ndim) if rng.random() < (0.5 if a == 1 else 0.1)]
    return (image.flip(axes), target.flip(axes)) if axes else (image, target)


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
        labels: str = "visibility",
        coverage: float | None = None,
        region_warmup: int = 0,
        clear_samples: int = 0,
    ) -> None:
        self.anatomies = anatomies
        self.config = config
        self.patch = patch
        self.seed = seed
        self.capacity = pool
        self.refresh = refresh
        self.region_share = region_share
        self.ranks = ranks
        self.labels = labels
        self.coverage = coverage
        self.region_warmup = region_warmup
        self.clear_scenes = clear_samples // refresh
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
            params = draw_scene(seed, shape, voxel, plane)
            if number < self.clear_scenes:
                params = with_clear_pvs(params)
            scene = render(params, rng.choice(self.anatomies))
            if len(scene.pvs_index) >= FEW_VOXELS:
                break
        return scene

    def sample(
        self, scene: Scene, seed: int, region: str | None = None, template: int | None = None, asks: bool = True
    ) -> Batch:
        """One patch of a scene: a new scan, crop, flip and prompt, all from ``seed``.

        Args:
            scene: what is scanned.
            seed: of every draw.
            region: that the prompt asks for; drawn when None.
            template: of the prompt; drawn when None.
            asks: whether a drawn prompt may ask for a region.
        """
        rng = random.Random(seed)
        scan_params = draw_scan(seed, 3 if self.config.view else self.config.dimensions)
        scan = acquire(scene, scan_params)
        images = standardise(scan, scene)
        if self.labels == "coverage":
            label = scene.label(self.coverage)
            ignore = torch.zeros_like(label)
        else:
            label, ignore = label_visible(scan.cnr, scene.voxel_mm, scene.coverage.float() / 255)
        target = torch.stack([label.float(), ignore.float(), scene.coverage.float() / 255])
        if region is None:
            asked = rng.random() < self.region_share and asks
            region = rng.choice(list(REGION_VALUES)) if asked else "brain"
        if region != "brain":
            target = target * (scene.regions == REGION_VALUES[region])
        if self.config.regions:
            images = torch.cat([images, (scene.regions > 0).to(images.dtype)[None]])
        if self.config.view:
            axes = (0, *(a + 1 for a in PLANE_AXES[self.config.view]))
            images, target = images.permute(axes), target.permute(axes)
        start = [rng.randint(0, n - self.patch) for n in images.shape[1:3]]
        crop = [slice(s, s + self.patch) for s in start]
        if self.config.dimensions == 3:
            last = rng.randint(0, images.shape[3] - self.patch)
            crop.append(slice(last, last + self.patch))
            images, target = (x[(slice(None), *crop)] for x in (images, target))
        else:
            z = rng.randint(1, images.shape[3] - 2)
            if rng.random() < PVS_SLICES and target[0, :, :, 1:-1].any():
                z = 1 + int(target[0, :, :, 1:-1].sum((0, 1)).argmax())
            window = images[:, crop[0], crop[1], z - 1 : z + 2]
            images = stack_slices(window, self.config.neighbour_slices)[1]
            target = target[:, crop[0], crop[1], z]
        images, target = flipped(images, target, rng)
        present = [name for name, there in zip(SEQUENCES, scan_params.present, strict=True) if there]
        words = prompt(
            present, scene.thickness_mm, region, rng.choice(TRAINING_TEMPLATES) if template is None else template
        )
        return Batch(images.contiguous()[None], target.contiguous()[None], [words])

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
            asks = self.visits * self.ranks.count >= self.region_warmup
            parts.append(self.sample(self.scenes[number], self._seed(self.visits), asks=asks))
            self.visits += 1
        return join(parts, parts[0].images.device)
