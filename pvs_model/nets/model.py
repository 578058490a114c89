"""The cross-modal graph-fusion network, and ``build`` for all networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.attention import CrossAttention, TokenPooling
from pvs_model.nets.base import Head, SegmentationNet
from pvs_model.nets.blocks import LEAK
from pvs_model.nets.fusion import DynamicFusion
from pvs_model.nets.graph import GraphModule
from pvs_model.nets.nested import NestedUNet
from pvs_model.nets.precision import make_safe_in_bfloat16
from pvs_model.types import SEQUENCES


class TextProjection(nn.Module):
    """Projects token embeddings (B, T, text_width) to the image's channels (B, T, C) and layer-normalises them."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(text_width, width), nn.LayerNorm(width))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, T, text_width) and mask (B, T), True for real tokens, to (B, T, C)."""
        # Padding gets weights of zero later, which would not remove a NaN in it or in its gradient.
        projected: Tensor = self.project(tokens.masked_fill(~mask.unsqueeze(-1), 0))
        return projected


class TextConcatenation(nn.Module):
    """Concatenation of pooled text to every voxel, where no module of the paper is used ("Backbone + VLM", Table 2).

    Pooled text g is concatenated to every voxel: F + LeakyReLU(W [F, g]), with W [F, g] computed as
    W_F F + W_g g. Adding g alone would be lost: the instance normalisation of the next block subtracts
    whatever is constant over the image. Behind a nonlinearity it moves a threshold, which stays.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = TokenPooling(width)
        self.from_image = nn.Linear(width, width)
        self.from_text = nn.Linear(width, width, bias=False)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Image (B, N, C), text (B, T, C) and its mask (B, T) to (B, N, C)."""
        pooled = self.from_text(self.pool(text, mask)).unsqueeze(1)
        update = nn.functional.leaky_relu(self.from_image(image) + pooled, LEAK)
        return image + update.to(image.dtype)


class TextGuidance(nn.Module):
    """Graph interaction, cross-attention and dynamic fusion, in this order, on the feature of one level.

    Each is optional, for the ablation. With fusion the result is added to the backbone's feature
    (section 2.3). Without it the output is the image feature of the last module alone, since every
    module is residual already. With none of the three, text is concatenated.
    """

    def __init__(
        self,
        graph: GraphModule | None,
        attention: CrossAttention | None,
        fusion: DynamicFusion | None,
        concatenation: TextConcatenation | None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.attention = attention
        self.fusion = fusion
        self.concatenation = concatenation

    def forward(self, feature: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Feature (B, C, *spatial), text (B, T, C) and its mask (B, T) to (B, C, *spatial)."""
        image = feature.flatten(2).transpose(1, 2)  # (B, N, C): a view when the feature is channels-last
        if self.graph is not None:
            image, text = self.graph(image, text, mask)
        if self.attention is not None:
            image, text = self.attention(image, text, mask)
        if self.concatenation is not None:
            image = self.concatenation(image, text, mask)
        if self.fusion is not None:
            image = self.fusion(image, text, mask)
        guided = image.transpose(1, 2).reshape(feature.shape)
        return guided if self.fusion is None else feature + guided


class GraphFusionNet(SegmentationNet):
    """Cross-modal graph-fusion network (Chen et al., MICCAI 2025), for 2D and 3D.

    A nested U-Net whose level-1 feature is guided by text. Heads sit on the last diagonal of the grid:
    level 0 gives the prediction, the others deep supervision in training mode only. The nodes X(0, 1) and
    X(0, 2) have none: they do not depend on the text, and full resolution is expensive.

    Works under ``torch.autocast`` (equation (1) stays in float32) and in either memory format. Cost of a
    96^3 window in 3D: 1.56 M parameters, 119 GFLOP (a multiplication and an addition count as two; 3.50 M and
    288 with nesting at full resolution). On a CPU the contiguous format is as fast as ``channels_last`` or
    faster: torch's instance normalisation copies, which costs what the convolutions gain.
    """

    def __init__(
        self,
        config: NetworkConfig,
        backbone: NestedUNet,
        text: TextProjection | None,
        guidance: TextGuidance | None,
        heads: Sequence[Head],
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.text = text
        self.guidance = guidance
        self.heads = nn.ModuleList(heads)
        self.size_divisor = backbone.size_divisor
        self.min_size = 2 * self.size_divisor  # instance normalisation needs more than one voxel

    def stem(self) -> nn.Conv2d | nn.Conv3d | None:
        """See ``SegmentationNet.stem``."""
        if self.config.inputs != SEQUENCES:
            return None
        conv: nn.Conv2d | nn.Conv3d = self.backbone.encoder[0][0][0]  # type: ignore[index, assignment]
        return conv

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """See ``SegmentationNet.segment``: one scale for every level but the lowest."""
        if self.text is None or self.guidance is None:
            tokens, text_mask, features = None, None, self.backbone(image)
        else:
            if text is None or text.ndim != 3 or text.shape[::2] != (image.shape[0], self.config.text_width):
                expected = f"({image.shape[0]}, tokens, {self.config.text_width})"
                raise ValueError(f"text must be {expected}, got {None if text is None else tuple(text.shape)}")
            if text_mask is None:
                text_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            elif text_mask.shape != text.shape[:2] or text_mask.dtype != torch.bool:
                raise ValueError(
                    f"text_mask must be bool {tuple(text.shape[:2])}, got {text_mask.dtype} {tuple(text_mask.shape)}"
                )
            tokens, mask, guide = self.text(text, text_mask), text_mask, self.guidance
            features = self.backbone(image, enhance=lambda feature: guide(feature, tokens, mask))
        if not self.training:
            logits: Tensor = self.heads[0](features[0], tokens, text_mask)
            return logits
        return [head(feature, tokens, text_mask) for head, feature in zip(self.heads, features, strict=True)]


def build(config: NetworkConfig) -> SegmentationNet:
    """Builds the network that ``config`` describes, with random weights, in training mode.

    Example:
        >>> network = build(NetworkConfig(widths=(4, 8, 16)))
        >>> type(network).__name__, network.size_divisor
        ('GraphFusionNet', 4)

    Raises:
        ValueError: If the widths, heads or neighbours do not fit together.
    """
    network: SegmentationNet
    if config.architecture == "graph_fusion":
        network = build_graph_fusion(config)
    else:
        from pvs_model.nets.baselines import BASELINES  # imports MONAI, which the graph-fusion network does not need

        network = BASELINES[config.architecture](config)
    make_safe_in_bfloat16(network)
    return network


def build_graph_fusion(config: NetworkConfig) -> GraphFusionNet:
    """Builds the graph-fusion network of a config.

    ::

        text tokens --- TextProjection -----------+
                                                  |
        image - X(0,0) - X(0,1) - X(0,2) - - - - -|- - - - - - - - - - - - X(0,3) - head: prediction
                     X(1,0) - X(1,1) - X(1,2) - graph - attention - fusion - ^ - - - head (training)
                          X(2,0) - X(2,1) - - - - - - - - - - - - - - - - - - - - - head, gated by text (training)
                               X(3,0)

    Raises:
        ValueError: If the widths, heads or neighbours do not fit together.
    """
    dimensions, widths = config.dimensions, config.widths
    backbone = NestedUNet(
        dimensions, config.input_channels, widths, enhanced=config.guided_level, nested_from=config.nested_from,
        residual=config.residual,
    )  # fmt: skip
    guided = widths[config.guided_level]  # at full resolution it would cost more than the rest of the network
    text = guidance = None
    if config.text:
        text = TextProjection(config.text_width, guided)
        modules = config.graph or config.cross_attention or config.fusion
        guidance = TextGuidance(
            graph=GraphModule(guided, config.nodes, config.neighbours, config.graph_values) if config.graph else None,
            attention=CrossAttention(guided, config.heads) if config.cross_attention else None,
            fusion=DynamicFusion(guided) if config.fusion else None,
            concatenation=None if modules else TextConcatenation(guided),
        )
    heads = [
        Head(
            dimensions, width, text_width=guided if config.text and level > config.guided_level else None,
            outputs=config.outputs if level == 0 else 1,
        )
        for level, width in enumerate(widths[:-1])
    ]  # fmt: skip
    return GraphFusionNet(config, backbone, text, guidance, heads)
