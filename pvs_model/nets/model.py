"""The cross-modal graph-fusion network, assembled from its parts. ``build`` doubles as the diagram."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import EllipsisType

import torch
from torch import Tensor, nn

from pvs_model.config import INPUTS, NetworkConfig
from pvs_model.nets.attention import CrossAttention, TokenPooling
from pvs_model.nets.blocks import CONVOLUTION, LEAK
from pvs_model.nets.fusion import DynamicFusion
from pvs_model.nets.graph import GraphModule
from pvs_model.nets.nested import NestedUNet
from pvs_model.nets.precision import safe_in_bfloat16

#: Logit of a share of 1 %, where every head's bias starts.
RARE_LOGIT = -4.6


class TextProjection(nn.Module):
    """Token embeddings (B, T, text_width) to the image's channels (B, T, C), layer-normalised; padding is read as 0."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(text_width, width), nn.LayerNorm(width))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, T, text_width) and mask (B, T), True for real tokens, to (B, T, C)."""
        # The weights of zero that padding gets later do not silence a NaN in it, nor in the gradient.
        projected: Tensor = self.project(tokens.masked_fill(~mask.unsqueeze(-1), 0))
        return projected


class TextConcatenation(nn.Module):
    """How text enters when no module of the paper is on ("Backbone + VLM", Table 2).

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
    """Graph interaction, cross-attention and dynamic fusion, in this order, on one level's feature.

    Each is there or not, for the ablation. With fusion the result is added to the backbone's feature
    (section 2.3); without it the image features that the last module made go on by themselves, since
    every module is residual already. With none of the three, text is concatenated.
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


class Head(nn.Module):
    """A 1x1 convolution to one logit per voxel and output, on channels that the prompt may gate.

    The target follows the prompt (which region is asked for), but levels below the guided one carry no
    text: without the gate their deep supervision would teach one image two contradicting answers.
    """

    def __init__(self, dimensions: int, width: int, text_width: int | None = None, outputs: int = 1) -> None:
        """
        Args:
            dimensions: 2 or 3.
            width: Channels of the feature.
            text_width: Channels of the text that gates the feature; None for no gate.
            outputs: 1, or 2 with the fluid fraction.
        """
        super().__init__()
        self.pool = None if text_width is None else TokenPooling(text_width)
        self.gate = None if text_width is None else nn.Linear(text_width, width)
        self.logit = CONVOLUTION[dimensions](width, outputs, 1)
        # PVS are rare: starting from their share instead of 1/2 saves hundreds of steps.
        assert self.logit.bias is not None
        nn.init.constant_(self.logit.bias, RARE_LOGIT)

    def forward(self, feature: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        """Feature (B, C, *spatial) to logits (B, outputs, *spatial)."""
        if self.pool is not None and self.gate is not None:
            gate = self.gate(self.pool(text, mask)).sigmoid().to(feature.dtype)
            feature = feature * gate.unflatten(1, (-1, *[1] * (feature.ndim - 2)))
        logits: Tensor = self.logit(feature)
        return logits


class SegmentationNet(nn.Module, ABC):
    """What training and inference know of a network: its config and its forward.

    A network of its own kind defines ``segment``; choosing the inputs, and padding to sides that its levels can
    halve, is done here for all.

    Attributes:
        config: what it was built from.
        multiple: sides of what ``segment`` is given are multiples of this,
        least: and at least this long.
        any_size: whether a graph traced from it holds for other sizes, too: one without sizes worked out in Python.
    """

    config: NetworkConfig
    multiple: int = 1
    least: int = 1
    any_size: bool = True

    def stem(self) -> nn.Conv2d | nn.Conv3d | None:
        """The one convolution that reads the image, channel by channel; None where there is no such."""
        return None

    @abstractmethod
    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """As ``forward``, for the inputs that the network looks at, (B, input_channels, *spatial)."""

    def forward(
        self, image: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor | list[Tensor]:
        """Segments a batch of windows.

        Args:
            image: (B, in_channels, *spatial), z-scored intensities, zeros where a sequence is missing; channels
                ordered by sequence (then regions), then by neighbouring slice. Sides of any length: they are
                padded with zeros where the network needs it.
            text: (B, T, text_width) token embeddings; not needed when ``config.text`` is False.
            text_mask: (B, T) bool, True for real tokens, at least one per sample; None where all are.

        Returns:
            In eval mode the logits (B, outputs, *spatial): of PVS, then of the fluid fraction for networks that have
            it. In training mode a list of logits, full resolution first, then half, quarter, ..., sides rounded down,
            as many as the network supervises; the fluid fraction is among those of full resolution alone.

        Raises:
            ValueError: If a shape is not as above, or text is missing that the network needs.
        """
        expected = self.config.dimensions + 2
        if image.ndim != expected or image.shape[1] != self.config.in_channels:
            raise ValueError(
                f"image must have {expected} axes and {self.config.in_channels} channels, got {tuple(image.shape)}"
            )
        sides = [int(side) for side in image.shape[2:]]
        wanted = [max(self.least, -(-side // self.multiple) * self.multiple) for side in sides]
        seen = chosen(image, self.config)
        if wanted == sides:
            return self.segment(seen, text, text_mask)
        short = [(0, w - s) for s, w in zip(sides, wanted, strict=True)]
        answer = self.segment(nn.functional.pad(seen, [n for pair in reversed(short) for n in pair]), text, text_mask)
        if isinstance(answer, Tensor):
            return cropped(answer, sides)
        return [cropped(logits, [side >> level for side in sides]) for level, logits in enumerate(answer)]


def chosen(image: Tensor, config: NetworkConfig) -> Tensor:
    """The channels of an image (B, in_channels, *spatial) that a network looks at: (B, input_channels, *spatial)."""
    if config.inputs == INPUTS:
        return image
    slices = config.neighbour_slices
    parts = []
    for name in config.inputs:
        start = INPUTS.index(name.lstrip("-")) * slices
        part = image[:, start : start + slices]
        parts.append(-part if name.startswith("-") else part)
    if config.regions:
        parts.append(image[:, config.sequences * slices :])
    return torch.cat(parts, dim=1)


def cropped(feature: Tensor, sides: Sequence[int]) -> Tensor:
    """The first ``sides`` voxels of each axis."""
    index: tuple[EllipsisType | slice, ...] = (..., *(slice(side) for side in sides))
    return feature[index]


class GraphFusionNet(SegmentationNet):
    """Cross-modal graph-fusion network (Chen et al., MICCAI 2025), for 2D and 3D.

    A nested U-Net whose level-1 feature is guided by text. Heads sit on the last diagonal of the grid:
    level 0 gives the answer, the others deep supervision in training mode only. The nodes X(0, 1) and
    X(0, 2) have none: they lie before the text, and full resolution is where the time goes.

    Works under ``torch.autocast`` (equation (1) stays in float32) and in either memory format. Cost of a
    96^3 window in 3D: 1.56 M parameters, 119 GFLOP (a multiplication and an addition count as two; 3.50 M and
    288 for the first networks, which are nested at full resolution, too). On a CPU the contiguous format is as
    fast as ``channels_last`` or faster: what the convolutions gain there, torch's instance normalisation loses
    by copying.
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
        self.multiple = backbone.multiple
        self.least = 2 * self.multiple  # one voxel has no instance norm

    def stem(self) -> nn.Conv2d | nn.Conv3d | None:
        """As ``SegmentationNet.stem``."""
        if self.config.inputs != INPUTS:
            return None
        conv: nn.Conv2d | nn.Conv3d = self.backbone.encoder[0][0][0]  # type: ignore[index, assignment]
        return conv

    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """As ``SegmentationNet.segment``: one scale for every level but the lowest."""
        if self.text is None or self.guidance is None:
            tokens, text_mask, features = None, None, self.backbone(image)
        else:
            if text is None or text.ndim != 3 or text.shape[::2] != (image.shape[0], self.config.text_width):
                wanted = f"({image.shape[0]}, tokens, {self.config.text_width})"
                raise ValueError(f"text must be {wanted}, got {None if text is None else tuple(text.shape)}")
            if text_mask is None:
                text_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            elif text_mask.shape != text.shape[:2] or text_mask.dtype != torch.bool:
                raise ValueError(
                    f"text_mask must be bool {tuple(text.shape[:2])}, got {text_mask.dtype} {tuple(text_mask.shape)}"
                )
            tokens, mask, guide = self.text(text, text_mask), text_mask, self.guidance
            features = self.backbone(image, enhance=lambda feature: guide(feature, tokens, mask))
        if not self.training:
            answer: Tensor = self.heads[0](features[0], tokens, text_mask)
            return answer
        return [head(feature, tokens, text_mask) for head, feature in zip(self.heads, features, strict=True)]


def build(config: NetworkConfig) -> SegmentationNet:
    """Builds the network that ``config`` describes, with fresh weights, in training mode.

    Raises:
        ValueError: If the widths, heads or neighbours do not fit together.
    """
    network: SegmentationNet
    if config.architecture == "graph_fusion":
        network = build_graph_fusion(config)
    else:
        from pvs_model.nets.peers import PEERS

        network = PEERS[config.architecture](config)
    safe_in_bfloat16(network)
    return network


def build_graph_fusion(config: NetworkConfig) -> GraphFusionNet:
    """The graph-fusion network of a config.

    ::

        text tokens --- TextProjection -----------+
                                                  |
        image - X(0,0) - X(0,1) - X(0,2) - - - - -|- - - - - - - - - - - - X(0,3) - head: the answer
                     X(1,0) - X(1,1) - X(1,2) - graph - attention - fusion - ^ - - - head (training)
                          X(2,0) - X(2,1) - - - - - - - - - - - - - - - - - - - - - head, gated by text (training)
                               X(3,0)

    Raises:
        ValueError: If the widths, heads or neighbours do not fit together.
    """
    dimensions, widths = config.dimensions, config.widths
    backbone = NestedUNet(
        dimensions, config.input_channels, widths, enhanced=config.guided_level, nested_from=config.nested_from
    )
    guided = widths[config.guided_level]  # half resolution: at full it would cost more than all the rest
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
