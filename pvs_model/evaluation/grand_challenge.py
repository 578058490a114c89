"""Grand-challenge's evaluation: ``predictions.json`` and a folder of reference masks in, ``metrics.json`` out.

The site runs an algorithm once per case (a job) and stores its outputs below ``/input/<job's pk>/output/``. The case
of a job follows from the names of its input images, since jobs come in no order.
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
from pvs_model.evaluation.evaluate import score_cases
from pvs_model.evaluation.file_matching import CaseFiles, find_references
from pvs_model.evaluation.results import Evaluation
from pvs_model.evaluation.summary import as_json, text
from pvs_model.files import write_text
from pvs_model.layouts.base import entries, listed
from pvs_model.layouts.grand_challenge import Sockets, read_sockets
from pvs_model.layouts.names import image_stem, is_image

log = logging.getLogger(__name__)

#: The site's status of a successful job.
SUCCEEDED = "Succeeded"


def evaluate_submission(source: Path, output: Path, references: Path, sockets: Path | None = None) -> int:
    """Scores a submission as ``process.py`` does: writes ``metrics.json`` and reports problems on stderr.

    Returns:
        0 when every case has its scores, penalties included; 1 when there are errors in the references or the list of
        jobs; 2 when nothing could be scored.
    """
    try:
        report = evaluate_jobs(source, output, references, read_sockets(sockets) if sockets else None)
    except PVSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text(report))
    for line in (*report.warnings, *(line for line in report.problems if line not in report.data_errors)):
        print(f"warning: {line}", file=sys.stderr)
    for line in report.data_errors:
        print(f"error: {line}", file=sys.stderr)
    return 1 if report.data_errors else 0


def evaluate_jobs(source: Path, output: Path, references: Path, sockets: Sockets | None = None) -> Evaluation:
    """Scores every job of a submission and writes ``metrics.json``.

    A job that failed, left no mask, or left one on another grid gets penalty scores, as does a case without a job.
    Jobs whose images have the name of no case, or of one that another job has, are problems.

    Args:
        source: Folder with ``predictions.json`` and the jobs' outputs.
        output: Folder for ``metrics.json``.
        references: Folder of reference masks, with region masks beside them, in any form that ``evaluate`` takes.
        sockets: Output socket of the mask, where a job has several.

    Raises:
        PVSError: no job or no reference can be read, no job belongs to a case, or the result cannot be written.
    """
    if not references.is_dir() and (source / "ground_truth").is_dir():
        references = source / "ground_truth"
    files = find_references(references)
    cases = {case.case: case for case in files}
    if len(cases) < len(files):
        raise LayoutError(
            f"{references}: expected one reference mask per name, since jobs do not contain their site; got some twice"
        )
    jobs = _jobs(source / "predictions.json")
    matched: dict[str, CaseFiles] = {}
    keys: dict[str, str] = {}
    problems = []
    for number, job in enumerate(jobs, 1):
        try:
            case = _case_of(job, list(cases))
            if case in matched:
                raise LayoutError(f"expected one job for {case}, got {keys[case]}, too")
        except LayoutError as error:
            problems.append(f"{source / 'predictions.json'}: job {job.get('pk', number)!s:.60}: {error}")
            continue
        keys[case] = str(job["pk"])
        matched[case] = _with_mask(cases[case], job, source, (sockets or Sockets()).output)
    if not matched:
        raise LayoutError(
            f"{source / 'predictions.json'}: expected jobs whose images are named after the cases "
            f"{listed(sorted(cases))}, got none among {len(jobs)}" + (f" ({problems[0]})" if problems else "")
        )
    report = score_cases([matched.get(name, case) for name, case in sorted(cases.items())])
    report = replace(
        report, regions_from="masks beside the reference", names=(str(references), str(source)),
        problems=(*report.problems, *problems), data_errors=(*report.data_errors, *problems),
    )  # fmt: skip
    _write(output / "metrics.json", _metrics(report, keys))
    return report


def _metrics(report: Evaluation, keys: Mapping[str, str]) -> dict[str, Any]:
    """Returns the content for a leaderboard: ``aggregates.<region>.<set>.<score>.mean`` etc., and every case."""
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
        raise LayoutError(f"{path}: expected the list of jobs, got: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: expected JSON, got: {error}") from error
    if not isinstance(content, list) or not content or not all(isinstance(job, dict) for job in content):
        raise LayoutError(f"{path}: expected a list of jobs, got {content!r:.80}")
    return content


def _case_of(job: Mapping[str, Any], cases: list[str]) -> str:
    """Returns the case whose name an input image has, alone or followed by ``_T1w`` and the like.

    Raises:
        LayoutError: no case, or several.
    """
    names = [name for value in _values(job, "inputs") if (name := _image_name(value)) is not None]
    stems = [image_stem(name) or name for name in names]
    named = set()
    for stem in stems:
        fitting = [case for case in cases if stem == case or stem.startswith((f"{case}_", f"{case}-", f"{case}."))]
        if fitting:
            named.add(max(fitting, key=len))
    if len(named) != 1 or not isinstance(job.get("pk"), str):
        raise LayoutError(
            f'expected a "pk" and images named after one reference mask, got {listed(names) or "no image"}'
            + (f" of the cases {listed(sorted(named))}" if named else "")
        )
    return named.pop()


def _values(job: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    values = job.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _image_name(value: Mapping[str, Any]) -> str | None:
    image = value.get("image")
    name = image.get("name") if isinstance(image, dict) else None
    return name if isinstance(name, str) else None


def _with_mask(case: CaseFiles, job: Mapping[str, Any], source: Path, slug: str) -> CaseFiles:
    """Returns the case with the mask of its job; without one where the job failed or left none."""
    if job.get("status", SUCCEEDED) != SUCCEEDED:
        log.warning("%s: its job %s ended as %s", case.case, job["pk"], job["status"])
        return case
    sockets = [
        socket
        for value in _values(job, "outputs")
        if isinstance(socket := value.get("socket", value.get("interface")), dict)
    ]
    images = [s for s in sockets if str(s.get("relative_path", "")).split("/")[0] == "images"]
    chosen = [s for s in images if s.get("slug") == slug] or images
    if len(chosen) != 1:
        slugs = listed(str(s.get("slug")) for s in images) or "none"
        return replace(case, problem=f"job {job['pk']}: expected one image among its outputs, got {slugs}")
    # Paths and links must stay inside the job's own output.
    own = source / Path(job["pk"]).name / "output"
    place = own / str(chosen[0]["relative_path"])
    if Path(job["pk"]).name != job["pk"] or not place.resolve().is_relative_to(own.resolve()):
        return replace(case, problem=f"job {job['pk']}: expected a path inside the job's output, got {place}")
    files = [place] if place.is_file() else []
    if place.is_dir():
        files = [path for path in entries(place) if is_image(path) and path.resolve().is_relative_to(own.resolve())]
    if len(files) > 1:
        return replace(case, problem=f"{place}: expected one mask, got {listed(files)}")
    return replace(case, prediction=files[0] if files else None)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", LayoutError)
