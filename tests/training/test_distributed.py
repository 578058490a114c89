"""Two real processes train one network: the same weights in both, those of a step along the mean of their gradients.

torchrun runs this very file, see ``rank_main``.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pvs_model.config import NetworkConfig
from pvs_model.datasets.labelled_cases import LabelledCase
from pvs_model.datasets.simulated_cases import write_case
from pvs_model.errors import DeviceError
from pvs_model.nets.model import build
from pvs_model.training import distributed, loop, segmentation
from pvs_model.training.checkpoint import TrainingState, read_state
from pvs_model.training.config import TrainingConfig, learning_rate
from pvs_model.training.distributed import SINGLE_PROCESS, DistributedContext, any_rank, init_distributed, wrap_ddp
from pvs_model.training.losses import DeepSupervision
from pvs_model.training.prompts import Prompts
from pvs_model.training.sampling import FoldData, make_sampler
from pvs_model.training.segmentation import build_networks, train
from pvs_model.training.simulated_patches import SimulatedPatches
from pvs_model.types import SEQUENCES

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CONFIG = NetworkConfig(dimensions=2, neighbour_slices=3, widths=(4, 8, 8, 8), nested_from=0, fluid=False)
STEPS = 3


class Encoder:
    """In place of BERT: noise that follows from the prompt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode(self, prompts: list[str]) -> list[Tensor]:
        return [torch.randn(5, 384, generator=torch.Generator().manual_seed(sum(p.encode()))) for p in prompts]


def material() -> FoldData:
    """A labelled case of noise."""
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand((20, 20, 6), generator=generator) < 0.05).to(torch.uint8)
    case = LabelledCase(
        name="noise",
        image=torch.randn((3, 20, 20, 6), generator=generator).half(),
        label=label,
        inside=torch.ones_like(label),
        regions=torch.zeros_like(label),
        present=SEQUENCES,
        asked=(),
        thickness_mm=3.0,
        points=torch.nonzero(label).int(),
    )
    return FoldData(cases=[case], held_out_cases=[case])


def settings(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "steps": STEPS, "batch": 2, "patch": 16, "warmup_steps": 2, "save_every": 2, "validation_patches": 1,
        "precision": "float32",
    }  # fmt: skip
    return TrainingConfig(**values | changes)


def rank_main(output: Path) -> None:
    """In each process: a whole run, one in two sittings, one without time; the weights that this process ends with."""
    segmentation.TextEncoder, loop.can_plot = Encoder, lambda: False  # type: ignore[misc, assignment]
    states: list[TrainingState] = []

    class Kept(TrainingState):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            states.append(self)

    loop.TrainingState = Kept  # type: ignore[misc]
    with init_distributed(CPU) as (context, device):
        facts = {}
        for name, training in (
            ("whole", settings()), ("cut", settings(steps=2)), ("cut", settings()),
            ("short", settings(max_minutes=0.0)),
        ):  # fmt: skip
            facts[name] = train(CONFIG, training, material(), output / name, Path("none"), device, None, context)
        save_file(states[0].tensors(), output / f"rank{context.rank}.safetensors")
        (output / f"facts{context.rank}.json").write_text(json.dumps(facts))


def torchrun(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the two processes as well
            raise
    return subprocess.CompletedProcess(command, process.returncode, *output)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(__file__, str(folder), folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def by_hand(ranks: int) -> dict[str, Tensor]:
    """The run of so many processes in this one: each one's loss by itself, then the mean of the gradients."""
    training = settings()
    network, average = build_networks(CONFIG, training, CPU, None)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=training.weight_decay, betas=(0.9, 0.99))
    state, loss_of = TrainingState(network, average, optimiser), DeepSupervision()
    prompts = Prompts(Encoder(Path()))  # type: ignore[arg-type]
    for step in range(STEPS):
        optimiser.zero_grad()
        for rank in range(ranks):
            samples = make_sampler(material(), CONFIG, training, CPU, DistributedContext(rank, ranks))
            samples.sample_index = step * training.batch
            batch = samples.batch(training.batch)
            loss = loss_of(network(batch.images, *prompts(batch.prompts, CPU)), batch.target)
            (loss / ranks).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.max_grad_norm)
        optimiser.param_groups[0]["lr"] = learning_rate(step, training)
        optimiser.step()
        state.advance(ranks * training.batch * (step + 1), float(loss.detach()), 0.0, training.ema_decay)
    return state.tensors()


def test_both_processes_end_with_the_same_weights(two: Path) -> None:
    one, other = (load_file(two / f"rank{rank}.safetensors") for rank in (0, 1))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_is_along_the_mean_of_the_processes_gradients(two: Path) -> None:
    # Not that of one process with the doubled batch: Dice is a ratio of sums over the batch, so the mean of the
    # Dice losses of two halves is not the Dice loss of the whole. What holds exactly is the mean of the gradients.
    actual, expected = load_file(two / "rank0.safetensors"), by_hand(2)
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    alone = by_hand(1)
    assert any((alone[name] - expected[name]).abs().max() > 1e-3 for name in alone), "the second process had no say"


def test_only_the_first_process_writes_and_tells(two: Path) -> None:
    facts, other = (json.loads((two / f"facts{rank}.json").read_text()) for rank in (0, 1))
    assert other == {"whole": {}, "cut": {}, "short": {}}
    assert facts["whole"]["steps"] == facts["cut"]["steps"] == STEPS
    with (two / "whole" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "3"]
    kept, tensors = read_state(two / "whole")
    assert (kept.step, kept.samples) == (STEPS, STEPS * 2 * 2)
    final = load_file(two / "rank0.safetensors")
    assert all(torch.equal(tensors[name], final[name]) for name in final)


def test_two_processes_resume_exactly_and_stop_together(two: Path) -> None:
    (_, whole), (_, cut) = read_state(two / "whole"), read_state(two / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert read_state(two / "short")[0].step == 1


@pytest.mark.slow
def test_the_command_line_under_torchrun(anatomy: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 6)):
        write_case(tmp_path / "cases", name, anatomy, seed, (1.0, 1.0, 5.0))
    words = ["--cases", "cases", "--folds", "2", "--network", "2d", "--patch", "16", "--steps", "2", "--output", "run"]
    done = torchrun("-m", "pvs_model", "train", *words, "--device", "cpu", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == 1 and json.loads(results[0])["steps"] == 2
    assert read_state(tmp_path / "run")[0].step == 2


def test_processes_share_out_scenes_and_visits(anatomy: Any) -> None:
    settings: dict[str, Any] = {"patch": 8, "seed": 1, "scene_buffer": 3, "refresh_interval": 2}
    streams = [SimulatedPatches([anatomy], CONFIG, **settings, context=DistributedContext(r, 3)) for r in range(3)]
    plain = SimulatedPatches([anatomy], CONFIG, **settings)
    scenes = [{stream.choose(visit)[0] for visit in range(60)} for stream in streams]
    assert all(scenes[a].isdisjoint(scenes[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    # Each is rendered for as many samples as by a single process.
    alone = {plain.choose(visit)[0] for visit in range(60)}
    assert all(abs(len(own) - len(alone)) <= 6 for own in scenes)
    for rank, stream in enumerate(streams):
        for visit in range(60):
            number, oldest = stream.choose(visit)
            assert number % 3 == oldest % 3 == rank and oldest <= number <= 3 * (visit // 2) + rank


def test_a_process_that_torchrun_did_not_start_is_alone() -> None:
    with init_distributed(CPU) as (context, device):
        assert context == SINGLE_PROCESS == DistributedContext(0, 1) and context.is_first and device == CPU
        assert context.global_index(7) == 7
        network = build(CONFIG)
        assert wrap_ddp(network, CPU, context) is network
        assert any_rank(True, CPU, context) and not any_rank(False, CPU, context)


def test_more_processes_than_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"--nproc-per-node: expected at most one process per GPU \(1\)"):
        with init_distributed(torch.device("cuda")):
            pass


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
