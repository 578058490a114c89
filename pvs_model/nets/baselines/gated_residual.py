"""The network of nic-vicorob (EPVS challenge 2024): nnU-Net's residual encoder with attention gates on the skips."""

from __future__ import annotations

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.nets.attentionunet import AttentionBlock
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.base import Head, SegmentationNet
from pvs_model.nets.baselines.norms import use_instance_norms
from pvs_model.nets.blocks import ConvBlock, upsampling

#: Residual blocks per level of the encoder. The paper leaves them open; nnU-Net's preset of 1, 3, 4, 6, 6, 6 has
#: 103 million parameters, too many for a CPU.
BLOCKS = (1, 2, 2, 2, 2, 2)


class GatedResidualUNet(SegmentationNet):
    """Residual encoder, one convolution per level of the decoder, gates (Oktay et al. 2018), deep supervision.

    The paper specifies six levels, kernels of 3, and the region mask as fourth channel (``NetworkConfig.regions``).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        dimensions, widths = config.dimensions, config.widths
        self.encoder = nn.ModuleList()
        above = config.input_channels
        for level, width in enumerate(widths):
            count = BLOCKS[min(level, len(BLOCKS) - 1)]
            blocks = [
                UnetResBlock(dimensions, width if k else above, width, 3, 2 if level and not k else 1, "instance")
                for k in range(count)
            ]
            self.encoder.append(nn.Sequential(*blocks))
            above = width
        pairs = list(zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True))
        self.steps = nn.ModuleList(upsampling(dimensions, coarse, fine) for fine, coarse in pairs)
        self.gates = nn.ModuleList(
            AttentionBlock(dimensions, f_int=max(1, fine // 2), f_g=fine, f_l=fine) for fine, _ in pairs
        )
        self.blocks = nn.ModuleList(ConvBlock(dimensions, 2 * fine, fine) for fine, _ in pairs)
        self.heads = nn.ModuleList(Head(dimensions, fine) for fine, _ in pairs)
        self.size_divisor = 2 ** (len(widths) - 1)
        self.min_size = self.size_divisor
        use_instance_norms(self)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``: one scale for every level but the lowest."""
        skips, feature = [], image
        for stage in self.encoder:
            feature = stage(feature)
            skips.append(feature)
        logits: list[Tensor] = []
        for step, gate, block, head, skip in zip(
            self.steps, self.gates, self.blocks, self.heads, reversed(skips[:-1]), strict=True
        ):
            up = step(feature)
            feature = block(torch.cat([gate(g=up, x=skip), up], dim=1))
            if self.training or head is self.heads[-1]:
                logits.insert(0, head(feature, None, None))
        return logits if self.training else logits[0]
