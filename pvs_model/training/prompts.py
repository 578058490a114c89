"""Embeds the prompts of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from pvs_model.nets.text import TextEncoder, pad, prompt
from pvs_model.types import SEQUENCES

#: Prompt of the networks that are trained with a single one.
CONSTANT_PROMPT = prompt(SEQUENCES, 1.0)


class Prompts:
    """Token embeddings of prompts, each encoded when it is first used."""

    def __init__(self, encoder: TextEncoder, constant: bool = False) -> None:
        """
        Args:
            encoder: Text encoder.
            constant: Whether every prompt is replaced by ``CONSTANT_PROMPT``.
        """
        self.encoder = encoder
        self.constant = constant
        self.embeddings: dict[str, Tensor] = {}

    def __call__(self, prompts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns tokens (B, T, W) and their mask (B, T)."""
        if self.constant:
            prompts = [CONSTANT_PROMPT] * len(prompts)
        new = [p for p in dict.fromkeys(prompts) if p not in self.embeddings]
        if new:
            self.embeddings.update(zip(new, self.encoder.encode(new), strict=True))
        tokens, mask = pad([self.embeddings[p] for p in prompts])
        return tokens.to(device), mask.to(device)
