"""Equations (1) to (6) and sections 2.2 and 2.3 against slow float64 loops written from the formulas.

The loops below use no code of the modules but their parameters, go voxel by voxel, node by node and
channel by channel where the formula has an index, and are differentiated by autograd: values and the
gradients of every input and parameter must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pvs_model.nets.attention import CrossAttention, TokenPooling
from pvs_model.nets.fusion import DynamicFusion
from pvs_model.nets.graph import GraphInteraction, GraphModule, GraphProjection, GraphReasoning, NodeSupport

B, N, T, C, K, NEIGHBOURS = 2, 7, 4, 6, 4, 2
MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def features(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def ready(module: nn.Module, seed: int = 1) -> nn.Module:
    """The module in float64 with every parameter random, so that no initial 0 or 1 hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return module


def agree(
    module: nn.Module, fast: Callable[[], Sequence[Tensor]], slow: Callable[[], Sequence[Tensor]], *inputs: Tensor
) -> None:
    """Same values, and same gradients of a random sum of the outputs."""
    leaves = [*inputs, *module.parameters()]
    results = []
    for compute in (fast, slow):
        outputs = compute()
        total = sum((output * features(*output.shape, seed=9).detach()).sum() for output in outputs)
        assert isinstance(total, Tensor)
        results.append((outputs, torch.autograd.grad(total, leaves, allow_unused=True)))
    (fast_out, fast_grad), (slow_out, slow_grad) = results
    for a, b in zip(fast_out, slow_out, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for a, b in zip(fast_grad, slow_grad, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(a if a is not None else zero, b if b is not None else zero, rtol=1e-7, atol=1e-8)


# ---- the formulas, by loops; one sample at a time, lists of vectors (C,) -----------------------------------------


def slow_softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    total = sum((score.exp() for score in scores), torch.zeros((), dtype=torch.float64))
    return [score.exp() / total for score in scores]


def slow_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def slow_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    rows = [sum((w * v for w, v in zip(row, x, strict=True)), torch.zeros(())) for row in linear.weight]
    return torch.stack(rows) + (0 if linear.bias is None else linear.bias)


def slow_project(p: GraphProjection, f: Tensor, real: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """(1): S_ik = exp(-|(f_i - l_k) / sigma_k|^2 / 2) / sum over p of the same; (2): the nodes."""
    normed = [slow_norm(p.norm, x) for x in f]
    sigma = [(1 + raw.exp()).log() + 1e-6 for raw in p.raw_sigma]
    assignment = []
    for x in normed:
        assignment.append(
            slow_softmax([-((((x - p.centres[k]) / sigma[k]) ** 2).sum()) / 2 for k in range(len(p.centres))])
        )
    nodes = []
    for k in range(len(p.centres)):
        summed, weight = torch.zeros(f.shape[1], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for i, x in enumerate(normed):
            if real[i]:
                summed, weight = summed + assignment[i][k] * x, weight + assignment[i][k]
        node = (summed / (weight + 1e-6) - p.centres[k]) / sigma[k]
        nodes.append(node / ((node**2).sum().sqrt() + 1e-6))
    zero = torch.zeros(len(p.centres), dtype=torch.float64)
    return torch.stack(nodes), torch.stack([torch.stack(s) if real[i] else zero for i, s in enumerate(assignment)])


def slow_interact(m: GraphInteraction, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """(3): G'_T = w_T softmax(Q_T K_I^T / sqrt C) V_I + G_T, and the mirror image."""
    width = text.shape[1]

    def parts(linear: nn.Linear, nodes: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        made = [slow_linear(linear, node) for node in nodes]
        return [x[:width] for x in made], [x[width : 2 * width] for x in made], [x[2 * width :] for x in made]

    def mix(queries: list[Tensor], keys: list[Tensor], values: list[Tensor]) -> Tensor:
        mixed = []
        for query in queries:
            weights = slow_softmax([(query * key).sum() / math.sqrt(width) for key in keys])
            mixed.append(torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0))
        return torch.stack(mixed)

    q_text, k_text, v_text = parts(m.text, text)
    q_image, k_image, v_image = parts(m.image, image)
    own = m.values == "own"
    return (
        m.weight_text * mix(q_text, k_image, v_text if own else v_image) + text,
        m.weight_image * mix(q_image, k_text, v_image if own else v_text) + image,
    )


def slow_reason(m: GraphReasoning, nodes: Tensor, interacted: Tensor, assignment: Tensor, f: Tensor) -> Tensor:
    """(4, 5): G'' = relu(A G' W), A = row softmax of G G^T; F' = S Linear(G'') + F."""
    reasoned = []
    for k in range(len(nodes)):
        row = slow_softmax([(nodes[k] * nodes[j]).sum() for j in range(len(nodes))])
        mixed = torch.stack([row[j] * interacted[j] for j in range(len(nodes))]).sum(0)
        reasoned.append(slow_linear(m.reproject, slow_linear(m.convolve, mixed).clamp(min=0)))
    return torch.stack(
        [
            x + torch.stack([s[k] * reasoned[k] for k in range(len(nodes))]).sum(0)
            for x, s in zip(f, assignment, strict=True)
        ]
    )


def slow_support(m: NodeSupport, f: Tensor, nodes: Tensor) -> Tensor:
    """(6): f_i + max over the nearest t_j of relu(conv1x1(f_i - t_j))."""
    supported = []
    for x in f:
        order = sorted(range(len(nodes)), key=lambda j: -(x * nodes[j]).sum().item())
        edges = [slow_linear(m.edge, x - nodes[j]).clamp(min=0) for j in order[: m.neighbours]]
        best = torch.stack([max((edge[c] for edge in edges), key=Tensor.item) for c in range(len(x))])
        supported.append(x + best)
    return torch.stack(supported)


def slow_pool(m: TokenPooling, tokens: Tensor, real: Sequence[bool]) -> Tensor:
    first, last = m.score[0], m.score[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    kept = [x for x, keep in zip(tokens, real, strict=True) if keep]
    weights = slow_softmax([slow_linear(last, slow_linear(first, x).tanh())[0] for x in kept])
    return torch.stack([w * x for w, x in zip(weights, kept, strict=True)]).sum(0)


def slow_graph(m: GraphModule, image: Tensor, text: Tensor, real: Sequence[bool]) -> tuple[Tensor, Tensor]:
    nodes_text, assigned_text = slow_project(m.project_text, text, real)
    nodes_image, assigned_image = slow_project(m.project_image, image, [True] * len(image))
    inter_text, inter_image = slow_interact(m.interact, nodes_text, nodes_image)
    text = slow_reason(m.reason_text, nodes_text, inter_text, assigned_text, text)
    image = slow_reason(m.reason_image, nodes_image, inter_image, assigned_image, image)
    gate_image = 1 / (1 + (-slow_pool(m.pool_text, text, real)).exp())
    gate_text = 1 / (1 + (-image.sum(0) / len(image)).exp())
    image, text = image * gate_image, text * gate_text
    fused_text, _ = slow_project(m.project_fused_text, text, real)
    fused_image, _ = slow_project(m.project_fused_image, image, [True] * len(image))
    return slow_support(m.support_image, image, fused_text), slow_support(m.support_text, text, fused_image)


def slow_attend(m: nn.Module, x: Tensor, other: Tensor, real: Sequence[bool], heads: int) -> Tensor:
    """Section 2.2: x + FFN([x, Attention(LN(x), LN(other))]), head by head."""
    width = x.shape[1]
    size = width // heads
    keys, values = [], []
    for y, keep in zip(other, real, strict=True):
        if keep:
            made = slow_linear(m.key_value, slow_norm(m.norm_key, y))
            keys.append(made[:width])
            values.append(made[width:])
    results = []
    for row in x:
        query = slow_linear(m.query, slow_norm(m.norm_query, row))
        parts = []
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            weights = slow_softmax([(query[at] * key[at]).sum() / math.sqrt(size) for key in keys])
            parts.append(torch.stack([w * v[at] for w, v in zip(weights, values, strict=True)]).sum(0))
        joined = torch.cat([row, slow_linear(m.project, torch.cat(parts))])
        hidden = F.gelu(slow_linear(m.feed_forward[0], joined))
        results.append(row + slow_linear(m.feed_forward[2], hidden))
    return torch.stack(results)


def slow_fusion(m: DynamicFusion, image: Tensor, text: Tensor, real: Sequence[bool]) -> Tensor:
    """Section 2.3: alpha F + beta g, (alpha, beta) = sigmoid(MLP([F + g, F * g]))."""
    pooled = slow_pool(m.pool, text, real)
    fused = []
    for x in image:
        hidden = F.gelu(slow_linear(m.weights[0], torch.cat([x + pooled, x * pooled])))
        alpha, beta = 1 / (1 + (-slow_linear(m.weights[2], hidden)).exp())
        fused.append(alpha * x + beta * pooled)
    return torch.stack(fused)


def stack(rows: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*rows, strict=True)]


# ---- equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK])
def test_equations_1_and_2(mask: Tensor | None) -> None:
    module = ready(GraphProjection(C, K))
    f = features(B, T, C)
    real = torch.ones(B, T, dtype=torch.bool) if mask is None else mask
    agree(
        module,
        lambda: module(f, mask),
        lambda: stack([slow_project(module, f[b], real[b].tolist()) for b in range(B)]),
        f,
    )


def test_equation_1_gradcheck() -> None:
    module = ready(GraphProjection(3, 2))
    leaves = [features(1, 4, 3), *module.parameters()]
    assert torch.autograd.gradcheck(lambda f, *_: module(f, torch.tensor([[True, True, True, False]])), leaves)


def test_assignment_rows_sum_to_one_and_nodes_have_unit_length() -> None:
    nodes, assignment = ready(GraphProjection(C, K))(features(B, T, C), MASK)
    torch.testing.assert_close(assignment.sum(-1), MASK.double())
    torch.testing.assert_close(nodes.norm(dim=-1), torch.ones(B, K, dtype=torch.float64), rtol=0, atol=1e-4)


def test_sigma_starts_at_root_c_where_the_assignment_is_soft() -> None:
    torch.manual_seed(0)
    module = GraphProjection(48, 10)
    torch.testing.assert_close(F.softplus(module.raw_sigma) + 1e-6, torch.full((10, 48), math.sqrt(48)))
    _, assignment = module(torch.randn(1, 200, 48))
    assert 0.1 < assignment.max(dim=-1).values.mean() < 0.5  # 0.1: all nodes alike, 1: saturated


@pytest.mark.parametrize("values", ["other", "own"])
def test_equation_3(values: str) -> None:
    module = GraphInteraction(C, values)
    assert module.weight_text.item() == module.weight_image.item() == pytest.approx(0.1)
    ready(module)
    text, image = features(B, K, C), features(B, K, C, seed=2)
    slow = [lambda b=b: slow_interact(module, text[b], image[b]) for b in range(B)]
    agree(module, lambda: module(text, image), lambda: stack([one() for one in slow]), text, image)


def test_equation_3_other_values_carry_the_other_modality_and_own_values_do_not() -> None:
    """Changing what image nodes say (value), not how they are matched (key), reaches text only with "other"."""
    text, image = features(B, K, C), features(B, K, C, seed=2)
    for values, reaches in (("other", True), ("own", False)):
        module = ready(GraphInteraction(C, values))
        before, _ = module(text, image)
        with torch.no_grad():
            module.image.bias[2 * C :] += 1.0
        after, _ = module(text, image)
        assert (not torch.equal(before, after)) is reaches


def test_equations_4_and_5() -> None:
    module = ready(GraphReasoning(C))
    nodes, interacted, f = features(B, K, C), features(B, K, C, seed=2), features(B, N, C, seed=3)
    assignment = features(B, N, K, seed=4)
    agree(
        module,
        lambda: [module(nodes, interacted, assignment, f)],
        lambda: [torch.stack([slow_reason(module, nodes[b], interacted[b], assignment[b], f[b]) for b in range(B)])],
        *(nodes, interacted, assignment, f),
    )


@pytest.mark.parametrize("neighbours", [1, 2, K])
def test_equation_6(neighbours: int) -> None:
    module = ready(NodeSupport(C, neighbours))
    f, nodes = features(B, N, C), features(B, K, C, seed=2)
    agree(
        module,
        lambda: [module(f, nodes)],
        lambda: [torch.stack([slow_support(module, f[b], nodes[b]) for b in range(B)])],
        *(f, nodes),
    )


def test_equation_6_by_hand() -> None:
    """Identity convolution, f = (2, 1), nodes a = (1, 0), b = (0, 1), c = (-1, 0): a and b are nearest.

    f - a = (1, 1) and f - b = (2, 0); their maximum is (2, 1); with the residual (4, 2). Node c, which is
    not joined, would have given 3 in the first channel.
    """
    module = NodeSupport(2, neighbours=2).double()
    with torch.no_grad():
        module.edge.weight.copy_(torch.eye(2))
        module.edge.bias.zero_()
    nodes = torch.tensor([[[1, 0], [0, 1], [-1, 0]]], dtype=torch.float64)
    result = module(torch.tensor([[[2, 1]]], dtype=torch.float64), nodes)
    assert result.tolist() == [[[4.0, 2.0]]]


@pytest.mark.parametrize("spatial", [(2, 4), (2, 2, 2)])
@pytest.mark.parametrize("values", ["other", "own"])
def test_whole_graph_module(spatial: tuple[int, ...], values: str) -> None:
    module = ready(GraphModule(C, K, NEIGHBOURS, values))
    grid, text = features(B, C, *spatial), features(B, T, C, seed=2)
    image = grid.flatten(2).mT
    agree(
        module,
        lambda: module(image, text, MASK),
        lambda: stack([slow_graph(module, image[b], text[b], MASK[b].tolist()) for b in range(B)]),
        *(grid, text),
    )


def test_section_2_2_attention() -> None:
    module = ready(CrossAttention(C, heads=2))
    image, text = features(B, N, C), features(B, T, C, seed=2)

    def slow() -> list[Tensor]:
        rows = []
        for b in range(B):
            to_text = slow_attend(module.image_to_text, image[b], text[b], MASK[b].tolist(), 2)
            to_image = slow_attend(module.text_to_image, text[b], image[b], [True] * N, 2)
            rows.append((to_text, to_image))
        return stack(rows)

    agree(module, lambda: module(image, text, MASK), slow, image, text)


def test_section_2_3_fusion() -> None:
    module = ready(DynamicFusion(C))
    image, text = features(B, N, C), features(B, T, C, seed=2)
    agree(
        module,
        lambda: [module(image, text, MASK)],
        lambda: [torch.stack([slow_fusion(module, image[b], text[b], MASK[b].tolist()) for b in range(B)])],
        *(image, text),
    )


# ---- laws --------------------------------------------------------------------------------------------------------


MODULES: dict[str, Callable[[], nn.Module]] = {
    "graph": lambda: GraphModule(C, K, NEIGHBOURS),
    "attention": lambda: CrossAttention(C, heads=2),
    "fusion": lambda: DynamicFusion(C),
}


@pytest.mark.parametrize("name", MODULES)
def test_padded_tokens_change_nothing(name: str) -> None:
    module = ready(MODULES[name]())
    image, text = features(1, N, C), features(1, T, C, seed=2)
    real = torch.ones(1, T, dtype=torch.bool)
    padded = torch.cat([text, torch.full((1, 3, C), 100.0, dtype=torch.float64)], dim=1)
    mask = torch.cat([real, torch.zeros(1, 3, dtype=torch.bool)], dim=1)
    plain, other = module(image, text, real), module(image, padded, mask)
    if isinstance(plain, Tensor):
        plain, other = (plain,), (other,)
    for a, b in zip(plain, other, strict=True):
        torch.testing.assert_close(a, b[:, : a.shape[1]], rtol=1e-10, atol=1e-10)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest(voxels: int, width: int = 48, nodes: int = 10) -> int:
    """Elements of the largest tensor in the three modules' forward and backward passes."""
    graph, attention, fusion = GraphModule(width, nodes, 5), CrossAttention(width, 4), DynamicFusion(width)
    image, text = torch.randn(1, voxels, width, requires_grad=True), torch.randn(1, 3, width, requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    with Largest() as record:
        fused = fusion(*attention(*graph(image, text, mask), mask), mask)
        fused.sum().backward()
    return record.elements


def test_memory_is_linear_in_voxels_and_no_tensor_is_n_by_k_by_c() -> None:
    small, large = largest(1024), largest(2048)
    assert small < 1024 * 10 * 48
    assert small <= 1024 * 2 * 48  # in fact nothing is larger than the concatenation [F, attended]
    assert large == 2 * small


def test_the_memory_record_sees_what_it_should() -> None:
    f, centres = torch.randn(1024, 48), torch.randn(10, 48)
    with Largest() as record:
        ((f[:, None] - centres) ** 2).sum(-1)
    assert record.elements == 1024 * 10 * 48


def test_equation_1_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    module, f = GraphProjection(48, 10), torch.randn(1, 50, 48)
    with torch.autocast("cpu", torch.bfloat16):
        nodes, assignment = module(f)
    assert assignment.dtype == nodes.dtype == torch.float32
    exact_nodes, exact_assignment = module.double()(f.double())
    torch.testing.assert_close(assignment.double(), exact_assignment, rtol=0, atol=1e-6)  # bfloat16 errs by 1e-3
    torch.testing.assert_close(nodes.double(), exact_nodes, rtol=0, atol=1e-5)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        CrossAttention(6, heads=4)
    with pytest.raises(ValueError, match="neighbours"):
        GraphModule(C, nodes=4, neighbours=5)
    with pytest.raises(ValueError, match="values"):
        GraphInteraction(C, "both")
