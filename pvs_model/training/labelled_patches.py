"""Draws random patches of labelled cases, for training and for validation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pvs_model.config import STANDARD_RANGE, NetworkConfig
from pvs_model.datasets.labelled_cases import REGION_VALUES, LabelledCase
from pvs_model.nets.slices import stack_slices
from pvs_model.nets.text import TRAINING_TEMPLATES, prompt
from pvs_model.training.batch import UNKNOWN, Batch, flip
from pvs_model.types import SEQUENCES

#: Fraction of the patches that are centred on a PVS, and of those from which sequences are dropped.
PVS_SHARE, DROP_SHARE = 0.5, 0.4
#: Standard deviations of the offset added to an image and of the logarithm of its gain.
SHIFT_SD, SCALE_SD = 0.1, 0.1


class LabelledPatches:
    """Random patches of labelled cases, each a function of its number alone.

    Half of them hold a PVS voxel near their middle, half lie anywhere in the head. They are flipped, their intensities
    are jittered, sequences are dropped at random, and the prompt names the remaining ones and, where there are region
    masks, sometimes a region.
    """

    def __init__(
        self,
        cases: Sequence[LabelledCase],
        config: NetworkConfig,
        patch: int,
        seed: int,
        region_share: float = 0.2,
    ) -> None:
        self.cases = list(cases)
        self.config = config
        self.patch = patch
        self.seed = seed
        self.region_share = region_share

    def sample(self, number: int) -> Batch:
        """Draws a training patch by its number."""
        rng = random.Random(self.seed * 9_000_011 + number)
        case = rng.choice(self.cases)
        region = rng.choice(case.asked) if case.asked and rng.random() < self.region_share else "brain"
        image, target = self._crop(case, self._centre(case, region, rng), region)
        complete = rng.random() >= DROP_SHARE
        present = list(case.present) if complete else _drop_sequences(case.present, rng)
        image = self._jitter(image, present, rng)
        image, target = flip(image, target, rng)
        text = prompt(present, case.thickness_mm, region, rng.choice(TRAINING_TEMPLATES))
        return Batch(image.contiguous()[None], target.contiguous()[None], [text])

    def fixed(self, number: int) -> Batch:
        """Draws a validation patch by its number: unchanged, with the standard prompt; cases take turns."""
        rng = random.Random(self.seed * 9_000_011 + number)
        case = self.cases[number % len(self.cases)]
        image, target = self._crop(case, self._centre(case, "brain", rng), "brain")
        return Batch(image.contiguous()[None], target.contiguous()[None], [prompt(case.present, case.thickness_mm)])

    def _centre(self, case: LabelledCase, region: str, rng: random.Random) -> list[int]:
        """Draws the central voxel of a patch, jittered by up to a quarter of its side."""
        voxel: list[int] | None = None
        if rng.random() < PVS_SHARE:
            points = case.points
            if region != "brain":
                x, y, z = points.long().T
                points = points[case.regions[x, y, z] == REGION_VALUES[region]]
            if len(points):
                voxel = points[rng.randrange(len(points))].tolist()
        while voxel is None:  # at least one voxel is inside
            drawn = [rng.randrange(n) for n in case.inside.shape]
            voxel = drawn if case.inside[tuple(drawn)] else None
        reach = self.patch // 4
        axes = self.config.dimensions  # slices are not jittered
        return [v + rng.randint(-reach, reach) if axis < axes else v for axis, v in enumerate(voxel)]

    def _crop(self, case: LabelledCase, centre: list[int], region: str) -> tuple[Tensor, Tensor]:
        """Image (C, *spatial) and target (3, *spatial), float32; zeros where the patch is larger than the case."""
        box = []
        for middle, n in zip(centre[: self.config.dimensions], case.label.shape, strict=False):
            start = min(max(0, middle - self.patch // 2), max(0, n - self.patch))
            box.append(slice(start, min(n, start + self.patch)))
        if self.config.dimensions == 2:
            z, reach = centre[2], self.config.neighbour_slices // 2
            low, high = max(0, z - reach), min(case.label.shape[2], z + reach + 1)
            window = case.image[(slice(None), *box, slice(low, high))].float()
            image = stack_slices(window, self.config.neighbour_slices)[z - low]
            where: tuple[Any, ...] = (*box, z)
        else:
            image = case.image[(slice(None), *box)].float()
            where = tuple(box)
        label = case.label[where] > 0
        if region != "brain":
            label = label & (case.regions[where] == REGION_VALUES[region])
        missing = [v for n in reversed(image.shape[1:]) for v in (0, self.patch - n)]
        # Annotators mark what they see: no voxel is ignored, and the PVS fraction is unknown.
        target = torch.stack([label.float(), torch.zeros(label.shape), torch.full(label.shape, UNKNOWN)])
        return F.pad(image, missing), F.pad(target, missing)

    def _jitter(self, image: Tensor, present: Sequence[str], rng: random.Random) -> Tensor:
        """Scales and shifts each sequence within the head, and sets dropped ones to zero."""
        sequences = image.unflatten(0, (len(SEQUENCES), -1)).clone()
        for channel, name in enumerate(SEQUENCES):
            scale, shift = float(np.exp(rng.gauss(0, SCALE_SD))), rng.gauss(0, SHIFT_SD)
            if name not in present:
                sequences[channel] = 0
                continue
            values = sequences[channel]
            sequences[channel] = torch.where(values == 0, values, (values * scale + shift).clamp(*STANDARD_RANGE))
        return sequences.flatten(0, 1)


def _drop_sequences(present: Sequence[str], rng: random.Random) -> list[str]:
    """Keeps at least one of the sequences, and not all of several."""
    count = rng.randint(1, max(1, len(present) - 1))
    chosen = rng.sample(list(present), count)
    return [name for name in SEQUENCES if name in chosen]
