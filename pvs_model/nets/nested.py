"""The image backbone: a nested U-Net (U-Net++, Zhou et al. 2018; "nested U-network" in the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pvs_model.nets.blocks import ConvBlock, ResidualStage, Stage, upsampling


class NestedUNet(nn.Module):
    """A nested U-Net: a grid of nodes X(i, j) in level i (each at half the resolution of the one above) and column j.

    ::

        X(0,0) - X(0,1) - X(0,2) - X(0,3)      widths[0], full resolution
             X(1,0) - X(1,1) - X(1,2)          widths[1]; ``enhance`` is applied to X(1,2)
                  X(2,0) - X(2,1)              widths[2]
                       X(3,0)                  widths[3]

    X(i, 0) are encoder stages of two convolutions, the first of which halves the grid. Every other
    node takes all nodes to its left and the node below it, one step up::

        X(i, j) = block([X(i, 0), ..., X(i, j - 1), up(X(i + 1, j - 1))])

    with one convolution in a block, and two on the last diagonal i + j = levels - 1, whose nodes are
    the outputs. Since X(0, levels - 1) takes every node to its left, no node can be omitted at
    inference; few channels in level 0 keep the cost down.

    With ``nested_from`` 1 the full resolution, which costs most, has two nodes only: X(0, 0) and
    X(0, 3), which takes X(0, 0) and the node below. Rows from level 1 down are nested as above.
    """

    def __init__(
        self, dimensions: int, in_channels: int, widths: Sequence[int], enhanced: int = 1, convolutions: int = 1,
        nested_from: int = 0, residual: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            dimensions: 2 or 3.
            in_channels: Channels of the image.
            widths: Channels per level, full resolution first; at least two levels.
            enhanced: Level whose last node is passed through ``enhance``.
            convolutions: Convolutions in each node between encoder and last diagonal; U-Net++ itself has 2.
            nested_from: First level with a nested row.
            residual: Whether encoder stages below the first have shortcuts.

        Raises:
            ValueError: If there are fewer than two levels.
        """
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"a nested U-Net needs at least 2 levels, got widths {tuple(widths)}")
        self.levels = len(widths)
        self.enhanced = enhanced
        self.nested_from = nested_from
        self.encoder = nn.ModuleList(
            ResidualStage(dimensions, above, width) if residual and level > 0
            else Stage(dimensions, above, width, stride=1 if level == 0 else 2, image=level == 0)
            for level, (above, width) in enumerate(zip((in_channels, *widths), widths, strict=False))
        )  # fmt: skip
        self.up = nn.ModuleDict()
        self.nodes = nn.ModuleDict()
        for column in range(1, self.levels):
            for level in self._rows(column):
                width = widths[level]
                skips = column if level >= nested_from else 1
                in_width = (skips + 1) * width  # the nodes to the left, and the one from below
                node = nn.Sequential(ConvBlock(dimensions, in_width, width))
                if convolutions == 2 or level + column == self.levels - 1:
                    node.append(ConvBlock(dimensions, width, width))
                self.up[f"{level}_{column}"] = upsampling(dimensions, widths[level + 1], width)
                self.nodes[f"{level}_{column}"] = node

    def _rows(self, column: int) -> list[int]:
        """Levels with a node in a column: the nested ones, and the last diagonal."""
        last = self.levels - 1 - column
        return [level for level in range(last + 1) if level >= self.nested_from or level == last]

    @property
    def size_divisor(self) -> int:
        """Number that every spatial size of the image must be a multiple of."""
        return int(2 ** (self.levels - 1))

    def forward(self, image: Tensor, enhance: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
        """Computes the features of an image.

        Args:
            image: (B, C_in, *spatial), every spatial size a multiple of ``size_divisor``.
            enhance: Function applied to the last node of level ``enhanced``. In level 1 this is
                X(1, levels - 2), of shape (B, widths[1], *spatial / 2); the result goes up into X(0, levels - 1).

        Returns:
            The last diagonal, full resolution first: level i is (B, widths[i], *spatial / 2^i), for
            every level but the lowest (which is the encoder's alone).

        Raises:
            ValueError: If a spatial size is not a multiple of ``size_divisor``.
        """
        sizes, divisor = tuple(image.shape[2:]), self.size_divisor
        if any(size % divisor for size in sizes):
            raise ValueError(f"every spatial size must be a multiple of {divisor}, got {sizes}")
        rows: list[list[Tensor]] = []
        feature = image
        for stage in self.encoder:
            feature = stage(feature)
            rows.append([feature])
        if enhance is not None and self.enhanced == self.levels - 1:  # a row of its encoder stage alone
            rows[-1][0] = enhance(rows[-1][0])
        for column in range(1, self.levels):
            for level in self._rows(column):
                key = f"{level}_{column}"
                below = self.up[key](rows[level + 1][-1])
                node = self.nodes[key](torch.cat([*rows[level], below], dim=1))
                if enhance is not None and (level, column) == (self.enhanced, self.levels - 1 - self.enhanced):
                    node = enhance(node)
                rows[level].append(node)
        return [row[-1] for row in rows[:-1]]
