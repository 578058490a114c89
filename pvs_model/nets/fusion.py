"""Multimodal feature fusion: section 2.3 of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvs_model.nets.attention import TokenPooling


class DynamicFusion(nn.Module):
    """Fuses image and text by weights that differ from voxel to voxel (section 2.3).

    Text is pooled to g by self-attention. [F + g, F * g] goes through an MLP (2C -> C -> 2) to two
    sigmoid maps alpha and beta of shape N x 1, and out = alpha F + beta g. Cost: 2 N C^2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = TokenPooling(width)
        self.weights = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 2), nn.Sigmoid())

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Image F (B, N, C), text (B, T, C) and its mask (B, T), True for real tokens, to (B, N, C)."""
        pooled: Tensor = self.pool(text, mask).to(image.dtype).unsqueeze(1)
        weights: Tensor = self.weights(torch.cat([image + pooled, image * pooled], dim=-1))
        alpha, beta = weights.to(image.dtype).chunk(2, dim=-1)
        return alpha * image + beta * pooled
