"""The bricks of the nested U-Net: convolution with normalisation, and the steps down and up.

Every brick is built for two or three dimensions by the same line: ``dimensions`` chooses the torch
class, nothing else differs. Features are ``(batch, channel, *spatial)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONVOLUTION: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_NORM: dict[int, type[nn.InstanceNorm2d | nn.InstanceNorm3d]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

#: Slope of LeakyReLU below zero, as in nnU-Net.
LEAK = 0.01


class ConvBlock(nn.Sequential):
    """Convolution 3^d, instance normalisation, LeakyReLU.

    The convolution has no bias, since the normalisation would subtract it. The activation works in
    place: the normalisation keeps its input for the backward pass, not its output.
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
    """An encoder stage, X(i, 0): two convolution blocks, of which the first may halve the grid.

    Where it reads the image, the first stays in float32: of what bfloat16 did to logits near 0, half came from rounding
    the image itself, for 1 % of the work.
    """

    def __init__(self, dimensions: int, in_channels: int, out_channels: int, stride: int, image: bool = False) -> None:
        super().__init__(
            ConvBlock(dimensions, in_channels, out_channels, stride, exact=image),
            ConvBlock(dimensions, out_channels, out_channels),
        )


def upsampling(dimensions: int, in_channels: int, out_channels: int) -> nn.Module:
    """The step up: a transposed convolution with kernel 2 and stride 2, ``*spatial`` -> ``2 * spatial``.

    Kernel and stride are equal, so outputs do not overlap (no uneven overlap, the usual cause of
    checkerboards) and each of the 2^d children of a voxel has weights of its own. Interpolation gives
    all children the same value or a blend of neighbours: it would have to leave the place of a tube
    thinner than a coarse voxel to the skip connections alone. Measured on a CPU in bfloat16 it costs
    about as much as 1x1 convolution and linear interpolation.
    """
    return _TRANSPOSED[dimensions](in_channels, out_channels, 2, stride=2)
