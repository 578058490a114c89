"""Trains an ensemble: one common network first, then its members, each on a fold of its own; resumes after any stop."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pvs_model.config import NetworkConfig, shipped_weights
from pvs_model.errors import PVSError, first_line
from pvs_model.training.config import FINE_TUNING, TrainingConfig
from pvs_model.training.sampling import FoldData, split
from pvs_model.training.segmentation import NETWORK, train

COMMON, SOURCE = "common", "source"
#: Peak of a member's learning-rate cycle, as a fraction of that of the common network.
MEMBER_RATE = 0.5
#: Priority of the process: it uses the time that others leave.
NICENESS = 10


@dataclass(frozen=True)
class Stage:
    """One training of an ensemble.

    Attributes:
        folder: Name of its folder within that of the ensemble.
        config: How to train.
        fold: Fold that is held out; None for the common network, which trains on all folds.
        start: Folder whose network it begins from; None for the weights of the command line or random ones.
    """

    folder: str
    config: TrainingConfig
    fold: int | None = None
    start: str | None = None


def plan_stages(config: TrainingConfig, members: int, member_steps: int) -> list[Stage]:
    """Plans the common training and one of each member, with seeds of their own.

    Args:
        config: The common training.
        members: Number of members, at least 2.
        member_steps: Steps of each member, over which its learning rate rises and falls once.

    Example:
        >>> [stage.folder for stage in plan_stages(TrainingConfig(), 2, 1000)]
        ['common', 'member0', 'member1']
    """
    rate = config.learning_rate * MEMBER_RATE
    own = {**FINE_TUNING, "learning_rate": rate, "steps": member_steps}
    return [
        Stage(COMMON, config),
        *(
            Stage(f"member{k}", replace(config, seed=config.seed + 1 + k, **own), fold=k, start=COMMON)
            for k in range(members)
        ),
    ]


def fold_data(data: FoldData, fold: int | None, folds: int) -> FoldData:
    """Data of a stage: the common network trains on all; a member leaves out its fold and is validated on it.

    Raises:
        VolumeError: There are fewer label maps or cases than folds.
    """
    if fold is None:
        return data
    anatomies = split(data.anatomies, fold, folds, "label maps") if data.anatomies else ([], [])
    cases = split(data.cases, fold, folds, "labelled cases") if data.cases else ([], [])
    return FoldData(*anatomies, *cases, data.scans, (fold, folds))


def train_ensemble(
    network: NetworkConfig,
    stages: Sequence[Stage],
    data: FoldData,
    output: Path,
    encoder: Path,
    device: torch.device,
    start: Path | None = None,
    show: bool = True,
) -> dict[str, dict[str, float]]:
    """Trains the stages one after the other; finished ones are left alone, and the one that was stopped is resumed.

    Args:
        network: Network of all stages.
        stages: As ``plan_stages`` gives them; the time limit of the first holds for all together.
        data: Training data, and held-out data that no stage trains on.
        output: Folder of the ensemble.
        encoder: Folder of the BERT encoder.
        device: Device of the networks.
        start: Weights that the common network begins from.
        show: Whether to show progress bars.

    Returns:
        Result of each stage by its folder's name; the last one may be of a stage that the time limit stopped.

    Raises:
        VolumeError: There are fewer label maps or cases than members.
        WeightsError: A state is damaged or of another network.
    """
    began, folds = time.monotonic(), len(stages) - 1
    results: dict[str, dict[str, float]] = {}
    for stage in stages:
        left = stages[0].config.max_minutes - (time.monotonic() - began) / 60
        config = replace(stage.config, max_minutes=max(left, 0.0))
        first = output / stage.start / NETWORK if stage.start else start
        used = fold_data(data, stage.fold, folds)
        folder = output / stage.folder
        results[stage.folder] = train(network, config, used, folder, encoder, device, first, show=show)
        if results[stage.folder]["steps"] < config.steps:
            break
    return results


def continue_from_copy(output: Path) -> None:
    """Restarts this process from a copy of the package, made on the first start, at low priority.

    A training of days then never mixes two versions of the code: later edits and updates do not reach it.
    Returns in the restarted process.

    Raises:
        PVSError: The copy cannot be written, or several processes were started for one training.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PVSError("--ensemble: expected one process, got several; start it without torch.distributed.run")
    package, source = Path(__file__).resolve().parents[1], output.resolve() / SOURCE
    if package == source / "pvs_model":
        os.nice(NICENESS)
        return
    if not source.is_dir():
        part = source.with_name(f".{SOURCE}.{os.getpid()}")
        ignore = shutil.ignore_patterns("__pycache__")
        try:
            shutil.copytree(package, part / "pvs_model", ignore=ignore)
            shutil.copytree(shipped_weights(), part / "weights", ignore=ignore)
            part.rename(source)
        except OSError as error:
            raise PVSError(f"{source}: expected a folder for a copy of the code, got: {first_line(error)}") from error
    path = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    # -P: the working directory, which may hold another copy, is not searched.
    arguments = [sys.executable, "-P", "-m", "pvs_model", *sys.argv[1:]]
    os.execve(sys.executable, arguments, os.environ | {"PYTHONPATH": path})
