"""What a run needs to go on exactly, on disk in shards that are small enough to be passed on.

``state.json`` names the shards ``state-<step>-<number>.safetensors`` and is renamed into place last. A run
that is killed at any moment leaves the old state or the new one, whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pvs_model.errors import WeightsError
from pvs_model.nets.base import SegmentationNet

INDEX = "state.json"
#: How the state was written before there were shards; still read.
SINGLE = "state.safetensors"

MIB = 2**20
#: Bytes that the header of a shard holds for a tensor besides its name, and for itself; rounded up.
HEADER_PER_TENSOR, HEADER = 160, 64

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: steps taken.
        visits: samples drawn, by all processes together.
        seconds: spent so far, over all sittings.
        loss: running mean; None before the first step.
    """

    step: int = 0
    visits: int = 0
    seconds: float = 0.0
    loss: float | None = None


def pack(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Tensors in order, in groups that make files of at most ``limit`` bytes.

    A tensor that is too large for a file is cut along its first axis, into ``<name>#0``, ``<name>#1``, ...

    Raises:
        WeightsError: when the limit leaves no room for a slice of a tensor.
    """
    groups: list[dict[str, Tensor]] = []
    used = limit
    for name, tensor in tensors.items():
        overhead = len(name) + HEADER_PER_TENSOR
        room = limit - HEADER - overhead
        row = max(1, tensor.nbytes // max(1, len(tensor))) if tensor.ndim else tensor.nbytes
        if row > room:
            raise WeightsError(
                f"--shard-mib: expected room for {row + HEADER + overhead} bytes ({name}), found {limit} bytes"
            )
        pieces = {name: tensor}
        if tensor.nbytes > room:
            pieces = {f"{name}#{k}": piece for k, piece in enumerate(tensor.split(room // row))}
        for key, piece in pieces.items():
            if used + piece.nbytes + overhead > limit:
                groups.append({})
                used = HEADER
            groups[-1][key] = piece.contiguous()
            used += piece.nbytes + overhead
    return groups


class State:
    """A run: weights, their average, the optimiser's moments, and how far it has come."""

    def __init__(self, network: SegmentationNet, average: SegmentationNet, optimiser: torch.optim.Optimizer) -> None:
        self.network, self.average, self.optimiser = network, average, optimiser
        self.progress = Progress()

    def advance(self, visits: int, loss: float, seconds: float, ema: float) -> None:
        """Count a step that the optimiser has taken, and let the averaged weights follow.

        Args:
            visits: samples drawn so far, by all processes together.
            loss: of this step.
            seconds: spent so far.
            ema: share of the average that is kept; less in the first steps, when it is still far off.
        """
        step, mean = self.progress.step + 1, self.progress.loss
        self.progress = Progress(step, visits, seconds, loss if mean is None else 0.98 * mean + 0.02 * loss)
        kept_share = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(new, 1 - kept_share)

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, on the CPU: ``network.``, ``average.`` and ``optimiser.<moment>.`` + parameter."""
        tensors: dict[str, Tensor] = {}
        for name, value in self.network.state_dict().items():
            tensors[f"network.{name}"] = value
        for name, value in self.average.state_dict().items():
            tensors[f"average.{name}"] = value
        for name, parameter in self.network.named_parameters():
            for moment, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{moment}.{name}"] = torch.as_tensor(value, dtype=torch.float32)
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def save(self, folder: Path, shard_mib: float) -> None:
        """Write the state into a folder, in place of the one that lies there.

        Raises:
            WeightsError: as ``pack``.
        """
        groups = pack(self.tensors(), int(shard_mib * MIB))
        shards = [f"state-{self.progress.step:07d}-{number:02d}.safetensors" for number in range(len(groups))]
        for shard, tensors in zip(shards, groups, strict=True):
            save_file(tensors, folder / shard)
            (folder / shard).chmod(0o644)  # safetensors leaves it to the owner alone
        part = folder / f"{INDEX}.part"
        part.write_text(json.dumps({**asdict(self.progress), "shards": shards}, indent=1) + "\n")
        part.replace(folder / INDEX)
        for old in [*folder.glob("state-*.safetensors"), folder / SINGLE]:
            if old.name not in shards:
                old.unlink(missing_ok=True)

    def load(self, folder: Path) -> bool:
        """Take up the state of a folder. Returns whether there is one.

        Raises:
            WeightsError: when it is damaged or of another network.
        """
        path = folder / INDEX if (folder / INDEX).is_file() else folder / SINGLE
        if not path.is_file():
            return False
        try:
            facts, tensors = read_state(folder)
            self.progress = Progress(**facts)
            self._fill(tensors)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"{path}: expected the state of a run of this network, found {first}") from error
        return True

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        named = dict(self.network.named_parameters())
        for moment in MOMENTS:
            for name, value in part(f"optimiser.{moment}.").items():
                kept = value if moment == "step" else value.to(named[name].device)
                self.optimiser.state[named[name]][moment] = kept


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts of ``Progress`` and the tensors by name, from shards or from the older single file."""
    if not (folder / INDEX).is_file():
        with safe_open(folder / SINGLE, framework="pt") as file:
            return json.loads(file.metadata()["facts"]), load_file(folder / SINGLE)
    facts = json.loads((folder / INDEX).read_text())
    found: dict[str, Tensor] = {}
    for shard in facts.pop("shards"):
        found.update(load_file(folder / shard))
    pieces: dict[str, dict[int, Tensor]] = {}
    for key, tensor in found.items():
        name, _, number = key.partition("#")
        pieces.setdefault(name, {})[int(number or 0)] = tensor
    whole = {n: p[0] if len(p) == 1 else torch.cat([p[k] for k in range(len(p))]) for n, p in pieces.items()}
    return facts, whole
