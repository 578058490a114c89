"""Embeddings of the prompts of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from pvs_model.nets.text import TextEncoder, pad, prompt
from pvs_model.types import SEQUENCES

#: What networks that are trained with one prompt are told.
CONSTANT_PROMPT = prompt(SEQUENCES, 1.0)


class Prompts:
    """Token embeddings of every prompt, encoded once when first asked for."""

    def __init__(self, encoder: TextEncoder, constant: bool = False) -> None:
        """
        Args:
            encoder: of the text.
            constant: whether every prompt is read as ``CONSTANT_PROMPT``.
        """
        self.encoder = encoder
        self.constant = constant
        self.known: dict[str, Tensor] = {}

    def __call__(self, prompts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """(B, T, W) tokens and (B, T) mask."""
        if self.constant:
            prompts = [CONSTANT_PROMPT] * len(prompts)
        new = [p for p in dict.fromkeys(prompts) if p not in self.known]
        if new:
            self.known.update(zip(new, self.encoder.encode(new), strict=True))
        tokens, mask = pad([self.known[p] for p in prompts])
        return tokens.to(device), mask.to(device)
