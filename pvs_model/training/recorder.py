"""What a run leaves behind at every save: validation, a row of the log, the network, the state, a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from pvs_model.nets import checkpoint
from pvs_model.training.logbook import Logbook
from pvs_model.training.plot import can_plot, plot
from pvs_model.training.settings import TrainingConfig
from pvs_model.training.state import State
from pvs_model.training.validation import THRESHOLDS

NETWORK = "network.safetensors"


class Recorder:
    """Writes into the folder of a run."""

    def __init__(self, output: Path, training: TrainingConfig, state: State, validation: Callable[[], Tensor]) -> None:
        """
        Args:
            output: the folder.
            training: kept beside the weights.
            state: of the run.
            validation: Dice of the averaged network, one value per entry of ``THRESHOLDS``.
        """
        self.output, self.training, self.state, self.validation = output, training, state, validation
        self.book = Logbook(output / "log.csv", state.progress.step)
        self.draws = can_plot()

    def save(self, rate: float, samples_per_second: float, data_share: float) -> dict[str, float]:
        """Validate and write everything. Returns the facts that are kept with the network.

        Args:
            rate: learning rate.
            samples_per_second: since the last save.
            data_share: share of the time since then that was spent waiting for data.
        """
        dice, progress = self.validation(), self.state.progress
        best, at_half = int(dice.argmax()), float(dice[(THRESHOLDS - 0.5).abs().argmin()])
        facts = {
            "steps": progress.step,
            "dice": float(dice[best]),
            "threshold": round(float(THRESHOLDS[best]), 2),
            "samples_per_second": round(samples_per_second, 3),
        }
        row = {
            "step": progress.step,
            "seconds": round(progress.seconds, 1),
            "loss": round(progress.loss or 0.0, 4),
            "learning_rate": rate,
            "dice_at_0.5": round(at_half, 4),
            "best_dice": facts["dice"],
            "best_threshold": facts["threshold"],
            "samples_per_second": facts["samples_per_second"],
            "data_share": round(data_share, 3),
        }
        self.book.add(row)
        metadata = {"training": json.dumps(asdict(self.training)), "facts": json.dumps(facts)}
        checkpoint.save(self.output / NETWORK, self.state.average, metadata)
        self.state.save(self.output, self.training.shard_mib)  # last: from here on, a run goes on from this step
        if self.draws:
            plot(self.book.path, self.output / "log.png")
        return facts


def reached(output: Path) -> dict[str, float]:
    """The facts of the last save of a run.

    Raises:
        WeightsError: when its network is missing or damaged.
    """
    facts: dict[str, float] = json.loads(checkpoint.read_metadata(output / NETWORK)["facts"])
    return facts
