"""Saves and resumes the state of a training: ``state.safetensors``, replaced in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pvs_model.errors import WeightsError, first_line
from pvs_model.files import write_tensors
from pvs_model.layouts.base import listed
from pvs_model.nets.checkpoint import fill, tensors_of

STATE = "state.safetensors"

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        step: Number of steps taken.
        samples: Number of samples drawn, by all processes together.
        seconds: Time spent so far, over all sittings.
        loss: Running mean; None before the first step.
        earlier_steps, earlier_minutes: Steps and time behind the weights that the run began with.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    loss: float | None = None
    earlier_steps: int = 0
    earlier_minutes: float = 0.0


@dataclass(frozen=True)
class HeldOut:
    """What a run is validated on and never trains on.

    Attributes:
        names: Names of label maps and cases, sorted.
        fold, folds: The fold that they are; None for items that were chosen otherwise.
    """

    names: tuple[str, ...] = ()
    fold: int | None = None
    folds: int | None = None

    def __str__(self) -> str:
        names = listed(self.names) or "nothing"
        return names if self.fold is None else f"fold {self.fold} of {self.folds} ({names})"


class TrainingState:
    """State of a run: weights, averaged weights, moments of the optimiser, progress, and what is held out."""

    def __init__(
        self,
        network: nn.Module,
        average: nn.Module,
        optimiser: torch.optim.Optimizer,
        held_out: HeldOut | None = None,
    ) -> None:
        self.network, self.average, self.optimiser, self.held_out = network, average, optimiser, held_out
        self.progress = Progress()

    def advance(self, samples: int, loss: float, seconds: float, ema_decay: float) -> None:
        """Counts a step that the optimiser has taken, and updates the averaged weights.

        Args:
            samples: Number of samples drawn so far, by all processes together.
            loss: Loss of this step.
            seconds: Time spent so far.
            ema_decay: Decay of the average; smaller in the first steps, whose weights are far off.
        """
        step, mean = self.progress.step + 1, self.progress.loss
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
        earlier = self.progress.earlier_steps, self.progress.earlier_minutes
        self.progress = Progress(step, samples, seconds, mean, *earlier)
        decay = min(ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for averaged, current in zip(self.average.parameters(), self.network.parameters(), strict=True):
                averaged.lerp_(current, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU: ``network.``, ``average.`` and ``optimiser.<moment>.`` + parameter."""
        tensors: dict[str, Tensor] = {}
        for prefix, network in (("network.", self.network), ("average.", self.average)):
            tensors |= {prefix + name: value for name, value in tensors_of(network).items()}
        for name, parameter in self.network.named_parameters():
            for moment, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{moment}.{name}"] = torch.as_tensor(value, dtype=torch.float32)
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def save(self, folder: Path) -> None:
        """Writes the state into a folder, in place of an older one.

        Raises:
            WeightsError: It cannot be written.
        """
        metadata = {"facts": json.dumps(asdict(self.progress))}
        if self.held_out is not None:
            metadata["held_out"] = json.dumps(asdict(self.held_out))
        write_tensors(folder / STATE, self.tensors(), metadata, WeightsError)

    def load(self, folder: Path) -> bool:
        """Resumes the state of a folder. Returns whether there is one.

        Raises:
            WeightsError: It is damaged, of another network, or of a run that holds out other data.
        """
        path = folder / STATE
        if not path.is_file():
            return False
        try:
            self.progress, tensors = read_state(folder)
            self._check_held_out(folder / STATE)
            self._fill(tensors)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise WeightsError(
                f"{path}: expected the state of a run of this network, got {first_line(error)}"
            ) from error
        return True

    def _check_held_out(self, path: Path) -> None:
        """Compares what is held out; states of earlier versions do not say it."""
        earlier = _read_held_out(path) if path.is_file() else None
        if earlier is not None and self.held_out is not None and earlier != self.held_out:
            raise WeightsError(
                f"{path}: expected a run that holds out {self.held_out}, got one that holds out {earlier}: choose "
                "another --output"
            )

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        fill(self.network, part("network."))
        fill(self.average, part("average."))
        parameters = dict(self.network.named_parameters())
        for moment in MOMENTS:
            for name, value in part(f"optimiser.{moment}.").items():
                parameter = parameters[name]
                self.optimiser.state[parameter][moment] = value if moment == "step" else value.to(parameter.device)


def read_state(folder: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Reads the progress and the tensors of a state.

    Raises:
        OSError, SafetensorError, ValueError, KeyError, TypeError: It is missing or damaged.
    """
    with safe_open(folder / STATE, framework="pt") as file:
        progress = Progress(**json.loads(file.metadata()["facts"]))
    return progress, load_file(folder / STATE)


def _read_held_out(path: Path) -> HeldOut | None:
    with safe_open(path, framework="pt") as file:
        text = file.metadata().get("held_out")
    if text is None:
        return None
    values = json.loads(text)
    return HeldOut(**{**values, "names": tuple(values["names"])})
