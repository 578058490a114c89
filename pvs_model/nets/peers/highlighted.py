"""MfNS_De: the densely nested network with multi-scale highlighted foregrounds (Cai et al. 2024, section 2.4)."""

from __future__ import annotations

from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.model import Head, SegmentationNet
from pvs_model.nets.nested import NestedUNet
from pvs_model.nets.peers.library import with_instance_norms


class MfNSDe(SegmentationNet):
    """Nested U-Net of single slices, an answer at every scale of its decoder.

    The foregrounds of the labels that those answers are compared with survive at each scale: that is
    ``training.losses.DeepSupervision`` (labels max-pooled), which every network here is trained with. Widths and
    normalisation are left open in the paper; U-Net++'s widths and two convolutions per node are taken.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = NestedUNet(config.dimensions, config.input_channels, config.widths, convolutions=2)
        self.heads = nn.ModuleList(Head(config.dimensions, width) for width in config.widths[:-1])
        self.multiple = self.backbone.multiple
        self.least = self.multiple
        with_instance_norms(self)

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """As ``SegmentationNet.segment``."""
        features = self.backbone(image)
        if not self.training:
            answer: Tensor = self.heads[0](features[0], None, None)
            return answer
        return [head(feature, None, None) for head, feature in zip(self.heads, features, strict=True)]
