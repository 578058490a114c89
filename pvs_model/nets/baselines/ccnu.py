"""The two networks that CCNU_CS_24 combined with a U-Net (EPVS challenge 2024, section on the teams).

The paper describes the ideas, separate encoders per sequence and parallel kernels of 3, 5 and 7, and leaves levels,
widths and the fusion of features open.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.base import Head, SegmentationNet
from pvs_model.nets.baselines.norms import use_instance_norms
from pvs_model.nets.blocks import CONVOLUTION, LEAK, ConvBlock, upsampling

KERNELS = (3, 5, 7)


class DoubleBlock(nn.Sequential):
    """Two convolution blocks, of which the first may halve the spatial sizes."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            ConvBlock(dimensions, in_channels, out_channels, stride), ConvBlock(dimensions, out_channels, out_channels)
        )


class MultiscaleBlock(nn.Module):
    """Parallel convolutions with kernels of 3, 5 and 7, each a third of the channels, then one with kernel 3."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        widths = [out_channels // len(KERNELS)] * len(KERNELS)
        widths[0] += out_channels - sum(widths)
        self.branches = nn.ModuleList(
            CONVOLUTION[dimensions](in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
            for width, kernel in zip(widths, KERNELS, strict=True)
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
    """A U-Net decoder from features of every level, full resolution first, to logits."""

    def __init__(self, dimensions: int, widths: Sequence[int], skips: Sequence[int]) -> None:
        """
        Args:
            dimensions: 2 or 3.
            widths: Channels per level, full resolution first.
            skips: Channels of the input features per level.
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
        logits: Tensor = self.head(feature, None, None)
        return logits


class SeparateEncoders(SegmentationNet):
    """U-Net with a separate encoder per sequence, whose features are concatenated at each level."""

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
        self.size_divisor = 2 ** (len(widths) - 1)
        self.min_size = self.size_divisor
        use_instance_norms(self)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``."""
        rows = []
        for encoder, feature in zip(self.encoders, image.split(self.slices, dim=1), strict=True):
            row = []
            for block in encoder:  # type: ignore[attr-defined]
                feature = block(feature)
                row.append(feature)
            rows.append(row)
        logits: Tensor = self.decoder([torch.cat(level, dim=1) for level in zip(*rows, strict=True)])
        return [logits] if self.training else logits


class MultiscaleKernels(SegmentationNet):
    """U-Net with parallel kernels of 3, 5 and 7 in its encoder."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        dimensions, widths = config.dimensions, config.widths
        self.encoder = nn.ModuleList(
            MultiscaleBlock(dimensions, above, width, stride=1 if level == 0 else 2)
            for level, (above, width) in enumerate(zip((config.input_channels, *widths), widths, strict=False))
        )
        self.decoder = Decoder(dimensions, widths, widths)
        self.size_divisor = 2 ** (len(widths) - 1)
        self.min_size = self.size_divisor
        use_instance_norms(self)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``."""
        features, feature = [], image
        for block in self.encoder:
            feature = block(feature)
            features.append(feature)
        logits: Tensor = self.decoder(features)
        return [logits] if self.training else logits
