"""Tables, rank plots and the JSON behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pvs_model.benchmark.plan import is_ours
from pvs_model.benchmark.run import write_json
from pvs_model.benchmark.score import mean
from pvs_model.evaluation.ranking import Score, rank
from pvs_model.evaluation.stability import stability
from pvs_model.evaluation.tables import markdown
from pvs_model.nets.registry import ENTRIES, ONLY_NAMED, RECIPES
from pvs_model.reports.ranking_plot import plot_stability

if TYPE_CHECKING:
    from pvs_model.benchmark.run import Outcome

Record = dict[str, Any]

#: Scores of the tables, as headings and as keys of ``score.scores``.
SCORES = {"Dice": "dice", "IoU": "iou", "recall": "recall", "precision": "precision", "F1": "f1", "AVD": "avd"}
#: Rows of Table 2 of the cross-modal paper, and what each adds to the one before.
TABLE_2 = (
    ("backbone", "backbone"),
    ("text", "+ text"),
    ("graph", "+ graph interaction"),
    ("attention", "+ cross-attention"),
    ("", "+ dynamic fusion: ours"),
)
#: Ours with one thing changed.
CHANGES = (
    ("constant", "one prompt for all, so no regions"),
    ("whole", "varied prompts, none for a region"),
    ("printed", "equation (3) as printed (V_T)"),
    ("level2", "modules at a quarter of the resolution"),
    ("coverage20", "labels from a coverage of 0.2"),
    ("coverage60", "labels from a coverage of 0.6"),
)


def write_report(output: Path, outcome: Outcome) -> list[Path]:
    """Write ``benchmark.json``, ``benchmark.md`` and a rank plot per kind of scan. Returns their paths."""
    paths = [output / "benchmark.json", output / "benchmark.md"]
    write_json(paths[0], asdict(outcome))
    parts = [f"Budget: {', '.join(f'{k} {v}' for k, v in outcome.budget.items())}; device: {outcome.device}."]
    for kind, title in (("3d", "Slices below 2.5 mm"), ("2d", "Slices of 2.5 mm and more")):
        runs = [r for r in outcome.runs if r["kind"] == kind and r["rows"]]
        if not runs:
            continue
        parts += [f"## {title}", "### Networks", networks(runs, outcome), "### By set and region: Dice", by_set(runs)]
        if any(r["entry"].startswith("backbone") for r in runs):
            parts += ["### Ablation", ablation(runs, kind)]
        joined = [e for e in outcome.ensembles if e["kind"] == kind and e["rows"]]
        if joined:
            parts += ["### Ensembles", ensembles(joined)]
        found = [s for r in runs if r["equal"] == "steps" and r["seed"] == 0 for s in ranking_scores(r["entry"], r)]
        found += [s for e in joined if "," not in e["system"] for s in ranking_scores(f"{e['system']} (ensemble)", e)]
        if len({s.team for s in found}) > 1:
            path = output / f"ranks_{kind}.png"
            plot_stability(stability(found), path)
            parts += ["### Ranks, as in the challenge", rank(found).text()]
            paths.append(path)
    parts += ["## What each entry is", entries([name for name in ENTRIES if name in outcome.costs])]
    parts += ["## Named in the papers, not built", markdown(["system", "why"], [list(x) for x in ONLY_NAMED.items()])]
    paths[1].write_text("\n\n".join(parts) + "\n")
    return paths


def rows_of(records: Iterable[Record], region: str | None = "brain", name: str | None = None) -> list[Record]:
    """Rows of some records: of one region or all, of one set or all."""
    return [
        row
        for record in records
        for row in record["rows"]
        if (region is None or row["region"] == region) and (name is None or row["set"] == name)
    ]


def networks(runs: Sequence[Record], outcome: Outcome) -> str:
    """One line per network: scores in the whole box at equal steps, Dice at equal seconds, and what it costs."""
    equal = {r["entry"]: r for r in runs if r["equal"] == "seconds"}
    lines = []
    for name, records in grouped(runs).items():
        rows, cost = rows_of(records), outcome.costs[name]
        dice = [mean(row["dice"] for row in rows_of([r])) for r in records]
        other = equal.get(name)
        same = "as steps" if is_ours(ENTRIES[name]) else "-"
        if other is not None:
            same = f"{told(mean(row['dice'] for row in rows_of([other])))} ({other['steps']})"
        lines.append(
            [
                name,
                *(told(mean(row[key] for row in rows)) for key in SCORES.values()),
                spread(dice),
                same,
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
    """Dice of each set, and of the two regions and their cluster F1 over all sets."""
    sets = list(dict.fromkeys(row["set"] for row in rows_of(runs)))
    thickness = {name: max(row["thickness_mm"] for row in rows_of(runs, name=name)) for name in sets}
    lines = []
    for name, records in grouped(runs).items():
        cells = [told(mean(row["dice"] for row in rows_of(records, name=s))) for s in sets]
        for region in ("CSO", "BG"):
            rows = rows_of(records, region)
            cells += [told(mean(row[key] for row in rows)) for key in ("dice", "f1", "avd")]
        lines.append([name, *cells])
    regions = [f"{region} {score}" for region in ("CSO", "BG") for score in ("Dice", "F1", "AVD")]
    return markdown(["network", *(f"{s} ({thickness[s]:g} mm)" for s in sets), *regions], lines)


def ablation(runs: Sequence[Record], kind: str) -> str:
    """Table 2 of the cross-modal paper, then what else was changed: Dice and F1, their spread over seeds, and gains."""
    by_name = grouped(runs)

    def line(stem: str, label: str, before: str | None) -> list[str] | None:
        name = f"{stem}-{kind}" if stem else kind
        if name not in by_name:
            return None
        own = per_seed(by_name[name], "dice")
        gain = "-"
        if before in by_name:
            paired = per_seed(by_name[before], "dice")
            gains = [own[s] - paired[s] for s in own if s in paired]
            gain = f"{np.mean(gains):+.3f} ({min(gains):+.3f} to {max(gains):+.3f})" if gains else "-"
        rows = rows_of(by_name[name])
        scores = [told(mean(row[key] for row in rows)) for key in SCORES.values()]
        return [label, *scores, spread(list(own.values())), gain]

    lines, before = [], None
    for stem, label in TABLE_2:
        lines.append(line(stem, label, before))
        before = f"{stem}-{kind}"
    lines += [line(stem, label, kind) for stem, label in CHANGES]
    whole = by_name.get(kind, [])
    for record in whole:
        if "mirrored" in record:
            plain, mirrored = (mean(row["dice"] for row in rows_of([r])) for r in (record, record["mirrored"]))
            rows = rows_of([record["mirrored"]])
            gain = f"{mirrored - plain:+.3f}" if mirrored is not None and plain is not None else "-"
            scores = [told(mean(row[key] for row in rows)) for key in SCORES.values()]
            lines.append(["mirrored (first seed)", *scores, told(mirrored), gain])
    header = ["", *SCORES, "Dice, lowest to highest seed", "gain in Dice per seed: mean (lowest to highest)"]
    return markdown(header, [found for found in lines if found is not None]) + (
        "\n\nRows of Table 2 gain over the row above, the others over ours. A gain is told from chance only where both "
        "ends have one sign, and then only for these heads."
    )


def ensembles(joined: Sequence[Record]) -> str:
    """One line per system."""
    lines = []
    for record in joined:
        rows = rows_of([record])
        lines.append(
            [
                record["system"],
                ", ".join(record["members"]),
                str(record["networks"]),
                f"{record['combine']}, {record['threshold']:.2f}",
                *(told(mean(row[key] for row in rows)) for key in SCORES.values()),
                f"{np.median(record['seconds']):.2f}",
            ]
        )
    lines.sort(key=lambda line: line[4], reverse=True)
    there = {record["system"] for record in joined}
    says = {recipe.name: recipe.says for recipe in RECIPES if recipe.says and recipe.name in there}
    notes = "; ".join(f"{name}: {text}" for name, text in says.items())
    table = markdown(["system", "of", "networks", "joined by, threshold", *SCORES, "s a case"], lines)
    return f"{table}\n\n{notes}." if notes else table


def entries(names: Sequence[str]) -> str:
    """What each entry is, and which paper it is from."""
    found = [ENTRIES[name] for name in names]
    return markdown(["network", "what it is", "from"], [[e.name, e.of, e.source] for e in found])


def ranking_scores(team: str, record: Record) -> list[Score]:
    """A record as the challenge's ranking takes it: its own four scores, in its two regions."""
    return [
        Score(
            team=team, phase="validation", region=row["region"], case=f"{row['set']} {row['case']}",
            recall=row["official"]["recall"], precision=row["official"]["precision"], dice=row["official"]["dice"],
            avd=row["official"]["avd_capped"],
        )
        for row in record["rows"]
        if row["region"] != "brain"
    ]  # fmt: skip


def grouped(runs: Iterable[Record]) -> dict[str, list[Record]]:
    """Trainings at equal steps by entry, in the registry's order."""
    out: dict[str, list[Record]] = {name: [] for name in ENTRIES}
    for record in runs:
        if record["equal"] == "steps":
            out[record["entry"]].append(record)
    return {name: records for name, records in out.items() if records}


def per_seed(records: Iterable[Record], key: str) -> dict[int, float]:
    """Mean over cases of a score in the whole box, by seed."""
    found = {int(r["seed"]): mean(row[key] for row in rows_of([r])) for r in records}
    return {seed: value for seed, value in found.items() if value is not None}


def spread(values: Sequence[float | None]) -> str:
    """Lowest to highest; one value alone has no spread."""
    kept = [v for v in values if v is not None]
    return f"{min(kept):.3f} to {max(kept):.3f}" if len(kept) > 1 else "one seed"


def told(value: float | None) -> str:
    """A number for a table."""
    return "-" if value is None else f"{value:.3f}"
