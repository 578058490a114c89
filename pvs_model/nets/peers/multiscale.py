"""The two networks that CCNU_CS_24 added to a U-Net (epvs_challenge_2024, section on the teams).

The paper gives their ideas, separate encoders per sequence and kernels of 3, 5 and 7 side by side; levels, widths and
how features are joined are left open.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.blocks import CONVOLUTION, LEAK, ConvBlock, upsampling
from pvs_model.nets.model import Head, SegmentationNet
from pvs_model.nets.peers.library import with_instance_norms

KERNELS = (3, 5, 7)


class DoubleBlock(nn.Sequential):
    """Two convolution blocks, of which the first may halve the grid."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            ConvBlock(dimensions, in_channels, out_channels, stride), ConvBlock(dimensions, out_channels, out_channels)
        )


class MultiscaleBlock(nn.Module):
    """Convolutions with kernels of 3, 5 and 7 side by side, each a third of the channels; then one of 3."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        shares = [out_channels // len(KERNELS)] * len(KERNELS)
        shares[0] += out_channels - sum(shares)
        self.branches = nn.ModuleList(
            CONVOLUTION[dimensions](in_channels, share, kernel, stride=stride, padding=kernel // 2, bias=False)
            for share, kernel in zip(shares, KERNELS, strict=True)
        )
        norm = nn.InstanceNorm3d if dimensions == 3 else nn.InstanceNorm2d
        self.norm = norm(out_channels, affine=True)
        self.join = ConvBlock(dimensions, out_channels, out_channels)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial / stride)."""
        scales = torch.cat([branch(feature) for branch in self.branches], dim=1)
        out: Tensor = self.join(nn.functional.leaky_relu(self.norm(scales), LEAK))
        return out


class Decoder(nn.Module):
    """From features of every level, finest first, to logits."""

    def __init__(self, dimensions: int, widths: Sequence[int], skips: Sequence[int]) -> None:
        """
        Args:
            dimensions: 2 or 3.
            widths: Channels per level, full resolution first.
            skips: Channels of the features that come in, per level.
        """
        super().__init__()
        self.steps, self.blocks = nn.ModuleList(), nn.ModuleList()
        below = skips[-1]
        for width, skip in zip(reversed(widths[:-1]), reversed(skips[:-1]), strict=True):
            self.steps.append(upsampling(dimensions, below, width))
            self.blocks.append(DoubleBlock(dimensions, width + skip, width))
            below = width
        self.head = Head(dimensions, widths[0])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features, (B, skips[i], *spatial / 2^i), to logits (B, 1, *spatial)."""
        feature = features[-1]
        for step, block, skip in zip(self.steps, self.blocks, reversed(features[:-1]), strict=True):
            feature = block(torch.cat([skip, step(feature)], dim=1))
        answer: Tensor = self.head(feature, None, None)
        return answer


class SeparateEncoders(SegmentationNet):
    """U-Net with an encoder of its own for every sequence, whose features are joined at each level."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        dimensions, widths = config.dimensions, config.widths
        self.slices, count = config.neighbour_slices, config.input_channels // config.neighbour_slices
        self.encoders = nn.ModuleList(
            nn.ModuleList(
                DoubleBlock(dimensions, above, width, stride=1 if level == 0 else 2)
                for level, (above, width) in enumerate(zip((self.slices, *widths), widths, strict=False))
            )
            for _ in range(count)
        )
        self.decoder = Decoder(dimensions, widths, [count * width for width in widths])
        self.multiple = 2 ** (len(widths) - 1)
        self.least = self.multiple
        with_instance_norms(self)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """As ``SegmentationNet.segment``."""
        rows = []
        for encoder, feature in zip(self.encoders, image.split(self.slices, dim=1), strict=True):
            row = []
            for block in encoder:  # type: ignore[attr-defined]
                feature = block(feature)
                row.append(feature)
            rows.append(row)
        answer = self.decoder([torch.cat(level, dim=1) for level in zip(*rows, strict=True)])
        return [answer] if self.training else answer


class MultiscaleKernels(SegmentationNet):
    """U-Net whose encoder looks through kernels of 3, 5 and 7 at once."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        dimensions, widths = config.dimensions, config.widths
        self.encoder = nn.ModuleList(
            MultiscaleBlock(dimensions, above, width, stride=1 if level == 0 else 2)
            for level, (above, width) in enumerate(zip((config.input_channels, *widths), widths, strict=False))
        )
        self.decoder = Decoder(dimensions, widths, widths)
        self.multiple = 2 ** (len(widths) - 1)
        self.least = self.multiple
        with_instance_norms(self)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """As ``SegmentationNet.segment``."""
        features, feature = [], image
        for block in self.encoder:
            feature = block(feature)
            features.append(feature)
        answer = self.decoder(features)
        return [answer] if self.training else answer
