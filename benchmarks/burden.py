"""Counts and volumes of PVS in simulated cohorts against the reference, and in one subject under several protocols.

``python -m benchmarks.burden cohort WORK --anatomies MAPS --protocol NAME ...`` and ``retest WORK --anatomies MAPS``.

A cohort is ``--cases`` subjects of one protocol. The first has no PVS, the last hundreds; densities rise by a constant
factor between them, those of the basal ganglia in another order. The retest renders a subject once at 0.5 mm; every
protocol averages that same subject onto its grid and draws its own contrast and noise.

Cases are simulated (existing ones in WORK are kept), segmented by the pipeline and measured by ``pvs_model.burden`` in
the regions of the anatomy network. The reference is measured in the simulator's regions: counts and volumes of the
labels, and all fluid in PVS, labelled or not.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.cases import WEIGHTS, LabelledCase, format_score, load_cases, mean, write_json
from pvs_model.burden.measure import measure
from pvs_model.burden.records import ALL, BOTH, Burden
from pvs_model.burden.regions import REGIONS as NAMED
from pvs_model.burden.regions import burden_of, regions_of
from pvs_model.config import InferenceConfig, is_thick
from pvs_model.datasets.simulated_cases import AnyCase, CaseSpec, plain_scan
from pvs_model.datasets.simulated_sets import DatasetPlan, HeadModels, write_set
from pvs_model.evaluation.agreement_statistics import intraclass, spearman
from pvs_model.layouts import choose
from pvs_model.pipeline import Segmenter
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.parameters import SceneParams
from pvs_model.simulation.protocols import Protocol, protocol_named
from pvs_model.simulation.render import Scene, render
from pvs_model.simulation.subject import acquire_case, simulate, whole_scene
from pvs_model.types import Triple

REGIONS = ("WM", "BG", ALL)
QUANTITIES = ("count", "volume", "fluid", "expected fluid")
#: Lowest and highest density of the cases with PVS, per cm3 of tissue.
CENTRUM, BASAL = (0.02, 1.5), (0.05, 2.5)
#: Voxel spacing of the retest's subject; those of the protocols are integer multiples.
FINE_MM = 0.5
PROTOCOLS: dict[str, Triple] = {
    "0.5 mm": (0.5, 0.5, 0.5),
    "1 mm": (1.0, 1.0, 1.0),
    "1 x 1 x 2 mm": (1.0, 1.0, 2.0),
    "1 x 1 x 3 mm": (1.0, 1.0, 3.0),
    "0.5 x 0.5 x 6 mm": (0.5, 0.5, 6.0),
    "1 x 1 x 6 mm": (1.0, 1.0, 6.0),
}
SEED = 40_000


@dataclass(frozen=True)
class CaseBurden:
    """Burden of a case.

    Attributes:
        case: Its name.
        values: Predicted and reference value by region and quantity; volumes and fluid in mm³.
        region_accuracy: Fraction of the reference PVS voxels of CSO and BG with the right region; NaN without any.
    """

    case: str
    values: dict[tuple[str, str], tuple[float, float]]
    region_accuracy: float

    def as_json(self) -> dict[str, object]:
        """The values of the tables."""
        values = {" ".join(key): pair for key, pair in self.values.items()}
        return {"case": self.case, "region_accuracy": self.region_accuracy, "predicted and reference": values}


# ---- the subjects ----------------------------------------------------------------------------------------------------


def densities(number: int, cases: int) -> tuple[float, float]:
    """Computes the PVS per cm3 of centrum semiovale and basal ganglia of a case of a cohort; the first has none."""
    if number == 0:
        return 0.0, 0.0

    def of(span: tuple[float, float], place: int) -> float:
        return float(span[0] * (span[1] / span[0]) ** (place / max(1, cases - 2)))

    step = next(s for s in (7, 5, 3, 11, 13) if math.gcd(s, cases - 1) == 1)  # visits every place once
    return of(CENTRUM, number - 1), of(BASAL, (number - 1) * step % (cases - 1))


def with_densities(scene: SceneParams, centrum: float, basal: float) -> SceneParams:
    """Changes the densities of a scene; those of the rest of the brain are kept, or 0 if there are no others."""
    other = scene.pvs_other if centrum > 0 else 0.0
    return replace(scene, pvs_centrum=centrum, pvs_basal=basal, pvs_other=min(other, centrum))


def plan_cohort(protocol: Protocol, cases: int, heads: HeadModels) -> DatasetPlan:
    """Plans the cases of one protocol, with alternating heads."""

    def make(order: CaseSpec) -> AnyCase:
        head = heads.find(order.source)
        scene = with_densities(whole_scene(head, order.seed, protocol.grid_mm), *densities(order.seed - SEED, cases))
        scan = plain_scan(order.seed, protocol.dimensions, protocol.acquired())
        return simulate(head, order.seed, protocol.grid_mm, scene=scene, scan=scan)

    specs = [CaseSpec(f"sub{k:02d}", heads.name(k), protocol.name, SEED + k) for k in range(cases)]
    return DatasetPlan(specs, make)


def averaged(scene: Scene, factors: tuple[int, int, int]) -> Scene:
    """Averages a subject onto voxels that are larger by integer factors; incomplete voxels at the end are cropped."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        return (F.avg_pool3d(x[None, None].float(), factors)[0, 0]).round().to(torch.uint8)

    x, y, z = (s * f for s, f in zip(scene.voxel_mm, factors, strict=True))
    middle = tuple(slice(f // 2, n // f * f, f) for f, n in zip(factors, scene.regions.shape, strict=True))
    fraction = mean(scene.pvs_fraction)
    # The voxels that PVS reach, on the coarse grid, and the mean of what they displace there.
    fine = np.unravel_index(scene.pvs_index.numpy(), tuple(scene.pvs_fraction.shape))
    coarse = [i // f for i, f in zip(fine, factors, strict=True)]
    inside = np.all([i < n for i, n in zip(coarse, fraction.shape, strict=True)], axis=0)
    flat = np.ravel_multi_index([i[inside] for i in coarse], tuple(fraction.shape))
    index, position = np.unique(flat, return_inverse=True)
    displaced = torch.zeros(len(scene.fractions), len(index))
    displaced.index_add_(1, torch.from_numpy(position), scene.displaced.float()[:, torch.from_numpy(inside)])
    return replace(
        scene,
        fractions=torch.stack([mean(part) for part in scene.fractions]),
        pvs_fraction=fraction,
        pvs_index=torch.from_numpy(index).to(torch.int32),
        displaced=(displaced / float(np.prod(factors))).half(),
        diameter=F.max_pool3d(scene.diameter[None, None].float(), factors)[0, 0].to(torch.uint8),
        regions=scene.regions[middle].contiguous(),
        voxel_mm=(x, y, z),
    )


def plan_retest(heads: HeadModels, subject: int) -> DatasetPlan:
    """Plans one subject under ``PROTOCOLS``; it is rendered once."""
    source = heads.name(subject)
    rendered: list[tuple[SceneParams, Scene]] = []

    def subject_of(head: HeadModel) -> tuple[SceneParams, Scene]:
        if not rendered:
            params = whole_scene(head, SEED + 500 + subject, (FINE_MM,) * 3)
            params = with_densities(params, 0.3, 0.8)
            rendered.append((params, render(params, head)))
        return rendered[0]

    def make(order: CaseSpec) -> AnyCase:
        params, scene = subject_of(heads.find(source))
        voxel_mm = PROTOCOLS[order.protocol]
        scene = averaged(scene, tuple(round(v / FINE_MM) for v in voxel_mm))  # type: ignore[arg-type]
        scan = plain_scan(order.seed, 2 if is_thick(max(voxel_mm)) else 3)
        case = acquire_case(scene, params, scan)
        case.affine[:3, 3] = (np.array(voxel_mm) - FINE_MM) / 2
        return case

    names = list(PROTOCOLS)
    return DatasetPlan([CaseSpec(f"scan{k:02d}", source, name, SEED + 900 + k) for k, name in enumerate(names)], make)


# ---- measurements ------------------------------------------------------------------------------------------------


def reference_values(case: LabelledCase) -> dict[tuple[str, str], float]:
    """Reference by region and quantity, in the simulator's regions, whose CSO is the cerebral white matter."""
    whole = {"WM": case.regions["CSO"], "BG": case.regions["BG"], ALL: np.ones(case.reference.shape, bool)}
    labels = measure(case.reference, whole, case.prepared.grid.affine)
    values = predicted_values(labels)
    fluid = {name: float(case.maps["FLUID"][region].sum()) * case.voxel_mm3 for name, region in whole.items()}
    return values | {(name, quantity): fluid[name] for name in whole for quantity in QUANTITIES if "fluid" in quantity}


def predicted_values(burden: Burden) -> dict[tuple[str, str], float]:
    """Count, volume and both volumes of fluid by region."""
    rows = {name: burden.row(name, BOTH) for name in REGIONS}
    return {
        (name, quantity): float(value or 0)
        for name, row in rows.items()
        for quantity, value in zip(
            QUANTITIES, (row.count, row.volume_mm3, row.fluid_mm3, row.expected_fluid_mm3), strict=True
        )
    }


def measured(folder: Path, segmenter: Segmenter) -> Iterator[CaseBurden]:
    """Segments and measures every case of a set."""
    for files, case in zip(choose(folder).find_cases(folder), load_cases(folder), strict=True):
        result, affine = segmenter.segment(files), case.prepared.grid.affine
        anatomy = result.prepared.anatomy
        if anatomy is None or result.pvs_fraction is None:
            missing = "a brain, but none was detected" if anatomy is None else "networks that predict the PVS fraction"
            raise SystemExit(f"{case.name}: expected {missing}")
        predicted = predicted_values(burden_of(result.canonical_mask, affine, anatomy, result.pvs_fraction))
        reference = reference_values(case)
        regions = regions_of(case.reference.astype(np.uint8), affine, anatomy)
        values = {simulated: list(NAMED).index(name) + 1 for simulated, name in (("CSO", "WM"), ("BG", "BG"))}
        right = sum(int((regions[case.within(name)] == value).sum()) for name, value in values.items())
        total = sum(int(case.within(name).sum()) for name in values)
        yield CaseBurden(
            case.name, {key: (predicted[key], reference[key]) for key in predicted},
            right / total if total else float("nan"),
        )  # fmt: skip


# ---- tables ----------------------------------------------------------------------------------------------------------


def cohort_rows(name: str, pairs: Sequence[CaseBurden]) -> list[str]:
    """One line per region and quantity."""
    lines = []
    for region in REGIONS:
        for quantity in QUANTITIES:
            predicted, reference = map(list, zip(*(pair.values[region, quantity] for pair in pairs), strict=True))
            rho = spearman(predicted, reference).rho
            icc = next(i for i in intraclass(np.array([predicted, reference]).T) if i.form == "ICC(2,1)")
            total = sum(predicted) / sum(reference) if sum(reference) else None
            interval = f"{format_score(icc.low)} to {format_score(icc.high)}"
            lines.append(
                f"| {name} | {region} | {quantity} | {min(reference):.0f} to {max(reference):.0f} | "
                f"{format_score(rho)} | {format_score(icc.value)} | {interval} | {format_score(total)} |"
            )
    return lines


def cohort_table(sets: dict[str, list[CaseBurden]]) -> str:
    """Formats three regions of every protocol, and the accuracy of the regions."""
    head = (
        "protocol",
        "region",
        "quantity",
        "reference",
        "Spearman",
        "ICC(2,1)",
        "95 % interval",
        "predicted / reference",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, pairs in sets.items():
        lines += cohort_rows(name, pairs)
    means = {name: mean(p.region_accuracy for p in pairs) for name, pairs in sets.items()}
    shares = ", ".join(f"{name} {format_score(value)}" for name, value in means.items())
    return "\n".join([*lines, "", f"Reference PVS voxels of WM and BG with the right region: {shares}."])


def variation(values: Sequence[float]) -> float | None:
    """Coefficient of variation: standard deviation over mean."""
    average = statistics.fmean(values)
    return statistics.stdev(values) / average if average and len(values) > 1 else None


def retest_table(pairs: dict[str, CaseBurden]) -> str:
    """Formats one line per protocol, predicted (reference), and the coefficients of variation."""
    columns = [(region, quantity) for region in REGIONS for quantity in QUANTITIES]
    head = ["protocol", *(f"{region} {quantity}" for region, quantity in columns)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, pair in pairs.items():
        cells = [f"{predicted:.0f} ({reference:.0f})" for predicted, reference in (pair.values[c] for c in columns)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    thin = [name for name in pairs if not is_thick(max(PROTOCOLS[name]))]
    for label, names in (("all", list(pairs)), ("slices below 2.5 mm", thin)):
        cells = []
        for column in columns:
            values = zip(*(pairs[name].values[column] for name in names), strict=True)
            predicted, reference = (format_score(variation(v)) for v in values)
            cells.append(f"{predicted} ({reference})")
        lines.append(f"| **variation, {label}** | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.burden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=("cohort", "retest"))
    parser.add_argument("work", type=Path, help="folder for cases; existing ones are kept")
    parser.add_argument("--anatomies", type=Path, help="folder of label maps (default: phantoms)")
    parser.add_argument("--protocol", nargs="+", default=["1mm"], metavar="NAME", help="protocols of the cohort")
    parser.add_argument("--cases", type=int, default=20, help="cases of the cohort")
    parser.add_argument("--subject", type=int, default=0, help="subject of the retest")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--only-cases", action="store_true", help="stop after the simulation")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    heads = HeadModels(options.anatomies, options.work / ".cache")
    if options.experiment == "cohort":
        plans = {name: plan_cohort(protocol_named(name), options.cases, heads) for name in options.protocol}
    else:
        plans = {f"retest{options.subject}": plan_retest(heads, options.subject)}
    for name, plan in plans.items():
        write_set(options.work / name, plan)
    if options.only_cases:
        return 0
    segmenter = Segmenter(InferenceConfig(options.weights))
    sets = {
        name: list(tqdm(measured(options.work / name, segmenter), total=len(plan.specs)))
        for name, plan in plans.items()
    }
    write_json(options.json, {name: [pair.as_json() for pair in pairs] for name, pairs in sets.items()})
    if options.experiment == "cohort":
        print(cohort_table(sets))
    else:
        (plan,), (pairs,) = plans.values(), sets.values()
        print(retest_table(dict(zip([order.protocol for order in plan.specs], pairs, strict=True))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
