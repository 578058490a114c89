"""The nested grid and the assembled network: wiring, shapes, switches, and laws that hold for any weights."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pvs_model.config import NETWORK_2D, NETWORK_3D, NetworkConfig
from pvs_model.nets.attention import CrossAttention
from pvs_model.nets.base import Head
from pvs_model.nets.blocks import ConvBlock, ResidualStage, upsampling
from pvs_model.nets.fusion import DynamicFusion
from pvs_model.nets.graph import GraphModule
from pvs_model.nets.model import GraphFusionNet, TextConcatenation, TextGuidance, build
from pvs_model.nets.nested import NestedUNet

#: Small networks with every part, for the laws.
SMALL_3D = NetworkConfig(widths=(4, 8, 12, 16), text_width=10, nested_from=0, fluid=False)
SMALL_2D = NetworkConfig(
    dimensions=2, neighbour_slices=3, widths=(4, 8, 12, 16), text_width=10, nested_from=0, fluid=False
)
SMALL = pytest.mark.parametrize("config", [SMALL_2D, SMALL_3D], ids=["2D", "3D"])

#: The rows of Table 2 of the paper.
ABLATION = {
    "backbone": {"text": False, "graph": False, "cross_attention": False, "fusion": False},
    "text": {"graph": False, "cross_attention": False, "fusion": False},
    "graph": {"cross_attention": False, "fusion": False},
    "attention": {"fusion": False},
    "fusion": {},
}


def network(config: NetworkConfig, seed: int = 0) -> GraphFusionNet:
    torch.manual_seed(seed)
    return build(config)


def inputs(config: NetworkConfig, batch: int = 2, size: int = 16, tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, config.in_channels, *[size] * config.dimensions, generator=generator)
    text = torch.randn(batch, tokens, config.text_width, generator=generator)
    mask = torch.arange(tokens) < torch.tensor([[tokens - 2 * b] for b in range(batch)]).clamp(min=1)
    return image, text, mask


# ---- blocks and the nested grid ----


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_is_convolution_normalisation_and_leaky_relu(dimensions: int, stride: int) -> None:
    torch.manual_seed(0)
    block = ConvBlock(dimensions, 2, 3, stride)
    convolution, norm = block[0], block[1]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    image = torch.randn(2, 2, *[6] * dimensions)
    convolve = nn.functional.conv2d if dimensions == 2 else nn.functional.conv3d
    made = convolve(image, convolution.weight, stride=stride, padding=1)
    assert made.shape[2:] == (6 // stride,) * dimensions
    flat = made.flatten(2)
    flat = (flat - flat.mean(2, keepdim=True)) / (flat.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
    flat = flat * norm.weight[:, None] + norm.bias[:, None]
    torch.testing.assert_close(block(image).flatten(2), torch.where(flat > 0, flat, 0.01 * flat), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_upsampling_doubles_every_size_and_gives_each_child_its_own_weights(dimensions: int) -> None:
    torch.manual_seed(0)
    up = upsampling(dimensions, 2, 3)
    coarse = torch.randn(1, 2, *[1] * dimensions)
    fine = up(coarse)
    assert fine.shape == (1, 3, *[2] * dimensions)
    children = torch.einsum("i,io...->o...", coarse.flatten(), up.weight) + up.bias.view(-1, *[1] * dimensions)
    torch.testing.assert_close(fine[0], children)


def test_grid_of_three_levels_is_wired_as_drawn() -> None:
    """The grid written out node by node, with the same parts."""
    torch.manual_seed(0)
    net = NestedUNet(2, 2, (3, 4, 5))
    image = torch.randn(2, 2, 8, 12)
    x00 = net.encoder[0](image)
    x10 = net.encoder[1](x00)
    x20 = net.encoder[2](x10)
    x01 = net.nodes["0_1"](torch.cat([x00, net.up["0_1"](x10)], 1))
    x11 = net.nodes["1_1"](torch.cat([x10, net.up["1_1"](x20)], 1)) + 7  # what enhance does below
    x02 = net.nodes["0_2"](torch.cat([x00, x01, net.up["0_2"](x11)], 1))
    got = net(image, enhance=lambda feature: feature + 7)
    for mine, its in zip((x02, x11), got, strict=True):
        torch.testing.assert_close(mine, its)
    assert [tuple(x.shape) for x in got] == [(2, 3, 8, 12), (2, 4, 4, 6)]


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_enhance_is_called_once_at_half_resolution_and_changes_the_output(levels: int) -> None:
    torch.manual_seed(0)
    net = NestedUNet(3, 1, (2, 3, 4, 5)[:levels])
    image = torch.randn(1, 1, 16, 16, 16)
    seen: list[tuple[int, ...]] = []

    def enhance(feature: Tensor) -> Tensor:
        seen.append(tuple(feature.shape))
        return feature.square()

    enhanced, plain = net(image, enhance)[0], net(image)[0]
    assert seen == [(1, 3, 8, 8, 8)]
    assert not torch.allclose(enhanced, plain)


def test_each_nested_node_has_one_convolution_and_the_last_diagonal_two() -> None:
    net = NestedUNet(3, 3, (2, 3, 4, 5))
    count = {
        key: sum(isinstance(part, nn.Conv3d) for part in node.modules()) for key, node in net.nodes.named_children()
    }
    assert count == {"0_1": 1, "1_1": 1, "2_1": 2, "0_2": 1, "1_2": 2, "0_3": 2}
    assert [sum(isinstance(part, nn.Conv3d) for part in stage.modules()) for stage in net.encoder] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("nested_from", "nodes"),
    [
        (0, ["0_1", "1_1", "2_1", "0_2", "1_2", "0_3"]),  # the first networks
        (1, ["1_1", "2_1", "1_2", "0_3"]),
        (2, ["2_1", "1_2", "0_3"]),  # a plain U-Net: one node per level
    ],
)
def test_rows_are_nested_from_a_level_on(nested_from: int, nodes: list[str]) -> None:
    net = NestedUNet(2, 1, (2, 3, 4, 5), nested_from=nested_from)
    assert list(net.nodes) == list(net.up) == nodes
    image = torch.randn(1, 1, 16, 24)
    assert [tuple(x.shape) for x in net(image)] == [(1, 2, 16, 24), (1, 3, 8, 12), (1, 4, 4, 6)]
    if nested_from == 0:
        torch.manual_seed(0)
        first = NestedUNet(2, 1, (2, 3, 4, 5))
        torch.manual_seed(0)
        same = NestedUNet(2, 1, (2, 3, 4, 5), nested_from=0)
        assert all(torch.equal(a, b) for a, b in zip(first(image), same(image), strict=True))


def test_grid_that_is_nested_below_full_resolution_is_wired_as_drawn() -> None:
    torch.manual_seed(0)
    net = NestedUNet(2, 2, (2, 3, 4, 5), nested_from=1)
    image = torch.randn(2, 2, 16, 16)
    x00 = net.encoder[0](image)
    x10 = net.encoder[1](x00)
    x20 = net.encoder[2](x10)
    x30 = net.encoder[3](x20)
    x11 = net.nodes["1_1"](torch.cat([x10, net.up["1_1"](x20)], 1))
    x21 = net.nodes["2_1"](torch.cat([x20, net.up["2_1"](x30)], 1))
    x12 = net.nodes["1_2"](torch.cat([x10, x11, net.up["1_2"](x21)], 1)) + 7  # what enhance does below
    x03 = net.nodes["0_3"](torch.cat([x00, net.up["0_3"](x12)], 1))
    for mine, its in zip((x03, x12, x21), net(image, enhance=lambda feature: feature + 7), strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("level", [0, 1])
def test_either_level_of_two_is_enhanced_once(level: int) -> None:
    net = NestedUNet(2, 1, (2, 3), enhanced=level)
    widths: list[int] = []

    def enhance(feature: Tensor) -> Tensor:
        widths.append(feature.shape[1])
        return feature

    net(torch.randn(1, 1, 8, 8), enhance)
    assert widths == [(2, 3)[level]]


def test_plain_unet_is_wired_as_drawn() -> None:
    torch.manual_seed(0)
    net = NestedUNet(2, 2, (2, 3, 4, 5), nested_from=2)
    image = torch.randn(2, 2, 16, 16)
    down = [net.encoder[0](image)]
    for stage in list(net.encoder)[1:]:
        down.append(stage(down[-1]))
    x21 = net.nodes["2_1"](torch.cat([down[2], net.up["2_1"](down[3])], 1))
    x12 = net.nodes["1_2"](torch.cat([down[1], net.up["1_2"](x21)], 1)).square()
    x03 = net.nodes["0_3"](torch.cat([down[0], net.up["0_3"](x12)], 1))
    for mine, its in zip((x03, x12, x21), net(image, enhance=torch.square), strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_residual_stage_adds_its_shortcut(dimensions: int) -> None:
    torch.manual_seed(0)
    stage = ResidualStage(dimensions, 2, 3)
    image = torch.randn(2, 2, *(8,) * dimensions)
    pool, mix, norm = stage.shortcut
    shortcut = norm(mix(pool(image)))
    first, convolution, last_norm = stage.convolutions
    expected = torch.nn.functional.leaky_relu(last_norm(convolution(first(image))) + shortcut, 0.01)
    assert expected.shape == (2, 3, *(4,) * dimensions)
    torch.testing.assert_close(stage(image), expected)
    torch.nn.init.zeros_(last_norm.weight)  # no convolution is left
    torch.testing.assert_close(stage(image), torch.nn.functional.leaky_relu(shortcut, 0.01))


def test_residual_encoder_has_shortcuts_below_the_first_stage() -> None:
    net = NestedUNet(2, 1, (2, 3, 4, 5), residual=True)
    assert [isinstance(stage, ResidualStage) for stage in net.encoder] == [False, True, True, True]
    plain = sum(p.numel() for p in NestedUNet(2, 1, (2, 3, 4, 5)).parameters())
    shortcuts = (2 * 3 + 2 * 3) + (3 * 4 + 2 * 4) + (4 * 5 + 2 * 5)  # 1x1 weights, and scale and shift per channel
    assert sum(p.numel() for p in net.parameters()) == plain + shortcuts


@pytest.mark.parametrize(("nested_from", "expected"), [(0, 1063), (1, 925)])
def test_parameters_of_a_tiny_grid_by_hand(nested_from: int, expected: int) -> None:
    """Widths 2, 3, 4 in 2D. A block a -> b: 9ab weights, and a scale and a shift per channel; a step up: 4ab + b."""

    def block(a: int, b: int) -> int:
        return 9 * a * b + 2 * b

    def up(a: int, b: int) -> int:
        return 4 * a * b + b

    encoder = block(1, 2) + block(2, 2) + block(2, 3) + block(3, 3) + block(3, 4) + block(4, 4)
    row1 = up(4, 3) + block(2 * 3, 3) + block(3, 3)  # X(1, 1), on the last diagonal
    if nested_from == 0:
        row0 = up(3, 2) + block(2 * 2, 2) + up(3, 2) + block(3 * 2, 2) + block(2, 2)  # X(0, 1) and X(0, 2)
    else:
        row0 = up(3, 2) + block(2 * 2, 2) + block(2, 2)  # X(0, 2), of X(0, 0) and the node below
    assert encoder + row1 + row0 == expected
    net = NestedUNet(2, 1, (2, 3, 4), nested_from=nested_from)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_grid_rejects_sizes_that_it_cannot_restore() -> None:
    net = NestedUNet(2, 1, (2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"multiple of 8.*\(16, 20\)"):
        net(torch.zeros(1, 1, 16, 20))
    with pytest.raises(ValueError, match="2 levels"):
        NestedUNet(2, 1, (2,))


# ---- shapes ------------------------------------------------------------------------------------------------------


@SMALL
def test_training_mode_returns_every_scale_and_eval_mode_full_resolution(config: NetworkConfig) -> None:
    net = network(config)
    outputs = net(*inputs(config))
    assert [tuple(x.shape) for x in outputs] == [(2, 1, *[size] * config.dimensions) for size in (16, 8, 4)]
    logits = net.eval()(*inputs(config))
    assert torch.equal(logits, outputs[0])


@pytest.mark.parametrize("nested_from", [0, 1, 2])
@SMALL
def test_the_fluid_fraction_is_a_second_output_at_full_resolution(config: NetworkConfig, nested_from: int) -> None:
    config = dataclasses.replace(config, fluid=True, nested_from=nested_from)
    net = network(config)
    outputs = net(*inputs(config))
    assert [x.shape[1] for x in outputs] == [2, 1, 1] and config.outputs == 2
    assert torch.equal(net.eval()(*inputs(config)), outputs[0])
    # One more row of the last convolution is all that it costs.
    plain = network(dataclasses.replace(config, fluid=False))
    more = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == config.widths[0] + 1
    assert NetworkConfig.from_json(config.to_json()) == config


def test_eval_runs_one_head_only() -> None:
    net = network(SMALL_2D).eval()
    ran: list[int] = []
    for level, head in enumerate(net.heads):
        head.register_forward_hook(lambda *_, level=level: ran.append(level))
    net(*inputs(SMALL_2D))
    assert ran == [0]


def test_unequal_sizes_are_restored_exactly() -> None:
    image = torch.randn(1, 3, 8, 16, 24)
    _, text, mask = inputs(SMALL_3D, batch=1)
    assert [tuple(x.shape[2:]) for x in network(SMALL_3D)(image, text, mask)] == [(8, 16, 24), (4, 8, 12), (2, 4, 6)]


@SMALL
def test_odd_sizes_are_padded_with_zeros_and_cropped_again(config: NetworkConfig) -> None:
    net = network(config)
    image, text, mask = inputs(config, size=24)
    odd = image[..., :13]
    padded = torch.zeros_like(image[..., :16])
    padded[..., :13] = odd
    for cropped, padded_logits in zip(net(odd, text, mask), net(padded, text, mask), strict=True):
        last = cropped.shape[-1]
        assert last == 13 * padded_logits.shape[-1] // 16
        assert torch.equal(cropped, padded_logits[..., :last])


@SMALL
def test_wrong_inputs_are_rejected(config: NetworkConfig) -> None:
    net = network(config)
    image, text, mask = inputs(config)
    with pytest.raises(ValueError, match="channels"):
        net(image[:, :2], text, mask)
    with pytest.raises(ValueError, match="axes"):
        net(image[0], text, mask)
    with pytest.raises(ValueError, match="text must be.*None"):
        net(image)
    with pytest.raises(ValueError, match="text must be"):
        net(image, text[:1], mask)
    with pytest.raises(ValueError, match="text must be"):
        net(image, text[..., :4], mask)
    with pytest.raises(ValueError, match="text_mask"):
        net(image, text, mask.float())
    with pytest.raises(ValueError, match="text_mask"):
        net(image, text, mask[:, :2])


# ---- laws --------------------------------------------------------------------------------------------------------


@SMALL
def test_batch_equals_single(config: NetworkConfig) -> None:
    net = network(config).eval()
    image, text, mask = inputs(config, batch=3)
    together = net(image, text, mask)
    for b in range(3):
        alone = net(image[b : b + 1], text[b : b + 1], mask[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-5)


@SMALL
def test_padding_has_no_effect_whatever_its_values(config: NetworkConfig) -> None:
    net = network(config).double()
    image, text, _ = (x.double() for x in inputs(config))
    padded = torch.cat([text, torch.full_like(text, torch.nan)], dim=1)
    mask = torch.arange(padded.shape[1]).expand(2, -1) < text.shape[1]
    for a, b in zip(net(image, text), net(image, padded, mask), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    sum(x.square().mean() for x in net(image, padded, mask)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@SMALL
def test_determinism(config: NetworkConfig) -> None:
    gradients = []
    for _ in range(2):
        net = network(config, seed=3)
        sum(x.square().mean() for x in net(*inputs(config))).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@SMALL
def test_every_parameter_learns(config: NetworkConfig) -> None:
    net = network(config)
    sum(x.square().mean() for x in net(*inputs(config))).backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert unused == []


@SMALL
def test_autocast_is_near_float32(config: NetworkConfig) -> None:
    net = network(config).eval()
    exact = net(*inputs(config))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(*inputs(config))
    assert mixed.dtype == torch.bfloat16
    assert (mixed - exact).abs().mean() < 0.05 * exact.std()


def test_autocast_trains() -> None:
    net = network(SMALL_3D)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(*inputs(SMALL_3D))
    sum(x.float().square().mean() for x in outputs).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@SMALL
def test_channels_last_gives_the_same(config: NetworkConfig) -> None:
    net = network(config).eval()
    image, text, mask = inputs(config)
    plain = net(image, text, mask)
    memory = torch.channels_last if config.dimensions == 2 else torch.channels_last_3d
    last = net.to(memory_format=memory)(image.to(memory_format=memory), text, mask)
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-5)


def test_a_mask_of_none_means_that_all_tokens_are_real() -> None:
    net = network(SMALL_2D).eval()
    image, text, mask = inputs(SMALL_2D)
    assert torch.equal(net(image, text), net(image, text, torch.ones_like(mask)))
    assert not torch.allclose(net(image, text), net(image, text, mask))


# ---- the ablation ------------------------------------------------------------------------------------------------


@SMALL
def test_each_switch_adds_parameters(config: NetworkConfig) -> None:
    counts = [
        sum(p.numel() for p in network(dataclasses.replace(config, **switches)).parameters())
        for switches in ABLATION.values()
    ]
    assert all(fewer < more for fewer, more in itertools.pairwise(counts))


@SMALL
@pytest.mark.parametrize("row", ABLATION)
def test_text_moves_every_scale_of_every_row_but_the_backbone(config: NetworkConfig, row: str) -> None:
    """Against the spread of the logits over the image: a shift that normalisation swallows would not count.

    Level 2 lies below the guided level, so the prompt reaches its head by the gate.
    """
    config = dataclasses.replace(config, **ABLATION[row])
    net = network(config)
    image, text, mask = inputs(config)
    if row == "backbone":
        assert [tuple(x.shape[2:]) for x in net(image)] == [(size,) * config.dimensions for size in (16, 8, 4)]
        assert torch.equal(net(image)[0], net(image, text, mask)[0])
        return
    for before, after in zip(net(image, text, mask), net(image, text.flip(0) + 1, mask), strict=True):
        moved = after - before
        moved = moved - moved.flatten(1).mean(1).view(-1, *[1] * (moved.ndim - 1))
        assert moved.std() > 1e-3 * before.std()


def test_guidance_is_graph_then_attention_then_fusion_added_to_the_feature() -> None:
    torch.manual_seed(0)
    graph, attention, fusion = GraphModule(8, 10, 5), CrossAttention(8, 4), DynamicFusion(8)
    feature, text, mask = torch.randn(2, 8, 3, 4, 5), torch.randn(2, 6, 8), torch.arange(6) < torch.tensor([[6], [3]])

    def voxels(x: Tensor) -> Tensor:
        return x.reshape(2, 8, 60).permute(0, 2, 1)

    def grid(x: Tensor) -> Tensor:
        return x.permute(0, 2, 1).reshape(2, 8, 3, 4, 5)

    image, tokens = graph(voxels(feature), text, mask)
    torch.testing.assert_close(TextGuidance(graph, None, None, None)(feature, text, mask), grid(image))
    image, tokens = attention(image, tokens, mask)
    torch.testing.assert_close(TextGuidance(graph, attention, None, None)(feature, text, mask), grid(image))
    fused = feature + grid(fusion(image, tokens, mask))
    torch.testing.assert_close(TextGuidance(graph, attention, fusion, None)(feature, text, mask), fused)


def test_concatenation_of_text_is_one_linear_map_of_both() -> None:
    torch.manual_seed(0)
    module = TextConcatenation(4)
    image, text, mask = torch.randn(2, 7, 4), torch.randn(2, 3, 4), torch.tensor([[True] * 3, [True, False, False]])
    both = torch.cat([image, module.pool(text, mask)[:, None].expand(-1, 7, -1)], dim=-1)
    weight = torch.cat([module.from_image.weight, module.from_text.weight], dim=1)
    made = both @ weight.T + module.from_image.bias
    torch.testing.assert_close(module(image, text, mask), image + torch.where(made > 0, made, 0.01 * made))


def test_gated_head_is_a_dot_product_of_gated_channels() -> None:
    torch.manual_seed(0)
    head = Head(2, 4, text_width=6)
    feature, text, mask = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)
    assert head.gate is not None and head.pool is not None
    gate = 1 / (1 + (-head.gate(head.pool(text, mask))).exp())
    expected = torch.einsum("bchw,bc,c->bhw", feature, gate, head.logit.weight.flatten()) + head.logit.bias
    torch.testing.assert_close(head(feature, text, mask)[:, 0], expected)


def test_values_of_equation_3_are_a_choice_of_the_config() -> None:
    other, own = (network(dataclasses.replace(SMALL_2D, graph_values=values)).eval() for values in ("other", "own"))
    own.load_state_dict(other.state_dict())
    assert not torch.allclose(other(*inputs(SMALL_2D)), own(*inputs(SMALL_2D)))


# ---- the networks that are shipped -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "parameters", "cost"),
    [
        (NETWORK_3D, 1.56e6, 119e9),
        (NetworkConfig(widths=(16, 48, 96, 192), nested_from=0, fluid=False), 3.5e6, 288e9),
    ],
    ids=["nested from half resolution", "nested at full resolution, as first released"],
)  # fmt: skip
def test_size_and_cost_of_the_3d_network(config: NetworkConfig, parameters: float, cost: float) -> None:
    """Parameters, and operations in a 96^3 window (27 x the cost of 32^3; text costs nothing)."""
    net = network(config).eval()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(parameters, rel=0.01)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs(config, batch=1, size=32))
    assert 27 * counter.get_total_flops() == pytest.approx(cost, rel=0.01)


def test_shape_of_the_2d_network() -> None:
    net = network(NETWORK_2D)
    assert [tuple(x.shape) for x in net(*inputs(NETWORK_2D, batch=1, size=32))] == [
        (1, 2, 32, 32),  # PVS and the PVS fraction
        (1, 1, 16, 16),
        (1, 1, 8, 8),
    ]
    assert net.backbone.encoder[0][0][0].in_channels == 9
