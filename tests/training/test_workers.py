"""Samples of worker processes: those of as many samplers, in turn, from anywhere; a killed process ends the run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pvs_model.config import NetworkConfig
from pvs_model.errors import PVSError
from pvs_model.simulation.head import HeadModel
from pvs_model.training.batch import Batch
from pvs_model.training.config import TrainingConfig
from pvs_model.training.distributed import SINGLE_PROCESS, DistributedContext
from pvs_model.training.sampling import FoldData, make_sampler
from pvs_model.training.workers import MIN_SCENES, SampleWorkers, load_data, save_data
from tests.training.test_real_scan_patches import ball_brain

CPU = torch.device("cpu")


def equal(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.target, b.target) and a.prompts == b.prompts


def test_workers_draw_in_turn_and_a_killed_one_ends_the_run(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    training = TrainingConfig(
        patch=8, seed=5, scene_buffer=MIN_SCENES, refresh_interval=2, workers=2, simulate_on="device"
    )
    data = FoldData([anatomy])
    single = [make_sampler(data, tiny["2d"], training, CPU, DistributedContext(rank, 2)) for rank in range(2)]
    expected = [single[index % 2].batch(1) for index in range(7)]
    # From sample 3 on, as after a resume: the next one to draw is the second process.
    with SampleWorkers(data, tiny["2d"], training, CPU, SINGLE_PROCESS) as sampler:
        sampler.sample_index = 3
        assert all(equal(sampler.batch(1), batch) for batch in expected[3:])
        assert sampler.sample_index == 7
        folder = Path(sampler.folder.name)
        loader: Any = sampler.samples
        os.kill(loader._workers[0].pid, signal.SIGKILL)
        with pytest.raises(PVSError, match=r"--workers: a process that draws samples ended \(too little memory\?\)"):
            sampler.batch(1000)
    assert not folder.exists()


def test_data_survive_the_way_to_the_workers(anatomy: HeadModel, tmp_path: Path) -> None:
    scan = ball_brain()
    save_data(FoldData([anatomy], scans=[scan]), tmp_path)
    data = load_data(tmp_path)
    assert torch.equal(data.anatomies[0].tissues, anatomy.tissues)
    loaded = data.scans[0]
    assert (loaded.background.images == scan.background.images).all() and (loaded.certain == scan.certain).all()
    assert loaded.background.name == scan.background.name
    loaded.background.images[:] = 0  # a private copy: the file stays
    assert load_data(tmp_path).scans[0].background.images.any()
