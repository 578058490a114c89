"""Widening: the same output in the backbone, nearly the same with the modules, and new channels that can learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pvs_model.config import NETWORK_3D, NetworkConfig
from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.model import build
from pvs_model.nets.widen import can_widen, widen

NARROW, WIDE = (8, 16, 16, 24), (12, 24, 20, 36)
PLAIN = {"text": False, "graph": False, "cross_attention": False, "fusion": False}


def trained(config: NetworkConfig) -> SegmentationNet:
    """A network whose normalisations are not those of the start."""
    torch.manual_seed(1)
    network = build(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 and name.startswith("backbone"):
                parameter += 0.3 * torch.randn(parameter.shape)
    return network.eval()


def logits(network: SegmentationNet, config: NetworkConfig) -> torch.Tensor:
    torch.manual_seed(2)
    image = torch.randn(2, config.in_channels, *[32] * config.dimensions)
    text = torch.randn(2, 5, config.text_width) if config.text else None
    output = network(image, text)
    assert isinstance(output, torch.Tensor)
    return output.detach()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("nested_from", [0, 1])
@pytest.mark.parametrize("residual", [False, True])
def test_a_wider_backbone_computes_the_same(dimensions: int, nested_from: int, residual: bool) -> None:
    config = replace(
        NETWORK_3D, dimensions=dimensions, widths=NARROW, nested_from=nested_from, residual=residual, **PLAIN
    )  # type: ignore[arg-type]
    network = trained(config)
    expected, wider = logits(network, config), widen(network, WIDE).eval()
    assert wider.config == replace(config, widths=WIDE)
    torch.testing.assert_close(logits(wider, config), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_with_the_modules_the_output_changes_little(dimensions: int) -> None:
    config = replace(NETWORK_3D, dimensions=dimensions, widths=NARROW, text_width=8)
    network = trained(config)
    expected, changed = logits(network, config), logits(widen(network, WIDE).eval(), config)
    other = logits(build(replace(config, widths=WIDE)).eval(), config)
    error = float((changed - expected).std() / expected.std())
    assert error < 0.3, "of the spread of the output"
    assert float((other - expected).std() / expected.std()) > 0.8, "a network of random weights is far off"


def test_new_channels_learn() -> None:
    config = replace(NETWORK_3D, widths=NARROW, text_width=8)
    wider = widen(trained(config), WIDE).train()
    output = wider(torch.randn(1, 3, 32, 32, 32), torch.randn(1, 5, 8))
    sum(scale.square().mean() for scale in output).backward()  # type: ignore[union-attr]
    first = dict(wider.named_parameters())["backbone.nodes.0_3.0.0.weight"].grad
    assert first is not None and first[: NARROW[0], WIDE[0] - 1].abs().max() > 0, "old channels begin to read new ones"


def test_only_wider_networks_of_the_same_kind_fit() -> None:
    narrow = replace(NETWORK_3D, widths=NARROW)
    assert can_widen(narrow, replace(narrow, widths=WIDE))
    assert not can_widen(replace(narrow, widths=WIDE), narrow), "narrower"
    assert not can_widen(narrow, replace(narrow, widths=WIDE[:3])), "fewer levels"
    assert not can_widen(narrow, replace(narrow, widths=WIDE, guided_level=2))
    with pytest.raises(ValueError, match=r"widths of at least \(8, 16, 16, 24\), got \(8, 16, 12, 24\)"):
        widen(build(narrow), (8, 16, 12, 24))
