"""The training loop: simulate, predict, compare, step; keep an average of the weights; resume exactly."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from pvs_model.config import NetworkConfig
from pvs_model.errors import WeightsError
from pvs_model.nets import checkpoint
from pvs_model.nets.model import GraphFusionNet, build
from pvs_model.nets.text import TextEncoder, pad
from pvs_model.synth.anatomy import Anatomy
from pvs_model.training.data import Batch, PatchStream
from pvs_model.training.losses import DeepSupervision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. ``patch`` in voxels per side; ``minutes`` stops early but leaves a state to resume."""

    steps: int = 4000
    batch: int = 1
    patch: int = 48
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-4
    warm_up: int = 100
    clip: float = 5.0
    ema: float = 0.995
    seed: int = 0
    pool: int = 300
    refresh: int = 3
    region_share: float = 0.2
    minutes: float = math.inf
    save_every: int = 200
    validation_patches: int = 16


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    part = min(1.0, (step - config.warm_up) / max(1, config.steps - config.warm_up))
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; float32 on the CPU, where it was the faster one."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Prompts:
    """Token embeddings of every prompt, encoded once when first asked for."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.known: dict[str, Tensor] = {}

    def __call__(self, prompts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """(B, T, W) tokens and (B, T) mask."""
        new = [p for p in dict.fromkeys(prompts) if p not in self.known]
        if new:
            self.known.update(zip(new, self.encoder.encode(new), strict=True))
        tokens, mask = pad([self.known[p] for p in prompts])
        return tokens.to(device), mask.to(device)


def dice_counts(probability: Tensor, label: Tensor, thresholds: Tensor) -> Tensor:
    """(thresholds, 3): true positives, predicted and true voxels, for Dice over many patches at once."""
    hit = probability.flatten()[None] >= thresholds[:, None]
    truth = label.flatten()[None] > 0.5
    return torch.stack([(hit & truth).sum(1), hit.sum(1), truth.sum(1).expand(len(thresholds))], 1).double()


THRESHOLDS = torch.arange(0.1, 0.95, 0.05)


@torch.no_grad()
def validate(network: GraphFusionNet, batches: list[Batch], prompts: Prompts, device: torch.device) -> Tensor:
    """Voxel-wise Dice over all patches, one value per entry of ``THRESHOLDS``."""
    network.eval()
    counts = torch.zeros(len(THRESHOLDS), 3, dtype=torch.float64)
    for batch in batches:
        tokens, mask = prompts(batch.prompts, device)
        with precision(device):
            logits = network(batch.images.to(device), tokens, mask)
        counts += dice_counts(logits.float().sigmoid().cpu(), batch.label, THRESHOLDS)
    network.train()
    return 2 * counts[:, 0] / (counts[:, 1] + counts[:, 2]).clamp_min(1)


class State:
    """Everything that a run needs to go on: weights, their average, the optimiser's moments, the step."""

    def __init__(self, network: GraphFusionNet, average: GraphFusionNet, optimiser: torch.optim.Optimizer) -> None:
        self.network, self.average, self.optimiser = network, average, optimiser
        self.step = 0
        self.visits = 0

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for name, value in self.network.state_dict().items():
            tensors[f"network.{name}"] = value
        for name, value in self.average.state_dict().items():
            tensors[f"average.{name}"] = value
        for name, parameter in self.network.named_parameters():
            for moment, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{moment}.{name}"] = torch.as_tensor(value, dtype=torch.float32)
        part = path.with_suffix(".part")
        facts = {"step": self.step, "visits": self.visits}
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata={"facts": json.dumps(facts)}
        )
        part.replace(path)

    def load(self, path: Path) -> None:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
        self.step, self.visits = facts["step"], facts["visits"]

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.load_state_dict(part("average."))
        named = dict(self.network.named_parameters())
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            for name, value in part(f"optimiser.{moment}.").items():
                kept = value if moment == "step" else value.to(named[name].device)
                self.optimiser.state[named[name]][moment] = kept


def train(
    config: NetworkConfig,
    training: TrainingConfig,
    anatomies: list[Anatomy],
    held_out: list[Anatomy],
    output: Path,
    encoder: Path,
    device: torch.device,
    start: Path | None = None,
) -> dict[str, float]:
    """Train one network on simulated patches.

    Args:
        config: the network.
        training: how to train.
        anatomies: heads to simulate from.
        held_out: heads for validation patches, never trained on.
        output: folder for ``state.safetensors``, ``network.safetensors``, ``log.csv``; a state in it is resumed.
        encoder: folder of the BERT encoder.
        device: where to train.
        start: weights to begin from when there is no state to resume.

    Returns:
        what was reached: steps, validation Dice and the threshold that gave it.

    Raises:
        WeightsError: when ``start`` is of another network.
    """
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(training.seed)
    network = build(config).to(device)
    average = build(config).to(device)
    if start is not None:
        loaded = checkpoint.load(start)
        if loaded.config != config:
            raise WeightsError(f"{start}: expected weights of {config}, found {loaded.config}")
        network.load_state_dict(loaded.state_dict())
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, betas=(0.9, 0.99)
    )
    state = State(network, average, optimiser)
    if (output / "state.safetensors").is_file():
        state.load(output / "state.safetensors")
        log.info("resumed at step %d", state.step)
    prompts = Prompts(TextEncoder(encoder))
    stream = PatchStream(
        anatomies, config, training.patch, training.seed, training.pool, training.refresh, training.region_share
    )
    stream.visits = state.visits
    fixed = PatchStream(held_out, config, training.patch, seed=training.seed + 77, region_share=0.0)
    checks = [
        fixed.sample(fixed.render(k), seed=k, region="brain", template=0) for k in range(training.validation_patches)
    ]
    loss_of = DeepSupervision()
    log_file = output / "log.csv"
    fresh = not log_file.is_file()
    began, running = time.monotonic(), 0.0
    facts: dict[str, float] = {}
    bar = tqdm(total=training.steps, initial=state.step, mininterval=5)
    with log_file.open("a", newline="") as handle, bar:
        writer = csv.writer(handle)
        if fresh:
            writer.writerow(["step", "seconds", "loss", "learning_rate", "dice_at_0.5", "best_dice", "best_threshold"])
        network.train()
        while state.step < training.steps and (time.monotonic() - began) / 60 < training.minutes:
            batch = stream.batch(training.batch)
            tokens, mask = prompts(batch.prompts, device)
            rate = learning_rate(state.step, training)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with precision(device):
                logits = network(batch.images.to(device), tokens, mask)
            loss = loss_of(logits, batch.label.to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
            optimiser.step()
            state.step, state.visits = state.step + 1, stream.visits
            decay = min(training.ema, (1 + state.step) / (10 + state.step))
            with torch.no_grad():
                for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                    kept.lerp_(new, 1 - decay)
            running = 0.98 * running + 0.02 * float(loss.detach()) if running else float(loss.detach())
            bar.update()
            last = state.step >= training.steps or (time.monotonic() - began) / 60 >= training.minutes
            if state.step % training.save_every == 0 or last:
                dice = validate(average, checks, prompts, device)
                best = int(dice.argmax())
                at_half = float(dice[(THRESHOLDS - 0.5).abs().argmin()])
                facts = {"steps": state.step, "dice": float(dice[best]), "threshold": round(float(THRESHOLDS[best]), 2)}
                seconds = round(time.monotonic() - began, 1)
                row = [
                    state.step,
                    seconds,
                    round(running, 4),
                    rate,
                    round(at_half, 4),
                    facts["dice"],
                    facts["threshold"],
                ]
                writer.writerow(row)
                handle.flush()
                bar.set_postfix(loss=f"{running:.3f}", dice=f"{facts['dice']:.3f}", at=facts["threshold"])
                state.save(output / "state.safetensors")
                metadata = {"training": json.dumps(asdict(training)), "facts": json.dumps(facts)}
                checkpoint.save(output / "network.safetensors", average, metadata)
    return facts
