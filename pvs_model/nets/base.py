"""The interface that training and inference expect of every network, and the parts that networks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import EllipsisType

import torch
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.nets.attention import TokenPooling
from pvs_model.nets.blocks import CONVOLUTION
from pvs_model.types import SEQUENCES

#: Initial output bias: the logit of a 1 % foreground prior.
PRIOR_LOGIT = -4.6


def init_bias_to_prior(head: nn.Module) -> None:
    """Sets the bias of the last convolution of a head to ``PRIOR_LOGIT``.

    PVS are rare: starting from their prevalence instead of 1/2 saves hundreds of steps.
    """
    last = [module for module in head.modules() if isinstance(module, nn.modules.conv._ConvNd)][-1]
    assert last.bias is not None
    nn.init.constant_(last.bias, PRIOR_LOGIT)


class Head(nn.Module):
    """A 1x1 convolution to one logit per voxel and output, on channels that the prompt may gate.

    The target follows the prompt (which region is asked for), but levels below the guided one carry no
    text: without the gate their deep supervision would teach contradicting targets for one image.
    """

    def __init__(self, dimensions: int, width: int, text_width: int | None = None, outputs: int = 1) -> None:
        """
        Args:
            dimensions: 2 or 3.
            width: Channels of the feature.
            text_width: Channels of the text that gates the feature; None for no gate.
            outputs: 1, or 2 with the PVS fraction.
        """
        super().__init__()
        self.pool = None if text_width is None else TokenPooling(text_width)
        self.gate = None if text_width is None else nn.Linear(text_width, width)
        self.logit = CONVOLUTION[dimensions](width, outputs, 1)
        init_bias_to_prior(self.logit)

    def forward(self, feature: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        """Feature (B, C, *spatial) to logits (B, outputs, *spatial)."""
        if self.pool is not None and self.gate is not None:
            gate = self.gate(self.pool(text, mask)).sigmoid().to(feature.dtype)
            feature = feature * gate.unflatten(1, (-1, *[1] * (feature.ndim - 2)))
        logits: Tensor = self.logit(feature)
        return logits


class SegmentationNet(nn.Module, ABC):
    """A network as training and inference use it.

    Subclasses define ``segment``. Selecting the input channels, padding and cropping are done here for all.

    Attributes:
        config: Configuration that the network was built from.
        mirrored: Spatial axes along which ``segment`` sees images mirrored; its logits are mirrored back. Networks of
            an ensemble that see different mirror images agree less in their errors.
        size_divisor: Number that the spatial sizes passed to ``segment`` are multiples of.
        min_size: Smallest spatial size passed to ``segment``.
        supports_dynamic_shape: Whether a graph traced from the network is valid for other spatial sizes. False where
            the network computes sizes in Python.
    """

    config: NetworkConfig
    mirrored: tuple[int, ...] = ()
    size_divisor: int = 1
    min_size: int = 1
    supports_dynamic_shape: bool = True

    def stem(self) -> nn.Conv2d | nn.Conv3d | None:
        """The convolution that reads all channels of the image in their order; None where there is no single one."""
        return None

    @abstractmethod
    def segment(self, image: Tensor, text: Tensor | None, text_mask: Tensor | None) -> Tensor | list[Tensor]:
        """Like ``forward``, for the selected channels (B, input_channels, *spatial) of a padded image."""

    def forward(
        self, image: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor | list[Tensor]:
        """Segments a batch of windows.

        Args:
            image: (B, in_channels, *spatial), z-scored intensities, zeros where a sequence is missing; channels
                ordered by sequence (then regions), then by neighbouring slice. Any spatial size: it is
                padded with zeros where the network needs it.
            text: (B, T, text_width) token embeddings; not needed when ``config.text`` is False.
            text_mask: (B, T) bool, True for real tokens, at least one per sample; None where all are.

        Returns:
            In eval mode the logits (B, outputs, *spatial): of PVS, then of the PVS fraction for networks that have
            it. In training mode a list of logits, full resolution first, then half, quarter, ..., sizes rounded down,
            one for each supervised level; only those of full resolution include the PVS fraction.

        Raises:
            ValueError: If a shape is not as above, or the network needs text and gets none.
        """
        expected = self.config.dimensions + 2
        if image.ndim != expected or image.shape[1] != self.config.in_channels:
            raise ValueError(
                f"image must have {expected} axes and {self.config.in_channels} channels, got {tuple(image.shape)}"
            )
        sizes = [int(size) for size in image.shape[2:]]
        padded = [max(self.min_size, -(-size // self.size_divisor) * self.size_divisor) for size in sizes]
        selected = select_channels(image, self.config)
        if padded != sizes:
            padding = [n for size, new in zip(reversed(sizes), reversed(padded), strict=True) for n in (0, new - size)]
            selected = nn.functional.pad(selected, padding)
        axes = tuple(2 + axis for axis in self.mirrored)
        logits = self.segment(selected.flip(axes) if axes else selected, text, text_mask)
        scales = [logits] if isinstance(logits, Tensor) else logits
        if axes:
            scales = [scale.flip(axes) for scale in scales]
        if padded != sizes:
            scales = [crop(scale, [size >> level for size in sizes]) for level, scale in enumerate(scales)]
        return scales[0] if isinstance(logits, Tensor) else scales


def select_channels(image: Tensor, config: NetworkConfig) -> Tensor:
    """Selects the channels that a network reads: (B, in_channels, *spatial) to (B, input_channels, *spatial)."""
    if config.inputs == SEQUENCES:
        return image
    slices = config.neighbour_slices
    parts = []
    for name in config.inputs:
        start = SEQUENCES.index(name.lstrip("-")) * slices
        part = image[:, start : start + slices]
        parts.append(-part if name.startswith("-") else part)
    if config.regions:
        parts.append(image[:, config.sequences * slices :])
    return torch.cat(parts, dim=1)


def crop(feature: Tensor, sizes: Sequence[int]) -> Tensor:
    """Crops the spatial axes to their first ``sizes`` voxels."""
    index: tuple[EllipsisType | slice, ...] = (..., *(slice(size) for size in sizes))
    return feature[index]
