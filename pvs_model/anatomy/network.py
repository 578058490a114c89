"""Defines the anatomy network: a U-Net on a folded grid, a class per structure and a channel for the side."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pvs_model.anatomy.regions import CLASSES
from pvs_model.anatomy.unet import UNet
from pvs_model.nets.checkpoint import load_as

#: Working resolution in mm, isotropic.
SPACING_MM = 2.0

#: Side of the cells over which the mean signal of a class is local, voxels.
CELL = 16
#: Minimum variance of the signal within a class, for a range of 1.
MIN_VARIANCE = 0.03**2


@dataclass(frozen=True)
class AnatomyConfig:
    """Shape of the network.

    Attributes:
        widths: Channels per level, the finest at twice ``SPACING_MM``.
        classes: Number of structures and background.
        guides: Channels from the U-Net to the border convolution, in addition to the classes.
        border_width: Channels of the border convolution.
    """

    widths: tuple[int, ...] = (32, 64, 112, 144)
    classes: int = CLASSES
    guides: int = 6
    border_width: int = 16

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> AnatomyConfig:
        """Parses what ``to_json`` wrote; raises TypeError, ValueError or KeyError for anything else."""
        fields = json.loads(text)
        return AnatomyConfig(**{**fields, "widths": tuple(fields["widths"])})


class AnatomyNet(nn.Module):
    """Maps an image (B, 1, x, y, z) to logits (B, classes + 1, x, y, z): classes, then right against left.

    A U-Net works on a grid folded by two: 2 x 2 x 2 voxels become 8 channels and are unfolded again, so that its
    convolutions run on an eighth of the voxels. Its output is a prior of the classes, from which the signal of each
    class in this scan follows (``likelihoods``); a convolution over both refines the borders. So the network need not
    memorise contrasts.
    """

    def __init__(self, config: AnatomyConfig) -> None:
        super().__init__()
        self.config = config
        self.core = UNet(8, 8 * (config.classes + 1 + config.guides), config.widths)
        self.borders = nn.Sequential(
            nn.Conv3d(1 + 2 * config.classes + 1 + config.guides, config.border_width, 3, padding=1),
            nn.InstanceNorm3d(config.border_width, affine=True),
            nn.LeakyReLU(0.01),
            nn.Conv3d(config.border_width, config.classes + 1, 1),
        )
        self.trust = nn.Parameter(torch.full((config.classes, 1, 1, 1), 0.7))

    def forward(self, image: Tensor) -> Tensor:
        cells = rearrange(image, "b c (x i) (y j) (z k) -> b (c i j k) x y z", i=2, j=2, k=2)
        coarse = rearrange(self.core(cells), "b (c i j k) x y z -> b c (x i) (y j) (z k)", i=2, j=2, k=2)
        classes = self.config.classes
        likelihood = likelihoods(image, coarse[:, :classes])
        fine: Tensor = self.borders(torch.cat([image.to(coarse.dtype), coarse, likelihood.to(coarse.dtype)], 1))
        logits = coarse[:, : classes + 1].float() + fine.float()
        return torch.cat([logits[:, :classes] + self.trust * likelihood, logits[:, classes:]], 1)


@torch.no_grad()
def likelihoods(image: Tensor, logits: Tensor, rounds: int = 2) -> Tensor:
    """Computes the log-likelihood of each voxel's signal under each class, by Gaussians fitted to this image.

    Expectation maximisation (Ashburner and Friston 2005, doi:10.1016/j.neuroimage.2005.02.018) with the softmax of
    ``logits`` as prior. In the last round the means follow the bias field: they are local, over ``CELL`` voxels.

    Args:
        image: (B, 1, x, y, z), 0 to 1.
        logits: (B, classes, x, y, z).
        rounds: Number of iterations.

    Returns:
        float32 (B, classes, x, y, z), between -6 and 6, without gradient.
    """
    signal, prior = image.float(), logits.float()
    volume = signal[0].numel()
    out = torch.zeros_like(prior)
    for turn in range(rounds):
        share = (prior + out).softmax(1)
        total = share.sum((2, 3, 4), keepdim=True) + 1e-4 * volume
        mean = ((share * signal).sum((2, 3, 4), keepdim=True) + 5e-5 * volume) / total
        local = mean
        if turn == rounds - 1:
            weight = F.avg_pool3d(share, CELL, ceil_mode=True)
            nearby = (F.avg_pool3d(share * signal, CELL, ceil_mode=True) + 0.02 * mean) / (weight + 0.02)
            local = F.interpolate(nearby, size=signal.shape[2:], mode="trilinear")
        off = (signal - local).square_()
        variance = ((share * off).sum((2, 3, 4), keepdim=True) + 1e-4 * volume * 0.01) / total + MIN_VARIANCE
        out = (off.div_(-2 * variance) - 0.5 * (variance / 0.01).log()).clamp_(-6, 6)
    return out


def load(path: Path, sha256: str | None = None, device: torch.device | str = "cpu") -> AnatomyNet:
    """Builds the network that a weights file describes and fills it; float32, in eval mode.

    Raises:
        WeightsError: The file is missing, damaged, has another checksum, or is of another network.
    """
    return load_as(lambda text: AnatomyNet(AnatomyConfig.from_json(text)), path, sha256, device)
