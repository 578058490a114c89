"""Building blocks of the nested U-Net: convolution with normalisation, downsampling and upsampling.

Blocks are the same in two and three dimensions but for the torch classes, which ``dimensions`` selects.
Features are ``(batch, channel, *spatial)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONVOLUTION: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_POOLING: dict[int, type[nn.AvgPool2d | nn.AvgPool3d]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_NORM: dict[int, type[nn.InstanceNorm2d | nn.InstanceNorm3d]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

#: Slope of LeakyReLU below zero, as in nnU-Net.
LEAK = 0.01


class ConvBlock(nn.Sequential):
    """Convolution with kernel 3, instance normalisation and LeakyReLU.

    The convolution has no bias, since the normalisation would subtract it. The activation works in
    place: the backward pass of the normalisation needs its input, not its output.
    """

    def __init__(
        self, dimensions: int, in_channels: int, out_channels: int, stride: int = 1, exact: bool = False
    ) -> None:
        """
        Args:
            dimensions: 2 or 3.
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            stride: 1, or 2 to halve every spatial size.
            exact: Stay in float32 under autocast.
        """
        super().__init__(
            CONVOLUTION[dimensions](in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            _NORM[dimensions](out_channels, affine=True),
            nn.LeakyReLU(LEAK, inplace=True),
        )
        self.exact = exact

    def forward(self, feature: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial)."""
        if not self.exact:
            out: Tensor = super().forward(feature)
            return out
        with torch.autocast(feature.device.type, enabled=False):
            out = super().forward(feature.to(next(self.parameters()).dtype))
        return out


class Stage(nn.Sequential):
    """An encoder stage, X(i, 0): two convolution blocks, of which the first may halve the spatial sizes.

    The block that reads the image stays in float32: rounding the image to bfloat16 caused half of the error of logits
    near 0, and this block is 1 % of the work.
    """

    def __init__(self, dimensions: int, in_channels: int, out_channels: int, stride: int, image: bool = False) -> None:
        super().__init__(
            ConvBlock(dimensions, in_channels, out_channels, stride, exact=image),
            ConvBlock(dimensions, out_channels, out_channels),
        )


class ResidualStage(nn.Module):
    """An encoder stage with a shortcut around its two convolutions, as in nnU-Net's residual encoder.

    The shortcut averages 2^d voxels, and a 1x1 convolution changes the number of channels.
    """

    def __init__(self, dimensions: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            ConvBlock(dimensions, in_channels, out_channels, stride=2),
            CONVOLUTION[dimensions](out_channels, out_channels, 3, padding=1, bias=False),
            _NORM[dimensions](out_channels, affine=True),
        )
        self.shortcut = nn.Sequential(
            _POOLING[dimensions](2),
            CONVOLUTION[dimensions](in_channels, out_channels, 1, bias=False),
            _NORM[dimensions](out_channels, affine=True),
        )
        self.activation = nn.LeakyReLU(LEAK, inplace=True)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial / 2)."""
        out: Tensor = self.activation(self.convolutions(feature) + self.shortcut(feature))
        return out


def upsampling(dimensions: int, in_channels: int, out_channels: int) -> nn.Module:
    """Builds a transposed convolution with kernel 2 and stride 2, ``*spatial`` -> ``2 * spatial``.

    Kernel and stride are equal, so outputs do not overlap (uneven overlap is the usual cause of
    checkerboard artefacts) and each of the 2^d children of a voxel has its own weights. Interpolation
    would give all children the same value or a mean of neighbours, so that only the skip connections
    could locate a tube thinner than a coarse voxel. On a CPU in bfloat16 the cost is about that of a
    1x1 convolution and linear interpolation.
    """
    return _TRANSPOSED[dimensions](in_channels, out_channels, 2, stride=2)
