"""Draws an endless stream of simulated patches with prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pvs_model.config import NetworkConfig
from pvs_model.datasets.labelled_cases import REGION_VALUES
from pvs_model.nets.slices import stack_slices
from pvs_model.nets.text import TRAINING_TEMPLATES, prompt
from pvs_model.simulation.acquisition import Scan, acquire, standardise
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.parameters import draw_scan, draw_scene, draw_voxel, with_clear_pvs
from pvs_model.simulation.render import DIAMETER_UNIT_MM, Scene, render
from pvs_model.simulation.visibility import label_visible
from pvs_model.training.batch import Batch, flip, join
from pvs_model.training.distributed import SINGLE_PROCESS, DistributedContext
from pvs_model.types import PLANES, SEQUENCES

#: Margin of scenes around a patch, in voxels, so that blurs and shifts bring no invented border into the patch.
MARGIN = 4
#: One scene in ``EMPTY_EVERY`` is kept as drawn; the others are redrawn until PVS fill ``FEW_VOXELS``, up to
#: ``ATTEMPTS`` times.
EMPTY_EVERY, FEW_VOXELS, ATTEMPTS = 3, 40, 3
#: Fraction of the 2D samples that are the slice with the most PVS of their scene.
PVS_SLICES = 0.25


class SimulatedPatches:
    """Endless simulated patches, on the device of the anatomies.

    Scenes are rendered once and kept in a buffer. Each sample draws a new scan of one of them (contrast, noise, blur,
    missing sequences), a new crop, a flip and a prompt. Every ``refresh_interval`` samples a new scene joins the buffer
    and, once it is full, replaces the oldest. The scene of a sample follows from the sample's index alone, so setting
    ``sample_index`` continues the stream exactly.

    With several processes, each has scenes and samples of its own: ``context`` maps their indices to global ones, from
    which seeds are made.
    """

    def __init__(
        self,
        anatomies: Sequence[HeadModel],
        config: NetworkConfig,
        patch: int,
        seed: int,
        scene_buffer: int = 300,
        refresh_interval: int = 3,
        region_share: float = 0.2,
        context: DistributedContext = SINGLE_PROCESS,
        labels: str = "visibility",
        coverage: float | None = None,
        region_warmup: int = 0,
        clear_samples: int = 0,
    ) -> None:
        """
        Args:
            anatomies: Heads to simulate from.
            config: Network that the patches are for.
            patch: Side of a patch, voxels.
            seed: Seed of every draw.
            scene_buffer, refresh_interval, region_share, labels, coverage, region_warmup, clear_samples: As in
                ``TrainingConfig``.
            context: Processes that train together.
        """
        self.anatomies = anatomies
        self.config = config
        self.patch = patch
        self.seed = seed
        self.scene_buffer = scene_buffer
        self.refresh_interval = refresh_interval
        self.region_share = region_share
        self.context = context
        self.labels = labels
        self.coverage = coverage
        self.region_warmup = region_warmup
        self.clear_scenes = clear_samples // refresh_interval
        self.scenes: dict[int, Scene] = {}
        #: Index of the next sample.
        self.sample_index = 0
        #: Source of scenes by their number; None to render each when it is first used.
        self.source: Callable[[int], Scene] | None = None

    def render(self, number: int) -> Scene:
        """Renders a scene by its number.

        Half of the small patches would hold no PVS: two in three of those are drawn again, a few times at most. More
        would bias the network towards PVS.
        """
        side, view = self.patch + 2 * MARGIN, self.config.view
        shape = (side, side, side if self.config.dimensions == 3 else 5)
        if view:  # planes of a volume with thin slices
            shape = tuple(5 if axis == PLANES[view][2] else side for axis in range(3))  # type: ignore[assignment]
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
        self,
        scene: Scene,
        seed: int,
        region: str | None = None,
        template: int | None = None,
        ask_region: bool = True,
        with_diameter: bool = False,
    ) -> Batch:
        """Draws one patch of a scene: a new scan, crop, flip and prompt, all from ``seed``.

        Args:
            scene: Scene to scan.
            seed: Seed of every draw.
            region: Region in the prompt; drawn when None.
            template: Template of the prompt; drawn when None.
            ask_region: Whether a drawn prompt may ask for a region.
            with_diameter: Whether the target has a channel with the diameter of tubes, mm (for validation).
        """
        rng = random.Random(seed)
        scan_params = draw_scan(seed, 3 if self.config.view else self.config.dimensions)
        scan = acquire(scene, scan_params)
        images, target = standardise(scan, scene), self._target(scene, scan)
        if with_diameter:
            target = torch.cat([target, scene.diameter[None] * DIAMETER_UNIT_MM])
        if region is None:
            by_region = rng.random() < self.region_share and ask_region
            region = rng.choice(list(REGION_VALUES)) if by_region else "brain"
        if region != "brain":
            target = target * (scene.regions == REGION_VALUES[region])
        if self.config.regions:
            images = torch.cat([images, (scene.regions > 0).to(images.dtype)[None]])
        if self.config.view:
            axes = (0, *(a + 1 for a in PLANES[self.config.view]))
            images, target = images.permute(axes), target.permute(axes)
        images, target = flip(*self._crop(images, target, rng), rng)
        present = [name for name, there in zip(SEQUENCES, scan_params.present, strict=True) if there]
        template = rng.choice(TRAINING_TEMPLATES) if template is None else template
        text = prompt(present, scene.thickness_mm, region, template)
        return Batch(images.contiguous()[None], target.contiguous()[None], [text])

    def _target(self, scene: Scene, scan: Scan) -> Tensor:
        """The label, the ignored voxels and the PVS fraction (3, X, Y, Z) of a scan."""
        fraction = scene.pvs_fraction.float() / 255
        if self.labels == "coverage":
            label = scene.label_by_fraction(self.coverage)
            ignore = torch.zeros_like(label)
        else:
            label, ignore = label_visible(scan.cnr, scene.voxel_mm, fraction)
        return torch.stack([label.float(), ignore.float(), fraction])

    def _crop(self, images: Tensor, target: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Crops images and target (C, X, Y, Z) to a random patch; in 2D to one slice, stacked with its neighbours."""
        start = [rng.randint(0, n - self.patch) for n in images.shape[1:3]]
        crop = [slice(s, s + self.patch) for s in start]
        if self.config.dimensions == 3:
            last = rng.randint(0, images.shape[3] - self.patch)
            crop.append(slice(last, last + self.patch))
            return images[(slice(None), *crop)], target[(slice(None), *crop)]
        z = rng.randint(1, images.shape[3] - 2)
        if rng.random() < PVS_SLICES and target[0, :, :, 1:-1].any():
            z = 1 + int(target[0, :, :, 1:-1].sum((0, 1)).argmax())
        window = images[:, crop[0], crop[1], z - 1 : z + 2]
        return stack_slices(window, self.config.neighbour_slices)[1], target[:, crop[0], crop[1], z]

    def choose(self, index: int) -> tuple[int, int]:
        """Returns the number of a sample's scene, and that of the oldest scene in the buffer at that time."""
        newest = index // self.refresh_interval
        oldest = max(0, newest + 1 - self.scene_buffer)
        own = random.Random(self._seed(index)).randrange(oldest, newest + 1)
        return self.context.global_index(own), self.context.global_index(oldest)

    def _seed(self, index: int) -> int:
        return self.seed * 7_000_003 + self.context.global_index(index)

    def batch(self, size: int) -> Batch:
        """Draws the next ``size`` samples."""
        parts = []
        for _ in range(size):
            number, oldest = self.choose(self.sample_index)
            self.scenes = {k: scene for k, scene in self.scenes.items() if k >= oldest}
            if number not in self.scenes:
                self.scenes[number] = (self.source or self.render)(number)
            ask_region = self.sample_index * self.context.count >= self.region_warmup
            parts.append(self.sample(self.scenes[number], self._seed(self.sample_index), ask_region=ask_region))
            self.sample_index += 1
        return join(parts, parts[0].images.device)
