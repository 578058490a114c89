"""Weights files: round trips, and errors that name every damaged or foreign file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pvs_model.config import NetworkConfig
from pvs_model.errors import WeightsError
from pvs_model.nets import checkpoint
from pvs_model.nets.model import GraphFusionNet, build

CONFIG = NetworkConfig(dimensions=2, widths=(4, 8), text_width=6, nested_from=0, fluid=False)


@pytest.fixture
def network() -> GraphFusionNet:
    torch.manual_seed(0)
    return build(CONFIG)


@pytest.fixture
def path(network: GraphFusionNet, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "net.safetensors", network, {"steps": "12"})
    return tmp_path / "net.safetensors"


def rewrite(path: Path, config: str | None, drop: str = "", add: str = "") -> None:
    """Writes the file again with another config, and with a tensor less or more."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != drop}  # noqa: SIM118
        metadata = file.metadata()
    if add:
        tensors[add] = torch.zeros(1)
    save_file(tensors, path, metadata={"config": config or metadata["config"]})


def test_round_trip(network: GraphFusionNet, path: Path) -> None:
    loaded = checkpoint.load(path)
    assert loaded.config == CONFIG
    assert not loaded.training
    for (name, saved), (other, read) in zip(network.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert read.dtype == torch.float32
        assert torch.equal(saved.half().float(), read)
    assert checkpoint.read_metadata(path)["steps"] == "12"


def test_the_file_is_half_precision_complete_and_readable_by_all(network: GraphFusionNet, path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert [entry.name for entry in path.parent.iterdir()] == ["net.safetensors"]  # no partial file stays
    assert path.stat().st_mode & 0o444 == 0o444


def test_loaded_network_gives_the_same_output(network: GraphFusionNet, path: Path) -> None:
    image, text = torch.randn(1, 3, 8, 8), torch.randn(1, 4, 6)
    again = path.with_name("again.safetensors")
    loaded = checkpoint.load(path)
    checkpoint.save(again, loaded)
    assert torch.equal(loaded(image, text), checkpoint.load(again)(image, text))
    assert (loaded(image, text) - network.eval()(image, text)).abs().max() < 0.02


def test_a_channels_last_network_is_saved(network: GraphFusionNet, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.safetensors", network.to(memory_format=torch.channels_last))
    for a, b in zip(network.parameters(), checkpoint.load(tmp_path / "last.safetensors").parameters(), strict=True):
        assert torch.equal(a.half().float(), b)


def test_checksum(path: Path) -> None:
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.load(path, sha256=right.upper()).config == CONFIG
    with pytest.raises(WeightsError, match=r"net\.safetensors.*sha256 0000"):
        checkpoint.load(path, sha256="0" * 64)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        checkpoint.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_truncated_file(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"net\.safetensors"):
        checkpoint.load(path)


def test_a_pickle_is_not_read(network: GraphFusionNet, path: Path) -> None:
    torch.save(network.state_dict(), path)
    with pytest.raises(WeightsError, match=r"net\.safetensors"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "config",
    [
        "not json",
        "[]",
        json.dumps({"widths": [4, 8], "colour": "red"}),
        json.dumps({**json.loads(CONFIG.to_json()), "dimensions": 4}),
        json.dumps({**json.loads(CONFIG.to_json()), "heads": 3}),
    ],
    ids=["no JSON", "no mapping", "unknown field", "unknown value", "does not fit"],
)
def test_unknown_config(path: Path, config: str) -> None:
    rewrite(path, config)
    with pytest.raises(WeightsError, match=r"net\.safetensors.*config"):
        checkpoint.load(path)


def test_no_config(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"net\.safetensors.*config"):
        checkpoint.load(path)


def test_parameters_missing_unexpected_or_of_another_shape(path: Path) -> None:
    complete = path.read_bytes()
    rewrite(path, None, drop="heads.0.logit.bias")
    with pytest.raises(WeightsError, match=r"(?s)net\.safetensors.*heads\.0\.logit\.bias"):
        checkpoint.load(path)
    path.write_bytes(complete)
    rewrite(path, None, add="heads.9.logit.bias")
    with pytest.raises(WeightsError, match=r"(?s)net\.safetensors.*heads\.9\.logit\.bias"):
        checkpoint.load(path)
    path.write_bytes(complete)
    rewrite(path, dataclasses.replace(CONFIG, nodes=6).to_json())
    with pytest.raises(WeightsError, match=r"(?s)net\.safetensors.*centres"):
        checkpoint.load(path)


@pytest.mark.parametrize("value", [float("nan"), 1e5])  # 1e5 is past the largest float16
def test_parameters_that_float16_cannot_hold_are_not_written(
    network: GraphFusionNet, tmp_path: Path, value: float
) -> None:
    with torch.no_grad():
        network.heads[0].logit.bias.fill_(value)
    with pytest.raises(WeightsError, match=r"net\.safetensors.*heads\.0\.logit\.bias"):
        checkpoint.save(tmp_path / "net.safetensors", network)
    assert not (tmp_path / "net.safetensors").exists()


def test_metadata_cannot_replace_the_config(network: GraphFusionNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config"):
        checkpoint.save(tmp_path / "net.safetensors", network, {"config": "{}"})
