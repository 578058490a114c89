"""Grand-challenge's evaluation: ``predictions.json`` and a folder of truth in, ``metrics.json`` out.

The site runs an algorithm once per case (a job) and lays what came out below ``/input/<job's pk>/output/``. Which job
is which case follows from the names of its input images, since jobs come in no order.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pvs_model.errors import LayoutError, PVSError
from pvs_model.evaluation.evaluate import score_pairs
from pvs_model.evaluation.pairs import Pair, find_truths
from pvs_model.evaluation.records import Report
from pvs_model.evaluation.report import as_json, text
from pvs_model.files import write_text
from pvs_model.layouts.base import entries, listed
from pvs_model.layouts.grand_challenge import Sockets, read_sockets
from pvs_model.layouts.names import image_stem, is_image

log = logging.getLogger(__name__)

#: What the site calls a job that has gone well.
SUCCEEDED = "Succeeded"


def evaluate_submission(source: Path, output: Path, truth: Path, sockets: Path | None = None) -> int:
    """What ``process.py`` does with ``predictions.json``: score, write ``metrics.json``, tell in words what went wrong.

    Returns:
        0 when every case has its scores, be they the worst; 1 when the truth or the list of jobs is at fault; 2 when
        nothing could be scored.
    """
    try:
        report = evaluate_jobs(source, output, truth, read_sockets(sockets) if sockets else None)
    except PVSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(report))
    for line in (*report.warnings, *(line for line in report.problems if line not in report.faults)):
        print(f"warning: {line}", file=sys.stderr)
    for line in report.faults:
        print(f"error: {line}", file=sys.stderr)
    return 1 if report.faults else 0


def evaluate_jobs(source: Path, output: Path, truth: Path, sockets: Sockets | None = None) -> Report:
    """Score every job of a submission and write ``metrics.json``.

    A job that failed, left no mask, or left one that does not fit the truth gets the worst scores, as does a case
    without a job. Jobs whose images bear the name of no case, or of one that another job has, are told as problems.

    Args:
        source: folder with ``predictions.json`` and the jobs' outputs.
        output: folder for ``metrics.json``.
        truth: folder of true masks, with region masks beside them, in any form that ``evaluate`` takes.
        sockets: which output socket holds the mask, where a job has several.

    Raises:
        PVSError: no job or no truth can be read, no job belongs to a case, or the result cannot be written.
    """
    truth = truth if truth.is_dir() else next((p for p in (source / "ground_truth",) if p.is_dir()), truth)
    truths = find_truths(truth)
    cases = {pair.case: pair for pair in truths}
    if len(cases) < len(truths):
        raise LayoutError(f"{truth}: expected one truth per name, since jobs do not say their site; found some twice")
    jobs = _jobs(source / "predictions.json")
    found: dict[str, Pair] = {}
    keys: dict[str, str] = {}
    problems = []
    for number, job in enumerate(jobs, 1):
        try:
            case = _case_of(job, list(cases))
            if case in found:
                raise LayoutError(f"expected one job for {case}, found {keys[case]}, too")
        except LayoutError as error:
            problems.append(f"{source / 'predictions.json'}: job {job.get('pk', number)!s:.60}: {error}")
            continue
        keys[case] = str(job["pk"])
        found[case] = _with_mask(cases[case], job, source, (sockets or Sockets()).output)
    if not found:
        raise LayoutError(
            f"{source / 'predictions.json'}: expected jobs whose images are named after the cases "
            f"{listed(sorted(cases))}, found none among {len(jobs)}" + (f" ({problems[0]})" if problems else "")
        )
    report = score_pairs([found.get(name, pair) for name, pair in sorted(cases.items())])
    report = replace(
        report, regions_from="masks beside the truth", names=(str(truth), str(source)),
        problems=(*report.problems, *problems), faults=(*report.faults, *problems),
    )  # fmt: skip
    _write(output / "metrics.json", _metrics(report, keys))
    return report


def _metrics(report: Report, keys: Mapping[str, str]) -> dict[str, Any]:
    """What a leaderboard reads: ``aggregates.<region>.<set>.<score>.mean`` and so on, and each case's scores."""
    content = as_json(report)
    aggregates: dict[str, Any] = {}
    for s in content.pop("aggregates"):
        if s["by"] == "all":
            numbers = {name: s[name] for name in ("mean", "sd", "median", "low", "high", "n", "without")}
            aggregates.setdefault(s["region"], {}).setdefault(s["score_set"], {})[s["score"]] = numbers
    results: dict[str, dict[str, Any]] = {}
    for row in content.pop("cases"):
        case = results.setdefault(
            row["case"], {"case": row["case"], "job": keys.get(row["case"]), "status": row["status"], "regions": {}}
        )
        case["regions"][row["region"]] = {
            name: row[name] for name in ("counts", "official", "detection", "volume", "voxels", "notes")
        }
    return {"aggregates": aggregates, "results": list(results.values()), **content}


def _jobs(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LayoutError(f"{path}: expected the list of jobs, found: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: expected JSON, found: {error}") from error
    if not isinstance(content, list) or not content or not all(isinstance(job, dict) for job in content):
        raise LayoutError(f"{path}: expected a list of jobs, found {content!r:.80}")
    return content


def _case_of(job: Mapping[str, Any], cases: list[str]) -> str:
    """The case whose name an input image bears, alone or followed by ``_T1w`` and the like.

    Raises:
        LayoutError: there is none, or the images bear several.
    """
    names = [name for value in _values(job, "inputs") if (name := _image_name(value)) is not None]
    stems = [image_stem(name) or name for name in names]
    found = set()
    for stem in stems:
        fitting = [case for case in cases if stem == case or stem.startswith((f"{case}_", f"{case}-", f"{case}."))]
        if fitting:
            found.add(max(fitting, key=len))
    if len(found) != 1 or not isinstance(job.get("pk"), str):
        raise LayoutError(
            f'expected a "pk" and images named after one case of the truth, found {listed(names) or "no image"}'
            + (f" of the cases {listed(sorted(found))}" if found else "")
        )
    return found.pop()


def _values(job: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    values = job.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _image_name(value: Mapping[str, Any]) -> str | None:
    image = value.get("image")
    name = image.get("name") if isinstance(image, dict) else None
    return name if isinstance(name, str) else None


def _with_mask(pair: Pair, job: Mapping[str, Any], source: Path, slug: str) -> Pair:
    """The case with the mask of its job; without one where the job has failed or left none."""
    if job.get("status", SUCCEEDED) != SUCCEEDED:
        log.warning("%s: its job %s ended as %s", pair.case, job["pk"], job["status"])
        return pair
    sockets = [
        socket
        for value in _values(job, "outputs")
        if isinstance(socket := value.get("socket", value.get("interface")), dict)
    ]
    images = [s for s in sockets if str(s.get("relative_path", "")).split("/")[0] == "images"]
    chosen = [s for s in images if s.get("slug") == slug] or images
    if len(chosen) != 1:
        told = listed(str(s.get("slug")) for s in images) or "none"
        return replace(pair, problem=f"job {job['pk']}: expected one image among its outputs, found {told}")
    # A job may speak of its own output only, whatever its paths or links say.
    own = source / Path(job["pk"]).name / "output"
    place = own / str(chosen[0]["relative_path"])
    if Path(job["pk"]).name != job["pk"] or not place.resolve().is_relative_to(own.resolve()):
        return replace(pair, problem=f"job {job['pk']}: expected a path inside the job's output, found {place}")
    files = [place] if place.is_file() else []
    if place.is_dir():
        files = [path for path in entries(place) if is_image(path) and path.resolve().is_relative_to(own.resolve())]
    if len(files) > 1:
        return replace(pair, problem=f"{place}: expected one mask, found {listed(files)}")
    return replace(pair, prediction=files[0] if files else None)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", LayoutError)
