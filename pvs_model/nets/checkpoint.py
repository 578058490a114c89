"""Weights on disk: float16 safetensors with the network's config in the metadata. Never pickle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pvs_model.config import NetworkConfig
from pvs_model.errors import WeightsError
from pvs_model.nets.model import SegmentationNet, build

#: Key of the metadata that holds ``NetworkConfig`` as JSON.
CONFIG_KEY = "config"


def save(path: Path | str, network: SegmentationNet, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a network's parameters as float16, with its config and ``metadata``.

    The file is written beside its place and then moved, so that a run that is stopped leaves the old
    weights whole.

    Raises:
        ValueError: If ``metadata`` has a key ``config``.
        WeightsError: If a parameter is not finite in float16.
    """
    if metadata and CONFIG_KEY in metadata:
        raise ValueError(f"the metadata key {CONFIG_KEY!r} is the network's own")
    tensors = {
        name: _stored(tensor)
        for name, tensor in network.state_dict().items()
    }
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{path}: expected finite parameters, found {broken[0]} (of {len(broken)}) not finite")
    partial = Path(f"{path}.partial")
    save_file(tensors, partial, metadata={**(metadata or {}), CONFIG_KEY: network.config.to_json()})
    partial.chmod(0o644)  # safetensors leaves it to the owner alone; the container runs as another user
    os.replace(partial, path)


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """Parameters in float16; counts and indices, which float16 would round above 2048, as they are."""
    dtype = torch.float16 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, memory_format=torch.contiguous_format)


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata that ``save`` wrote, the config included.

    Raises:
        WeightsError: If the file is missing or is not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: expected a safetensors file of weights, found {error}") from error


def load(path: Path | str, sha256: str | None = None, device: torch.device | str = "cpu") -> SegmentationNet:
    """Builds the network that a weights file describes and fills it.

    Args:
        path: File that ``save`` wrote.
        sha256: Hexadecimal checksum that the file must have; None to accept any.
        device: Where to put the network.

    Returns:
        The network with float32 parameters, in eval mode.

    Raises:
        WeightsError: If the file is missing, truncated, or has another checksum; if its config is
            unknown; or if its parameters are not exactly those of the network.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: expected a file of weights, found none")
    if sha256 is not None:
        found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if found != sha256.lower():
            raise WeightsError(f"{path}: expected sha256 {sha256}, found {found}")
    metadata = read_metadata(path)
    try:
        network = build(NetworkConfig.from_json(metadata[CONFIG_KEY]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: expected the config of a known network, found {error!r}") from error
    try:
        with safe_open(path, framework="pt") as file:
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, strict=True)  # noqa: SIM118
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path}: its parameters are not those of its network ({error})") from error
    return network.to(device).eval()
