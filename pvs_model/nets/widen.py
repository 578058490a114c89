"""Widens a trained graph-fusion network: more channels, nearly the same output (after Net2Net, Chen et al., ICLR 2016).

The channels of the trained network keep their weights. New channels begin with random weights, read all channels, and
are read by new channels only, so that they have no effect until training connects them. In the backbone that is exact,
since instance normalisation treats each channel alone. In the modules of section 2 of the paper layer normalisation
sees the new channels as well, so the output changes a little.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import torch
from torch import Tensor

from pvs_model.config import NetworkConfig
from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.model import build

#: Scale of what new channels add to the features of the modules, which layer normalisation mixes with the others.
NEW_SCALE = 0.1
#: Parameters whose rows or columns are several blocks of channels: pattern, blocks of rows, blocks of columns. "heads"
#: stands for the number of attention heads.
_BLOCKS: tuple[tuple[str, tuple[object, ...], tuple[object, ...]], ...] = (
    (r"interact\.(text|image)\.", (3,), ()),
    (r"attention\..*\.query\.", ("heads",), ()),
    (r"attention\..*\.key_value\.", (2, "heads"), ()),
    (r"attention\..*\.project\.", (), ("heads",)),
    (r"feed_forward\.0\.", (2,), (2,)),
    (r"feed_forward\.2\.", (), (2,)),
    (r"fusion\.weights\.0\.", (), (2,)),
)


def can_widen(narrow: NetworkConfig, wide: NetworkConfig) -> bool:
    """Whether ``wide`` is the same graph-fusion network as ``narrow``, with more channels in some levels."""
    same = wide.architecture == "graph_fusion" and replace(narrow, widths=wide.widths) == wide
    levels = len(narrow.widths) == len(wide.widths)
    return same and levels and all(a <= b for a, b in zip(narrow.widths, wide.widths, strict=True))


def widen(network: SegmentationNet, widths: tuple[int, ...]) -> SegmentationNet:
    """Returns a wider copy of a graph-fusion network; torch's random state decides the weights of new channels.

    Args:
        network: Trained network.
        widths: Channels per level of the copy, none below those of the network.

    Raises:
        ValueError: The widths do not fit, or the network is of another architecture.

    Example:
        >>> from pvs_model.config import NetworkConfig
        >>> network = build(NetworkConfig(widths=(4, 8, 16)))
        >>> widen(network, (6, 12, 24)).config.widths
        (6, 12, 24)
    """
    config = network.config
    wider = build(replace(config, widths=widths))
    if not can_widen(config, wider.config):
        raise ValueError(f"expected a graph-fusion network and widths of at least {config.widths}, got {widths}")
    guided = config.guided_level
    growth = widths[guided] / config.widths[guided]
    state = wider.state_dict()
    for name, old in network.state_dict().items():
        _fill(name, state[name], old, config.heads, math.sqrt(growth))
    # The feature that the modules read: new channels are small in it.
    last = f"backbone.nodes.{guided}_{len(widths) - 1 - guided}.1.1.weight"
    if last in state:
        state[last][config.widths[guided] :] *= NEW_SCALE
    wider.load_state_dict(state)
    return wider


def _fill(name: str, new: Tensor, old: Tensor, heads: int, scale: float) -> None:
    """Fills a parameter of the wider network in place; ``scale`` is the square root of the growth in channels."""
    if old.ndim == 0 or old.shape == new.shape:
        new.copy_(old)
        return
    in_guidance = name.startswith(("guidance.", "text."))
    row_blocks, column_blocks = _blocks(name, old, heads)
    transposed = old.ndim > 2 and ".up." in name  # (in, out, ...)
    source, target = (old.transpose(0, 1), new.transpose(0, 1)) if transposed else (old, new)
    nodes = name.endswith((".centres", ".raw_sigma"))  # (nodes, channels): every row is old
    rows = torch.arange(len(source)) if nodes else _places(source.shape[0], target.shape[0], row_blocks)
    added = torch.ones(len(target), dtype=torch.bool)
    added[rows] = False
    norm = in_guidance and old.ndim == 1 and (".norm" in name or name.startswith("text.project.1."))
    if in_guidance and not norm:
        target[added] *= NEW_SCALE
    if old.ndim == 1:
        # The variance over channels falls by the growth where the new ones are near 0.
        target[rows] = source / scale if norm and name.endswith("weight") else source
    else:
        columns = _places(source.shape[1], target.shape[1], column_blocks)
        if not name.endswith(".raw_sigma"):
            target[rows] = 0
        target[rows[:, None], columns[None]] = source
    # Attention divides by the square root of the channels, and new ones add nothing at first.
    queries, keys = _queries_and_keys(name, len(target))
    target[queries] *= scale
    target[keys] *= (~added[keys]).reshape(-1, *[1] * (target.ndim - 1))


def _queries_and_keys(name: str, rows: int) -> tuple[slice, slice]:
    """Rows of a linear layer that compute queries, and those that compute keys."""
    none = slice(0, 0)
    if ".interact." in name:
        return slice(0, rows // 3), slice(rows // 3, 2 * rows // 3)
    return slice(None) if ".query." in name else none, slice(0, rows // 2) if ".key_value." in name else none


def _blocks(name: str, old: Tensor, heads: int) -> tuple[int, int]:
    """Numbers of blocks of channels in the rows and columns of a parameter."""
    if re.search(r"backbone\.nodes\..*\.0\.0\.weight", name):
        return 1, old.shape[1] // old.shape[0]  # nodes to the left, and the one from below
    for pattern, rows, columns in _BLOCKS:
        if re.search(pattern, name):
            counts = (math.prod(heads if c == "heads" else int(str(c)) for c in blocks) for blocks in (rows, columns))
            return next(counts), next(counts)
    return 1, 1


def _places(old: int, new: int, blocks: int) -> Tensor:
    """Places of the old channels among the new ones: first in each block."""
    if old == new:
        return torch.arange(old)
    return torch.cat([torch.arange(old // blocks) + block * (new // blocks) for block in range(blocks)])
