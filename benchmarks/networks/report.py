"""Tables, rank plots and JSON of the results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.cases import format_score, mean, write_json
from benchmarks.networks.plan import is_graph_fusion
from benchmarks.networks.recipes import ENSEMBLES, NOT_REPRODUCED
from benchmarks.networks.run import BenchmarkResult, Record
from pvs_model.evaluation.ranking import Score, rank
from pvs_model.evaluation.stability import stability
from pvs_model.evaluation.tables import markdown
from pvs_model.files import write_text
from pvs_model.nets.zoo import MODELS
from pvs_model.reports.ranking_plot import plot_stability

#: Scores of the tables: heading and key in ``cases.score``.
SCORES = {"Dice": "dice", "IoU": "iou", "recall": "recall", "precision": "precision", "F1": "f1", "AVD": "avd"}
#: Rows of Table 2 of the cross-modal paper, and what each adds to the row above.
TABLE_2 = (
    ("backbone", "backbone"),
    ("text", "+ text"),
    ("graph", "+ graph interaction"),
    ("attention", "+ cross-attention"),
    ("", "+ dynamic fusion: ours"),
)
#: Other ablations: the graph-fusion network with one change.
CHANGES = (
    ("constant", "one prompt for all, so no regions"),
    ("whole", "varied prompts, none for a region"),
    ("printed", "equation (3) as printed (V_T)"),
    ("level2", "modules at a quarter of the resolution"),
    ("coverage20", "labels from a coverage of 0.2"),
    ("coverage60", "labels from a coverage of 0.6"),
)


def write_report(output: Path, result: BenchmarkResult) -> list[Path]:
    """Writes ``benchmark.json``, ``benchmark.md`` and rank plots for thin and for thick slices. Returns the paths."""
    paths = [output / "benchmark.json", output / "benchmark.md"]
    write_json(paths[0], asdict(result))
    parts = [f"Budget: {', '.join(f'{k} {v}' for k, v in result.budget.items())}; device: {result.device}."]
    for configuration, title in (("3d", "Slices below 2.5 mm"), ("2d", "Slices of 2.5 mm and more")):
        runs = [r for r in result.runs if r["configuration"] == configuration and r["rows"]]
        if not runs:
            continue
        parts += [f"## {title}", "### Networks", networks(runs, result), "### By set and region: Dice", by_set(runs)]
        if any(r["model"].startswith("backbone") for r in runs):
            parts += ["### Ablation", ablation(runs, configuration)]
        scored = [e for e in result.ensembles if e["configuration"] == configuration and e["rows"]]
        if scored:
            parts += ["### Ensembles", ensembles(scored)]
        scores = [s for r in runs if r["equal"] == "steps" and r["seed"] == 0 for s in ranking_scores(r["model"], r)]
        scores += [s for e in scored if "," not in e["system"] for s in ranking_scores(f"{e['system']} (ensemble)", e)]
        if len({s.team for s in scores}) > 1:
            path = output / f"ranks_{configuration}.png"
            plot_stability(stability(scores), path)
            parts += ["### Ranks, as in the challenge", rank(scores).text()]
            paths.append(path)
    parts += ["## Models", models([name for name in MODELS if name in result.costs])]
    parts += ["## Not reproduced", markdown(["system", "reason"], [list(x) for x in NOT_REPRODUCED.items()])]
    write_text(paths[1], "\n\n".join(parts) + "\n")
    return paths


def rows_of(records: Iterable[Record], region: str | None = "brain", name: str | None = None) -> list[Record]:
    """Lists the rows of records: of one region or all, of one set or all."""
    return [
        row
        for record in records
        for row in record["rows"]
        if (region is None or row["region"] == region) and (name is None or row["set"] == name)
    ]


def networks(runs: Sequence[Record], result: BenchmarkResult) -> str:
    """Formats one line per network: scores in the whole box at equal steps, Dice at equal seconds, and the cost."""
    equal = {r["model"]: r for r in runs if r["equal"] == "seconds"}
    lines = []
    for name, records in grouped(runs).items():
        rows, cost = rows_of(records), result.costs[name]
        dice = [mean(row["dice"] for row in rows_of([r])) for r in records]
        at_equal_seconds = "as steps" if is_graph_fusion(MODELS[name]) else "-"
        if name in equal:
            score = format_score(mean(row["dice"] for row in rows_of([equal[name]])))
            at_equal_seconds = f"{score} ({equal[name]['steps']})"
        lines.append(
            [
                name,
                *(format_score(mean(row[key] for row in rows)) for key in SCORES.values()),
                format_range(dice),
                at_equal_seconds,
                f"{cost['parameters'] / 1e6:.2f}",
                f"{cost['gflop']:.0f}",
                f"{np.median([s for r in records for s in r['seconds']]):.2f}",
                f"{cost['step_seconds']:.3f}",
                "-" if cost["window_mib"] is None else f"{cost['window_mib']:.0f}",
            ]
        )
    lines.sort(key=lambda line: line[1], reverse=True)
    header = ["network", *SCORES, "Dice, lowest to highest seed", "Dice at equal seconds (steps)", "M parameters",
              "GFLOP a window", "s a case", "s a step", "MiB a window"]  # fmt: skip
    return markdown(header, lines)


def by_set(runs: Sequence[Record]) -> str:
    """Formats Dice of each set, and the scores of the two regions over all sets."""
    sets = list(dict.fromkeys(row["set"] for row in rows_of(runs)))
    thickness = {name: max(row["thickness_mm"] for row in rows_of(runs, name=name)) for name in sets}
    lines = []
    for name, records in grouped(runs).items():
        cells = [format_score(mean(row["dice"] for row in rows_of(records, name=s))) for s in sets]
        for region in ("CSO", "BG"):
            rows = rows_of(records, region)
            cells += [format_score(mean(row[key] for row in rows)) for key in ("dice", "f1", "avd")]
        lines.append([name, *cells])
    regions = [f"{region} {score}" for region in ("CSO", "BG") for score in ("Dice", "F1", "AVD")]
    return markdown(["network", *(f"{s} ({thickness[s]:g} mm)" for s in sets), *regions], lines)


def ablation(runs: Sequence[Record], configuration: str) -> str:
    """Formats Table 2 of the cross-modal paper and the other ablations, with the range over seeds and the gains."""
    by_name = grouped(runs)

    def line(stem: str, label: str, before: str | None) -> list[str] | None:
        name = f"{stem}-{configuration}" if stem else configuration
        if name not in by_name:
            return None
        dice = dice_per_seed(by_name[name])
        gain = "-"
        if before in by_name:
            paired = dice_per_seed(by_name[before])
            gains = [dice[s] - paired[s] for s in dice if s in paired]
            gain = f"{np.mean(gains):+.3f} ({min(gains):+.3f} to {max(gains):+.3f})" if gains else "-"
        rows = rows_of(by_name[name])
        scores = [format_score(mean(row[key] for row in rows)) for key in SCORES.values()]
        return [label, *scores, format_range(list(dice.values())), gain]

    lines, before = [], None
    for stem, label in TABLE_2:
        lines.append(line(stem, label, before))
        before = f"{stem}-{configuration}"
    lines += [line(stem, label, configuration) for stem, label in CHANGES]
    for record in by_name.get(configuration, []):
        if "mirrored" in record:
            plain, mirrored = (mean(row["dice"] for row in rows_of([r])) for r in (record, record["mirrored"]))
            rows = rows_of([record["mirrored"]])
            gain = f"{mirrored - plain:+.3f}" if mirrored is not None and plain is not None else "-"
            scores = [format_score(mean(row[key] for row in rows)) for key in SCORES.values()]
            lines.append(["mirrored (first seed)", *scores, format_score(mirrored), gain])
    header = ["", *SCORES, "Dice, lowest to highest seed", "gain in Dice per seed: mean (lowest to highest)"]
    return markdown(header, [cells for cells in lines if cells is not None]) + (
        "\n\nGains of the rows of Table 2 are over the row above, the others over ours. Only gains whose range "
        "excludes 0 differ from chance, and only for these heads."
    )


def ensembles(records: Sequence[Record]) -> str:
    """Formats one line per system."""
    lines = []
    for record in records:
        rows = rows_of([record])
        lines.append(
            [
                record["system"],
                ", ".join(record["members"]),
                str(record["networks"]),
                f"{record['combine']}, {record['threshold']:.2f}",
                *(format_score(mean(row[key] for row in rows)) for key in SCORES.values()),
                f"{np.median(record['seconds']):.2f}",
            ]
        )
    lines.sort(key=lambda line: line[4], reverse=True)
    systems = {record["system"] for record in records}
    deviations = {spec.name: spec.deviations for spec in ENSEMBLES if spec.deviations and spec.name in systems}
    notes = "; ".join(f"{name}: {text}" for name, text in deviations.items())
    table = markdown(["system", "members", "networks", "combined by, threshold", *SCORES, "s a case"], lines)
    return f"{table}\n\n{notes}." if notes else table


def models(names: Sequence[str]) -> str:
    """Formats the description and source of each model."""
    specs = [MODELS[name] for name in names]
    return markdown(["network", "description", "source"], [[m.name, m.description, m.source] for m in specs])


def ranking_scores(team: str, record: Record) -> list[Score]:
    """Converts a record to scores for the challenge's ranking: its four scores in its two regions."""
    return [
        Score(
            team=team, phase="validation", region=row["region"], case=f"{row['set']} {row['case']}",
            recall=row["official_recall"], precision=row["official_precision"], dice=row["official_dice"],
            avd=row["official_avd_capped"],
        )
        for row in record["rows"]
        if row["region"] != "brain"
    ]  # fmt: skip


def grouped(runs: Iterable[Record]) -> dict[str, list[Record]]:
    """Groups trainings at equal steps by model, in the order of the zoo."""
    by_name: dict[str, list[Record]] = {name: [] for name in MODELS}
    for record in runs:
        if record["equal"] == "steps":
            by_name[record["model"]].append(record)
    return {name: records for name, records in by_name.items() if records}


def dice_per_seed(records: Iterable[Record]) -> dict[int, float]:
    """Computes the mean Dice over cases in the whole box, by seed."""
    means = {int(r["seed"]): mean(row["dice"] for row in rows_of([r])) for r in records}
    return {seed: value for seed, value in means.items() if value is not None}


def format_range(values: Sequence[float | None]) -> str:
    """Formats the lowest and highest value; a single value has no range."""
    kept = [v for v in values if v is not None]
    return f"{min(kept):.3f} to {max(kept):.3f}" if len(kept) > 1 else "one seed"
