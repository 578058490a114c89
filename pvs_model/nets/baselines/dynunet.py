"""nnU-Net's network."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import DynUNet
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.base import SegmentationNet, init_bias_to_prior
from pvs_model.nets.baselines.norms import use_instance_norms
from pvs_model.types import SEQUENCES


class NNUNet(SegmentationNet):
    """MONAI's DynUNet with the settings of nnU-Net (Isensee et al. 2021), the standard of the field.

    Kernels of 3, stride 2 per level, instance normalisation, LeakyReLU, transposed convolutions, deep
    supervision at all but the two lowest resolutions.
    """

    def __init__(self, config: NetworkConfig) -> None:
        """
        Args:
            config: Configuration; ``widths`` has one entry per level, full resolution first (at least three).

        Raises:
            ValueError: If there are fewer than three levels.
        """
        super().__init__()
        levels = len(config.widths)
        if levels < 3:
            raise ValueError(f"DynUNet needs at least 3 levels, got widths {config.widths}")
        self.config = config
        self.size_divisor = 2 ** (levels - 1)
        self.min_size = self.size_divisor
        net: Any = DynUNet(
            spatial_dims=config.dimensions,
            in_channels=config.input_channels,
            out_channels=1,
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=list(config.widths),
            deep_supervision=True,
            deep_supr_num=max(1, levels - 3),
        )
        # DynUNet registers every block twice, in lists and in a chain of skip layers, which gives every
        # parameter two names, and its forward upsamples coarse logits. Here only the lists are used.
        self.down = nn.ModuleList([net.input_block, *net.downsamples, net.bottleneck])
        self.up = net.upsamples
        self.heads = nn.ModuleList([net.output_block, *net.deep_supervision_heads])
        for head in self.heads:
            init_bias_to_prior(head)
        use_instance_norms(self)

    def stem(self) -> nn.Conv2d | nn.Conv3d | None:
        """See ``SegmentationNet.stem``."""
        if self.config.inputs != SEQUENCES:
            return None
        conv: nn.Conv2d | nn.Conv3d = self.down[0].conv1.conv  # type: ignore[union-attr, assignment]
        return conv

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``."""
        features = [image]
        for block in self.down:
            features.append(block(features[-1]))
        skips, feature = features[1:-1], features[-1]
        decoded: list[Tensor] = []
        for block, skip in zip(self.up, reversed(skips), strict=True):
            feature = block(feature, skip)
            decoded.insert(0, feature)
        if not self.training:
            logits: Tensor = self.heads[0](decoded[0])
            return logits
        return [head(level) for head, level in zip(self.heads, decoded, strict=False)]
