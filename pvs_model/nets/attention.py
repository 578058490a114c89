"""Attention between image and text: section 2.2 of the paper, and the pooling of tokens.

N = voxels at the module's level, T = text tokens, C = channels, B = batch. Masks are True for real
tokens; every sample needs at least one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
    """Computes softmax(Q K^T / sqrt d) V of queries (..., N, d) and keys and values (..., M, d).

    ``keep`` is True for the keys to attend to. Traced graphs contain the formula instead of torch's operator:
    OpenVINO's own attention (2026.4, d = 12) gives wrong results in bfloat16, and with few keys it is slower.
    """
    if not torch.jit.is_tracing():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
    score = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if keep is not None:
        score = score.masked_fill(~keep, -torch.inf)
    return score.softmax(dim=-1) @ value


class TokenPooling(nn.Module):
    """Self-attention pooling of text tokens to one vector (section 2.3, "weighted pooling").

    g = sum_t softmax_t(v . tanh(W x_t)) x_t, over the real tokens only. Cost: T x C^2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, T, C) and mask (B, T) to (B, C)."""
        score = self.score(tokens).squeeze(-1).masked_fill(~mask, -torch.inf)
        weight = score.softmax(dim=-1).to(tokens.dtype)
        return torch.einsum("bt,btc->bc", weight, tokens)


class _Attend(nn.Module):
    """One direction: pre-norm attention of one modality to the other, concatenation, feed-forward, residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width)
        self.norm_key = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, other: Tensor, other_mask: Tensor | None) -> Tensor:
        """Attends from x (B, N, C) to other (B, M, C), masked by other_mask (B, M) or None. Returns (B, N, C)."""
        query = rearrange(self.query(self.norm_query(x)), "b n (h d) -> b h n d", h=self.heads)
        key, value = rearrange(
            self.key_value(self.norm_key(other)), "b m (two h d) -> two b h m d", two=2, h=self.heads
        ).unbind(0)
        keep = None if other_mask is None else rearrange(other_mask, "b m -> b 1 1 m")
        attended = attend(query, key, value, keep)
        attended = self.project(rearrange(attended, "b h n d -> b n (h d)"))
        update: Tensor = self.feed_forward(torch.cat([x, attended.to(x.dtype)], dim=-1))
        return x + update.to(x.dtype)


class CrossAttention(nn.Module):
    """Multimodal cross-attention (section 2.2): image queries over text keys, and the reverse.

    For each modality: x + FFN([x, Attention(LN(x), LN(y))]) with a feed-forward of 2C -> 2C -> C.
    Both directions read the unmodified inputs. Cost: N x (8 C^2 + 4 T C), linear in N.
    """

    def __init__(self, width: int, heads: int) -> None:
        """
        Args:
            width: C, channels of both modalities.
            heads: Attention heads; must divide ``width``.

        Raises:
            ValueError: If ``heads`` does not divide ``width``.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"the number of heads must divide the width, got {heads} heads and width {width}")
        self.image_to_text = _Attend(width, heads)
        self.text_to_image = _Attend(width, heads)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, N, C), text (B, T, C) and its mask (B, T) to the pair of the same shapes."""
        return self.image_to_text(image, text, mask), self.text_to_image(text, image, None)
