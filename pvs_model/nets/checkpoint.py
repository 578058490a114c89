"""Weights files: float16 safetensors with the configuration of the network in the metadata. Pickle is not used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pvs_model.config import NetworkConfig
from pvs_model.errors import WeightsError
from pvs_model.files import write_tensors
from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.model import build

#: Metadata key of the ``NetworkConfig`` as JSON.
CONFIG_KEY = "config"

Network = TypeVar("Network", bound=nn.Module)


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the state dict of a network; tensors with several names appear under the first one only."""
    names = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    return {name: tensor for name, tensor in network.state_dict().items() if name in names}


def fill(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors into a network by their names.

    Raises:
        RuntimeError: If the names or shapes are not exactly those of the network.
    """
    missing, unknown = tensors_of(network).keys() - tensors.keys(), tensors.keys() - network.state_dict().keys()
    if missing or unknown:
        raise RuntimeError(f"missing parameters {sorted(missing)[:3]}, unknown parameters {sorted(unknown)[:3]}")
    network.load_state_dict(tensors, strict=False)


def save(path: Path | str, network: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the parameters of a network as float16, with its config and ``metadata``.

    The file is replaced atomically: an interrupted call leaves an older file intact.

    Raises:
        ValueError: If ``metadata`` has a key ``config``.
        WeightsError: If a parameter is not finite in float16, or the file cannot be written.
    """
    if metadata and CONFIG_KEY in metadata:
        raise ValueError(f"the metadata key {CONFIG_KEY!r} is reserved")
    tensors = {name: _to_half(tensor) for name, tensor in tensors_of(network).items()}
    invalid = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if invalid:
        raise WeightsError(f"{path}: expected finite parameters, got {len(invalid)} others, first {invalid[0]}")

    config: Any = network.config

    write_tensors(Path(path), tensors, {**(metadata or {}), CONFIG_KEY: config.to_json()}, WeightsError)


def _to_half(tensor: torch.Tensor) -> torch.Tensor:
    """Converts parameters to float16; keeps counts and indices, which float16 would round above 2048."""
    dtype = torch.float16 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, memory_format=torch.contiguous_format)


def read_metadata(path: Path | str) -> dict[str, str]:
    """Reads the metadata of a weights file, including the config.

    Raises:
        WeightsError: If the file is missing or is not a complete safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: expected a safetensors file of weights, got {error}") from error


def load(path: Path | str, sha256: str | None = None, device: torch.device | str = "cpu") -> SegmentationNet:
    """Builds the segmentation network of a weights file and loads its parameters; see ``load_as``."""
    return load_as(lambda text: build(NetworkConfig.from_json(text)), path, sha256, device)


def load_as(
    build_network: Callable[[str], Network],
    path: Path | str,
    sha256: str | None = None,
    device: torch.device | str = "cpu",
) -> Network:
    """Builds the network that a weights file describes and loads its parameters.

    Args:
        build_network: Builds a network from its config in JSON.
        path: File written by ``save``.
        sha256: Expected checksum in hexadecimal; None to accept any.
        device: Device of the network.

    Returns:
        The network with float32 parameters, in eval mode.

    Raises:
        WeightsError: If the file is missing, truncated, or has another checksum; if its config is
            unknown; or if its parameters are not exactly those of the network.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: expected a file of weights, got none")
    if sha256 is not None:
        checksum = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if checksum != sha256.lower():
            raise WeightsError(f"{path}: expected sha256 {sha256}, got {checksum}")
    metadata = read_metadata(path)
    try:
        network = build_network(metadata[CONFIG_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: expected the config of a known network, got {error!r}") from error
    try:
        with safe_open(path, framework="pt") as file:
            fill(network, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path}: expected the parameters of its network, got others ({error})") from error
    return network.to(device).eval()
