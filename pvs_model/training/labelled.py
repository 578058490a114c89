"""Random patches of labelled cases, for training and for validation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pvs_model.config import NetworkConfig
from pvs_model.datasets.labelled_cases import REGION_VALUES, LabelledCase
from pvs_model.nets.slices import stack_slices
from pvs_model.nets.text import TRAINING_TEMPLATES, prompt
from pvs_model.training.data import UNKNOWN, Batch, flipped
from pvs_model.types import SEQUENCES

#: Share of the patches that hold a PVS for sure, and of those from which sequences are taken away.
PVS_SHARE, DROP_SHARE = 0.5, 0.4
#: Standard deviations of what is added to an image and of the logarithm of what it is multiplied by.
SHIFT_SD, SCALE_SD = 0.1, 0.1


class LabelledCases:
    """Random patches of labelled cases, each a function of its number alone.

    Half of them hold a PVS voxel near their middle, half lie anywhere in the head. They are flipped, their
    intensities jittered a little, sequences are taken away at random, and the prompt says what is left and,
    where there are region masks, now and then which region is asked for.
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
        """A patch to train on, from its number."""
        rng = random.Random(self.seed * 9_000_011 + number)
        case = rng.choice(self.cases)
        region = rng.choice(case.asked) if case.asked and rng.random() < self.region_share else "brain"
        image, target = self._cut(case, self._place(case, region, rng), region)
        there = rng.random() >= DROP_SHARE
        present = list(case.present) if there else _some(case.present, rng)
        image = self._jittered(image, present, rng)
        image, target = flipped(image, target, rng)
        words = prompt(present, case.thickness_mm, region, rng.choice(TRAINING_TEMPLATES))
        return Batch(image.contiguous()[None], target.contiguous()[None], [words])

    def fixed(self, number: int) -> Batch:
        """A patch to validate on: nothing is changed, all is asked for in the standard words; cases take turns."""
        rng = random.Random(self.seed * 9_000_011 + number)
        case = self.cases[number % len(self.cases)]
        image, target = self._cut(case, self._place(case, "brain", rng), "brain")
        return Batch(image.contiguous()[None], target.contiguous()[None], [prompt(case.present, case.thickness_mm)])

    def _place(self, case: LabelledCase, region: str, rng: random.Random) -> list[int]:
        """The voxel that a patch is centred on, give or take a quarter of its side."""
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
        axes = self.config.dimensions  # a slice is taken as it is
        return [v + rng.randint(-reach, reach) if axis < axes else v for axis, v in enumerate(voxel)]

    def _cut(self, case: LabelledCase, centre: list[int], region: str) -> tuple[Tensor, Tensor]:
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
        # Annotators mark what they see: nothing is ignored, and how much fluid a voxel holds is not known.
        target = torch.stack([label.float(), torch.zeros(label.shape), torch.full(label.shape, UNKNOWN)])
        return F.pad(image, missing), F.pad(target, missing)

    def _jittered(self, image: Tensor, present: Sequence[str], rng: random.Random) -> Tensor:
        """Other scale and level for each sequence within the head, zeros for those taken away."""
        sequences = image.unflatten(0, (len(SEQUENCES), -1)).clone()
        for channel, name in enumerate(SEQUENCES):
            scale, shift = float(np.exp(rng.gauss(0, SCALE_SD))), rng.gauss(0, SHIFT_SD)
            if name not in present:
                sequences[channel] = 0
                continue
            values = sequences[channel]
            sequences[channel] = torch.where(values == 0, values, (values * scale + shift).clamp(-4, 8))
        return sequences.flatten(0, 1)


def _some(present: Sequence[str], rng: random.Random) -> list[str]:
    """At least one of the sequences, and not all where there are several."""
    count = rng.randint(1, max(1, len(present) - 1))
    chosen = rng.sample(list(present), count)
    return [name for name in SEQUENCES if name in chosen]
