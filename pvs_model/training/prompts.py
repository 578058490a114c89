"""Embeddings of the prompts of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from pvs_model.nets.text import TextEncoder, pad


class Prompts:
    """Token embeddings of every prompt, encoded once when first asked for."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.known: dict[str, Tensor] = {}

    def __call__(self, prompts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """(B, T, W) tokens and (B, T) mask."""
        new = [p for p in dict.fromkeys(prompts) if p not in self.known]
        if new:
            self.known.update(zip(new, self.encoder.encode(new), strict=True))
        tokens, mask = pad([self.known[p] for p in prompts])
        return tokens.to(device), mask.to(device)
