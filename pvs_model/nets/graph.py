"""Multimodal graph interaction enhancement: section 2.1 of the paper, equations (1) to (6).

N = features of a modality (voxels of the image's level, or text tokens), K = graph nodes, C = channels,
B = batch. Features are (B, N, C); masks (B, N) are True for real features. Everything is linear in N:
the largest tensors are N x C and N x K, and none is N x K x C.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvs_model.nets.attention import TokenPooling, attend

#: Lower bound of sigma, and the term that keeps both denominators of equation (2) from zero.
EPSILON = 1e-6


class GraphProjection(nn.Module):
    """Projection of features to graph nodes, G^pro: equations (1) and (2).

    With f layer-normalised first::

        (1)  S_ik   = softmax over k of -|(f_i - l_k) / sigma_k|^2 / 2
        (2)  node_k = (sum_i S_ik f_i / sum_i S_ik - l_k) / sigma_k, then to unit length

    The square is expanded, f^2 . sigma^-2 - 2 f . (l sigma^-2) + |l / sigma|^2, so that (1) is two
    matrix products and no N x K x C tensor exists. Under autocast both equations stay in float32: the
    exponent is a difference of large terms. sigma = softplus(raw) + eps starts at sqrt(C), where the
    exponent is of order 1; a sigmoid (sigma < 1) would start with S all zeros and ones. Cost: 3 N K C.
    """

    def __init__(self, width: int, nodes: int) -> None:
        """
        Args:
            width: C, channels of the features.
            nodes: K, number of graph nodes.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.centres = nn.Parameter(torch.randn(nodes, width))
        raw = math.log(math.expm1(math.sqrt(width) - EPSILON))  # the inverse of softplus
        self.raw_sigma = nn.Parameter(torch.full((nodes, width), raw))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Projects features to nodes.

        Args:
            features: (B, N, C).
            mask: (B, N), True for real features, or None where all are. Others have no weight in any node.

        Returns:
            Nodes (B, K, C) of unit length, and the assignment S (B, N, K) whose rows sum to 1 (to 0
            where masked). Both float32 (float64 for float64 features).
        """
        with torch.autocast(features.device.type, enabled=False):
            f = self.norm(features.to(torch.promote_types(features.dtype, self.centres.dtype)))
            sigma = F.softplus(self.raw_sigma) + EPSILON
            precision = sigma.pow(-2)
            squared = f.square() @ precision.T - 2 * (f @ (self.centres * precision).T)
            squared = squared + (self.centres.square() * precision).sum(dim=-1)
            assignment = (-0.5 * squared).softmax(dim=-1)
            if mask is not None:
                assignment = assignment * mask.unsqueeze(-1)
            weight = assignment.sum(dim=1).unsqueeze(-1)  # (B, K, 1)
            node = (torch.einsum("bnk,bnc->bkc", assignment, f) / (weight + EPSILON) - self.centres) / sigma
            length = node.norm(dim=-1, keepdim=True)
            return node / (length + EPSILON), assignment


class GraphInteraction(nn.Module):
    """Cross-attention between the two graphs, G^inter: equation (3).

    ::

        G'_T = w_T softmax(Q_T K_I^T / sqrt C) V_I + G_T
        G'_I = w_I softmax(Q_I K_T^T / sqrt C) V_T + G_I

    As printed, the values are the modality's own (V_T in the first line), so that text would mix with
    text only, by weights from the image; ``values="own"`` keeps that for the ablation.
    """

    def __init__(self, width: int, values: str = "other") -> None:
        """
        Args:
            width: C, channels of the nodes.
            values: "other" or "own" (as printed).

        Raises:
            ValueError: If ``values`` is neither.
        """
        super().__init__()
        if values not in ("other", "own"):
            raise ValueError(f"values must be 'other' or 'own', got {values!r}")
        self.values = values
        self.text = nn.Linear(width, 3 * width)  # to query, key and value
        self.image = nn.Linear(width, 3 * width)
        self.weight_text = nn.Parameter(torch.tensor(0.1))
        self.weight_image = nn.Parameter(torch.tensor(0.1))

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes of text and of image, both (B, K, C), to the pair of the same shapes."""
        query_text, key_text, value_text = self.text(text).chunk(3, dim=-1)
        query_image, key_image, value_image = self.image(image).chunk(3, dim=-1)
        if self.values == "own":
            value_text, value_image = value_image, value_text
        from_image = attend(query_text, key_image, value_image)
        from_text = attend(query_image, key_text, value_text)
        return self.weight_text * from_image + text, self.weight_image * from_text + image


class GraphReasoning(nn.Module):
    """Graph convolution G^rea and re-projection G^repro of one modality: equations (4) and (5).

    G'' = relu(A G' W) with A = softmax over rows of G G^T (G before the interaction), and
    F' = S Linear(G'') + F. The second F'_T printed in (5) is F'_I.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolve = nn.Linear(width, width, bias=False)  # W
        self.reproject = nn.Linear(width, width)

    def forward(self, nodes: Tensor, interacted: Tensor, assignment: Tensor, features: Tensor) -> Tensor:
        """G (B, K, C), G' (B, K, C), S (B, N, K) and F (B, N, C) to F' (B, N, C)."""
        adjacency = (nodes @ nodes.transpose(-1, -2)).softmax(dim=-1)
        reasoned = torch.relu(self.convolve(adjacency @ interacted))
        projected: Tensor = assignment @ self.reproject(reasoned)
        return features + projected.to(features.dtype)


class NodeSupport(nn.Module):
    """Features supported by the other modality's nodes over a K-nearest-neighbour graph: equation (6).

    Each feature f_i is joined to the ``neighbours`` nodes t_j with the largest dot product (nodes have
    unit length); edges are relu(conv1x1(f_i - t_j)); their channel-wise maximum is added to f_i::

        out_i = f_i + max over j of relu(W (f_i - t_j) + b)
              = f_i + relu(W f_i + b + max over j of (-W t_j))

    The second line holds since relu is monotone and W linear. It needs W t_j for the K nodes only, and
    the maximum is gathered neighbour by neighbour: only N x C tensors. Cost: N C (C + K).
    """

    def __init__(self, width: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.edge = nn.Linear(width, width)

    def forward(self, features: Tensor, nodes: Tensor) -> Tensor:
        """Features (B, N, C) and the other modality's nodes (B, K, C) to (B, N, C)."""
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            # The choice of the nearest nodes has no gradient; float32 avoids the ties of bfloat16.
            similarity = features.to(nodes.dtype) @ nodes.transpose(-1, -2)
            nearest = similarity.topk(self.neighbours, dim=-1).indices  # (B, N, neighbours)
            offset = torch.arange(nodes.shape[0], device=nodes.device) * nodes.shape[1]
            nearest = nearest + offset.view(-1, 1, 1)  # rows of the nodes of the whole batch
        embedded = self.edge(features)
        table = -F.linear(nodes.to(embedded.dtype), self.edge.weight.to(embedded.dtype)).flatten(0, 1)  # (B K, C)
        support = F.embedding(nearest[..., 0], table)
        for column in nearest[..., 1:].unbind(-1):
            support = torch.maximum(support, F.embedding(column, table))
        return features + torch.relu(embedded + support.to(embedded.dtype)).to(features.dtype)


class GraphModule(nn.Module):
    """Multimodal graph interaction (equations 1 to 5) and enhancement (6), all of section 2.1.

    The fusion before (6) multiplies channels. Text and image have unequal lengths, so each modality is
    multiplied by a gate made of one vector of the other: F_fus^I = F'_I * sigmoid(g_T) with text pooled
    by attention, F_fus^T = F'_T * sigmoid(g_I) with the image's mean. Support then crosses over: image
    features take text nodes and the reverse. Cost: about N C (3 C + 8 K) multiplications and 12 tensors
    of N x C.
    """

    def __init__(self, width: int, nodes: int, neighbours: int, values: str = "other") -> None:
        """
        Args:
            width: C, channels of both modalities.
            nodes: K.
            neighbours: Nodes joined to each feature in (6); at most K.
            values: Modality whose values equation (3) uses, "other" or "own".

        Raises:
            ValueError: If ``neighbours`` is not between 1 and ``nodes``.
        """
        super().__init__()
        if not 1 <= neighbours <= nodes:
            raise ValueError(f"neighbours must be between 1 and the number of nodes {nodes}, got {neighbours}")
        self.project_text = GraphProjection(width, nodes)
        self.project_image = GraphProjection(width, nodes)
        self.interact = GraphInteraction(width, values)
        self.reason_text = GraphReasoning(width)
        self.reason_image = GraphReasoning(width)
        self.pool_text = TokenPooling(width)
        self.project_fused_text = GraphProjection(width, nodes)
        self.project_fused_image = GraphProjection(width, nodes)
        self.support_text = NodeSupport(width, neighbours)
        self.support_image = NodeSupport(width, neighbours)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, N, C), text (B, T, C) and its mask (B, T) to the enhanced pair of the same shapes."""
        nodes_text, assigned_text = self.project_text(text, mask)
        nodes_image, assigned_image = self.project_image(image)
        inter_text, inter_image = self.interact(nodes_text, nodes_image)
        text = self.reason_text(nodes_text, inter_text, assigned_text, text)
        image = self.reason_image(nodes_image, inter_image, assigned_image, image)

        gate_image = self.pool_text(text, mask).sigmoid().to(image.dtype).unsqueeze(1)
        gate_text = image.mean(dim=1, keepdim=True).sigmoid().to(text.dtype)
        image, text = image * gate_image, text * gate_text

        nodes_text, _ = self.project_fused_text(text, mask)
        nodes_image, _ = self.project_fused_image(image)
        return self.support_image(image, nodes_text), self.support_text(text, nodes_image)
