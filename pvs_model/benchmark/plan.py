"""What a benchmark is to do: budget, jobs, and the scans that networks are trained and scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pvs_model.errors import PVSError
from pvs_model.nets.registry import ENTRIES, Entry

#: Protocols of the challenge's Table 2 that the scans to be scored are simulated with, by the network's form.
THIN = ("sg70", "edinburgh_ge_1x1x2", "edinburgh_prisma_0.9")
THICK = ("shanghai_skyra", "shanghai_avanto")
#: Scans with PVS mixed into them, by that name in the tables.
REAL = "real background"
#: Of the first case of each set. No other part of the project draws from here on.
FIRST_SEED = 9500


@dataclass(frozen=True)
class Budget:
    """How much each network is trained, and on how much it is scored.

    Attributes:
        steps: of each training.
        seeds: trainings of our network and of each row of its ablation, from other weights and on other samples.
        peer_seeds: of each other network.
        patch: side of 3D patches; planes are twice as long.
        batch: patches per step.
        cases: per protocol.
        crop_mm: side of the box around the basal ganglia that is scored; 0 for whole heads.
        window: side of the sliding window.
        equal_seconds: whether each network is trained once more, for as long as ours took.
        validation_patches: of held-out heads, on which each network's threshold is chosen.
    """

    steps: int = 200
    seeds: int = 2
    peer_seeds: int = 1
    patch: int = 32
    batch: int = 2
    cases: int = 1
    crop_mm: float = 80.0
    window: int = 64
    equal_seconds: bool = True
    validation_patches: int = 24

    def __post_init__(self) -> None:
        if self.patch < 16 or self.patch % 16 or self.window % 16:
            raise PVSError(f"--patch, --window: expected multiples of 16, found {self.patch}, {self.window}")
        numbers = (self.steps, self.seeds, self.peer_seeds, self.batch, self.cases)
        if min(numbers) < 1 or self.window < 16 or self.crop_mm < 0:
            raise PVSError(
                "--steps, --seeds, --peer-seeds, --batch, --cases: expected at least 1 each, and --crop-mm from 0 on, "
                f"found {', '.join(map(str, numbers))} and {self.crop_mm:g}"
            )

    def patch_of(self, entry: Entry) -> int:
        """Side of the patches of an entry."""
        return self.patch if entry.config.dimensions == 3 else 2 * self.patch

    def window_of(self, entry: Entry) -> int:
        """Side of the sliding window of an entry."""
        return self.window if entry.config.dimensions == 3 else 2 * self.window


@dataclass(frozen=True)
class Job:
    """One training and its scores.

    Attributes:
        entry: what is trained.
        seed: of weights and samples.
        equal: of what trainings are equal: "steps" or "seconds".
    """

    entry: Entry
    seed: int
    equal: str = "steps"

    def folder(self, output: Path) -> Path:
        """Where it is kept."""
        return output / "runs" / self.entry.name / f"{self.equal}-seed{self.seed}"


def chosen(names: Sequence[str]) -> list[Entry]:
    """Entries by name, in the registry's order.

    Raises:
        PVSError: there is none of a name.
    """
    if list(names) == ["all"]:
        return list(ENTRIES.values())
    unknown = [name for name in names if name not in ENTRIES]
    if unknown or not names:
        told = ", ".join(unknown) or "none"
        raise PVSError(f"--networks: expected all, or some of {', '.join(ENTRIES)}; found {told}")
    return [entry for name, entry in ENTRIES.items() if name in names]


def jobs_of(entries: Sequence[Entry], budget: Budget) -> list[Job]:
    """All trainings: the first seed of every network before any second, then those at equal seconds.

    So a run that is cut short still compares all of them.
    """
    seeds = {entry.name: budget.seeds if is_ours(entry) else budget.peer_seeds for entry in entries}
    jobs = [
        Job(entry, seed)
        for seed in range(max(seeds.values(), default=0))
        for entry in entries
        if seed < seeds[entry.name]
    ]
    if budget.equal_seconds:
        jobs += [Job(entry, 0, "seconds") for entry in entries if not is_ours(entry)]
    return jobs


def is_ours(entry: Entry) -> bool:
    """Whether an entry is the graph-fusion network, or a row of its ablation."""
    return entry.config.architecture == "graph_fusion"


def sets_of(entry: Entry) -> tuple[str, ...]:
    """Names of the sets that an entry is scored on."""
    return THICK if entry.form == "2d" else (*THIN, REAL)
