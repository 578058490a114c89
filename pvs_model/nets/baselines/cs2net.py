"""CS2-Net: channel and spatial self-attention for curvilinear structures (Mou et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.base import Head, SegmentationNet
from pvs_model.nets.baselines.norms import use_instance_norms
from pvs_model.nets.blocks import CONVOLUTION, LEAK, ConvBlock, upsampling


class ResidualBlock(nn.Module):
    """Two convolutions with kernel 3 and a shortcut convolution with kernel 1, added."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(dimensions, in_channels, out_channels, stride), ConvBlock(dimensions, out_channels, out_channels)
        )
        self.short = CONVOLUTION[dimensions](in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial / stride)."""
        return nn.functional.leaky_relu(self.body(feature) + self.short(feature), LEAK)


class CurvilinearAttention(nn.Module):
    """Self-attention over voxels and over channels, added to the feature.

    Over voxels: one projection per axis, by a convolution with kernel 3 along that axis only, so that voxels are
    compared by their neighbours along lines. In 2D the affinity is softmax(Q_x K_y^T); in 3D the affinities of the
    three pairs of axes are averaged before the softmax (Mou et al. multiply two of them, which needs their N x N
    product). Over channels: softmax(X X^T). Both have a learned weight that starts at 0.
    """

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        inner = max(1, width // 8)
        self.lines = nn.ModuleList()
        for axis in range(dimensions):
            kernel = tuple(3 if a == axis else 1 for a in range(dimensions))
            padding = tuple(k // 2 for k in kernel)
            self.lines.append(CONVOLUTION[dimensions](width, inner, kernel, padding=padding))  # type: ignore[arg-type]
        self.value = CONVOLUTION[dimensions](width, width, 1)
        self.spatial_weight = nn.Parameter(torch.zeros(()))
        self.channel_weight = nn.Parameter(torch.zeros(()))

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, *spatial) to the same shape."""
        lines = [line(feature).flatten(2).transpose(1, 2) for line in self.lines]  # each (B, N, inner)
        scale = lines[0].shape[-1] ** -0.5
        pairs = [(a, b) for a in range(len(lines)) for b in range(a)]
        affinity = torch.stack([lines[a] @ lines[b].transpose(1, 2) for a, b in pairs]).sum(0)
        attention = (affinity.float() * scale / len(pairs)).softmax(-1).to(feature.dtype)  # (B, N, N)
        spatial = (attention @ self.value(feature).flatten(2).transpose(1, 2)).transpose(1, 2).reshape(feature.shape)
        flat = feature.flatten(2)
        similarity = (flat.float() @ flat.float().transpose(1, 2) / flat.shape[-1]).softmax(-1).to(feature.dtype)
        channel = (similarity @ flat).reshape(feature.shape)
        return feature + self.spatial_weight * spatial + self.channel_weight * channel


class CS2Net(SegmentationNet):
    """Residual encoder and decoder with ``CurvilinearAttention`` between them.

    Chen et al. 2025 do not describe it; this follows Mou et al. (Medical Image Analysis 2021).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        dimensions, widths = config.dimensions, config.widths
        self.down = nn.ModuleList(
            ResidualBlock(dimensions, above, width, stride=1 if level == 0 else 2)
            for level, (above, width) in enumerate(zip((config.input_channels, *widths), widths, strict=False))
        )
        self.attention = CurvilinearAttention(dimensions, widths[-1])
        self.steps, self.up = decoder(dimensions, widths)
        self.head = Head(dimensions, widths[0])
        self.size_divisor = 2 ** (len(widths) - 1)
        self.min_size = self.size_divisor
        use_instance_norms(self)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``."""
        skips, feature = [], image
        for block in self.down:
            feature = block(feature)
            skips.append(feature)
        feature = self.attention(feature)
        for step, block, skip in zip(self.steps, self.up, reversed(skips[:-1]), strict=True):
            feature = block(torch.cat([skip, step(feature)], dim=1))
        logits: Tensor = self.head(feature, None, None)
        return [logits] if self.training else logits


def decoder(dimensions: int, widths: Sequence[int]) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Builds the upsampling steps and residual blocks of a U-Net decoder, lowest level first."""
    steps, blocks = nn.ModuleList(), nn.ModuleList()
    for coarse, fine in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True):
        steps.append(upsampling(dimensions, coarse, fine))
        blocks.append(ResidualBlock(dimensions, 2 * fine, fine))
    return steps, blocks
