"""DynUNet as a peer: the same contract as the graph-fusion network's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pvs_model.config import DYNUNET_2D, DYNUNET_3D, NetworkConfig
from pvs_model.nets import checkpoint
from pvs_model.nets.model import build
from pvs_model.nets.peers import DynUNetPeer
from pvs_model.training.losses import DeepSupervision

SMALL = {
    "3d": replace(DYNUNET_3D, widths=(4, 6, 8, 8, 8)),
    "2d": replace(DYNUNET_2D, widths=(4, 6, 8, 8, 8)),
}


def image(config: NetworkConfig, side: int = 32) -> torch.Tensor:
    return torch.randn(1, config.in_channels, *[side] * config.dimensions, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_one_logit_per_voxel_and_one_scale_per_head(kind: str) -> None:
    network = build(SMALL[kind])
    assert isinstance(network, DynUNetPeer)
    x = image(SMALL[kind])
    scales = network(x)
    assert [out.shape[-1] for out in scales] == [32, 16, 8] and all(out.shape[1] == 1 for out in scales)
    assert torch.equal(network.eval()(x), scales[0])


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_every_parameter_has_one_name_and_a_gradient(kind: str) -> None:
    network = build(SMALL[kind])
    assert len(network.state_dict()) == len(list(network.parameters()))
    x = image(SMALL[kind])
    DeepSupervision()(network(x), (x[:, :1] > 2).float()).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_it_learns_what_it_is_shown() -> None:
    torch.manual_seed(0)
    network = build(SMALL["2d"])
    x = image(SMALL["2d"])
    label, loss_of = (x[:, :1] > 1).float(), DeepSupervision()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = loss_of(network(x), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_text_is_ignored_and_heads_start_rare() -> None:
    network = build(SMALL["3d"]).eval()
    x = image(SMALL["3d"])
    with torch.no_grad():
        assert torch.equal(network(x, torch.randn(1, 4, 384)), network(x))
    biases = [m.bias for m in network.heads.modules() if isinstance(m, nn.Conv3d)]  # type: ignore[union-attr]
    assert all(float(b.detach()) == pytest.approx(-4.6) for b in biases if b is not None)


def test_it_is_saved_and_loaded_like_ours(tmp_path: Path) -> None:
    network = build(SMALL["3d"]).eval()
    checkpoint.save(tmp_path / "peer.safetensors", network)
    loaded = checkpoint.load(tmp_path / "peer.safetensors")
    assert loaded.config == SMALL["3d"]
    x = image(SMALL["3d"])
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), atol=0.02, rtol=0)


def test_impossible_peers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 levels"):
        build(replace(DYNUNET_3D, widths=(4, 8)))
    with pytest.raises(ValueError, match="takes no text"):
        NetworkConfig(architecture="dynunet")
    with pytest.raises(ValueError, match="architecture must be one of"):
        NetworkConfig(architecture="unet")
