"""MfNS_De: a densely nested network with multi-scale highlighted foregrounds (Cai et al. 2024, section 2.4)."""

from __future__ import annotations

from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.base import Head, SegmentationNet
from pvs_model.nets.baselines.norms import use_instance_norms
from pvs_model.nets.nested import NestedUNet


class MfNSDe(SegmentationNet):
    """Nested U-Net of single slices with a head at every scale of its decoder.

    The "highlighted foregrounds" are labels that are max-pooled to each scale: ``training.losses.DeepSupervision``,
    which all networks here are trained with. The paper leaves widths and normalisation open; they follow U-Net++,
    with two convolutions per node.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = NestedUNet(config.dimensions, config.input_channels, config.widths, convolutions=2)
        self.heads = nn.ModuleList(Head(config.dimensions, width) for width in config.widths[:-1])
        self.size_divisor = self.backbone.size_divisor
        self.min_size = self.size_divisor
        use_instance_norms(self)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``."""
        features = self.backbone(image)
        if not self.training:
            logits: Tensor = self.heads[0](features[0], None, None)
            return logits
        return [head(feature, None, None) for head, feature in zip(self.heads, features, strict=True)]
