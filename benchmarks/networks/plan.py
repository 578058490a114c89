"""Budget, jobs and test sets of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pvs_model.errors import PVSError
from pvs_model.nets.zoo import MODELS, ModelSpec

#: Protocols of the challenge's Table 2 that test cases are simulated with, for thin and for thick slices.
THIN = ("sg70", "edinburgh_ge_1x1x2", "edinburgh_prisma_0.9")
THICK = ("shanghai_skyra", "shanghai_avanto")
#: Name of the test set of real scans with inserted PVS.
REAL = "real background"
#: Seed of the first test case of each set; no other part of the project uses seeds from here.
FIRST_SEED = 9500


@dataclass(frozen=True)
class Budget:
    """Extent of training and scoring of each network.

    Attributes:
        steps: Optimisation steps of each training.
        seeds: Trainings of the graph-fusion network and of each ablation, with other weights and samples.
        baseline_seeds: Trainings of each baseline.
        patch: Patch size in 3D; twice that in 2D.
        batch: Patches per step.
        cases: Test cases per protocol.
        crop_mm: Side of the box around the basal ganglia that is scored; 0 for whole heads.
        window: Window size of inference in 3D; twice that in 2D.
        equal_seconds: Whether each baseline is trained a second time, for as long as the graph-fusion network.
        validation_patches: Patches of held-out heads on which the threshold of each network is chosen.
    """

    steps: int = 200
    seeds: int = 2
    baseline_seeds: int = 1
    patch: int = 32
    batch: int = 2
    cases: int = 1
    crop_mm: float = 80.0
    window: int = 64
    equal_seconds: bool = True
    validation_patches: int = 24

    def __post_init__(self) -> None:
        if self.patch < 16 or self.patch % 16 or self.window % 16:
            raise PVSError(f"--patch, --window: expected multiples of 16, got {self.patch}, {self.window}")
        numbers = (self.steps, self.seeds, self.baseline_seeds, self.batch, self.cases)
        if min(numbers) < 1 or self.window < 16 or self.crop_mm < 0:
            raise PVSError(
                "--steps, --seeds, --baseline-seeds, --batch, --cases: expected at least 1 each, and --crop-mm at "
                f"least 0, got {', '.join(map(str, numbers))} and {self.crop_mm:g}"
            )

    def patch_size(self, model: ModelSpec) -> int:
        """Returns the patch size of a model."""
        return self.patch if model.config.dimensions == 3 else 2 * self.patch

    def window_size(self, model: ModelSpec) -> int:
        """Returns the window size of a model."""
        return self.window if model.config.dimensions == 3 else 2 * self.window


@dataclass(frozen=True)
class Job:
    """One training and its scores.

    Attributes:
        model: Model to train.
        seed: Seed of weights and samples.
        equal: Quantity in which the trainings of all models are equal: "steps" or "seconds".
    """

    model: ModelSpec
    seed: int
    equal: str = "steps"

    def folder(self, output: Path) -> Path:
        """Returns the folder of the job."""
        return output / "runs" / self.model.name / f"{self.equal}-seed{self.seed}"


def select_models(names: Sequence[str]) -> list[ModelSpec]:
    """Selects models by name, in the order of the zoo.

    Raises:
        PVSError: If a name is unknown.
    """
    if list(names) == ["all"]:
        return list(MODELS.values())
    unknown = [name for name in names if name not in MODELS]
    if unknown or not names:
        got = ", ".join(unknown) or "none"
        raise PVSError(f"--networks: expected all, or some of {', '.join(MODELS)}; got {got}")
    return [model for name, model in MODELS.items() if name in names]


def plan_jobs(models: Sequence[ModelSpec], budget: Budget) -> list[Job]:
    """Lists all trainings: the first seed of every model, then the other seeds, then those at equal seconds.

    In this order an interrupted run still compares all models.
    """
    seeds = {model.name: budget.seeds if is_graph_fusion(model) else budget.baseline_seeds for model in models}
    jobs = [
        Job(model, seed)
        for seed in range(max(seeds.values(), default=0))
        for model in models
        if seed < seeds[model.name]
    ]
    if budget.equal_seconds:
        jobs += [Job(model, 0, "seconds") for model in models if not is_graph_fusion(model)]
    return jobs


def is_graph_fusion(model: ModelSpec) -> bool:
    """Whether a model is the graph-fusion network or one of its ablations."""
    return model.config.architecture == "graph_fusion"


def evaluation_sets(model: ModelSpec) -> tuple[str, ...]:
    """Names the sets that a model is scored on."""
    return THICK if model.configuration == "2d" else (*THIN, REAL)
