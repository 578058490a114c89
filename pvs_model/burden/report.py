"""A folder of reports: what was measured in each case, and tables and an index over all of them.

``cases/<case>.json`` and ``.html`` per case, written when it ends; ``burden.csv``, ``pvs.csv`` and ``index.html``
from all that lie there, so that a run that is stopped and started again ends with the same tables as one in one go.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pvs_model import files
from pvs_model.anatomy.regions import Anatomy, values_of
from pvs_model.burden.counts import region_map
from pvs_model.burden.measure import measure
from pvs_model.burden.page import CaseView, entry_of, write_case_page, write_index
from pvs_model.burden.records import ALL, Burden
from pvs_model.burden.table import PVS_COLUMNS, REGION_COLUMNS, plain
from pvs_model.errors import PVSError
from pvs_model.types import Affine, FloatArray, Grid, Mask

log = logging.getLogger(__name__)

#: Regions of a report, by the anatomy's names.
REGIONS = {"CSO": "CSO", "BG": "BG", "hippocampus": "HIP", "midbrain": "MID"}
#: A voxel of a PVS that lies in no region belongs to the nearest one this close, mm: PVS of the white matter reach into
#: the cortex, and one that is as bright as fluid may be taken for fluid.
NEAR_MM = 2.0


def burden_of(mask: Mask, affine: Affine, anatomy: Anatomy | None, fluid: FloatArray | None = None) -> Burden:
    """Measure a mask (x, y, z) in the regions of its anatomy, all on one grid; without one, in the whole alone.

    ``fluid`` is the map of fluid fractions (x, y, z), where there is one.
    """
    if anatomy is None:
        return measure(mask, {}, affine, fluid=fluid)
    sides = np.zeros(mask.shape, np.uint8)
    for value, side in ((1, "L"), (2, "R")):
        sides[np.isin(anatomy.labels, values_of(f"{side}-intracranial"))] = value
    where = regions_of(mask, affine, anatomy)
    regions = {name: where == value for value, name in enumerate(REGIONS, 1)}
    regions[ALL] = anatomy.mask("parenchyma") | (where > 0)
    return measure(mask, regions, affine, anatomy.mask("intracranial"), sides, fluid)


def regions_of(mask: Mask, affine: Affine, anatomy: Anatomy) -> Mask:
    """A map of ``REGIONS``, 1, 2, ... in their order, as the PVS of a mask are counted in them."""
    found = region_map({name: anatomy.mask(label) for name, label in REGIONS.items()}, mask.shape)
    return nearest_region(mask, found, np.linalg.norm(affine[:3, :3], axis=0))


def nearest_region(mask: Mask, where: Mask, spacing_mm: FloatArray) -> Mask:
    """A map of regions in which the voxels of a mask that lie in none are given to the nearest within ``NEAR_MM``.

    Args:
        mask: uint8 (x, y, z), 0 and 1.
        where: uint8 (x, y, z), 0 outside all regions.
        spacing_mm: of the voxels.
    """
    out = where.copy()
    reach = [range(-int(NEAR_MM / s), int(NEAR_MM / s) + 1) for s in spacing_mm]
    steps = np.stack(np.meshgrid(*reach, indexing="ij"), -1).reshape(-1, 3)
    far = np.linalg.norm(steps * spacing_mm, axis=1)
    order = np.argsort(far, kind="stable")
    left = np.argwhere((mask != 0) & (where == 0))
    for step in steps[order[far[order] <= NEAR_MM]]:
        there = left + step
        inside = ((there >= 0) & (there < where.shape)).all(1)
        values = np.zeros(len(left), where.dtype)
        values[inside] = where[tuple(there[inside].T)]
        out[tuple(left[values > 0].T)] = values[values > 0]
        left = left[values == 0]
    return out


class Report:
    """The reports of a run, in a folder of their own, never among the masks.

    Args:
        folder: made if need be.

    Raises:
        PVSError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            (folder / "cases").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PVSError(
                f"{folder}: expected a folder for reports that can be made, found: {error.strerror}"
            ) from error

    def add(self, view: CaseView) -> None:
        """Write the page and the JSON of a case that went well."""
        page = self._place(view.name, ".html")
        write_case_page(page, view)
        burden = None if view.burden is None else view.burden.as_json()
        self._write_case(view.name, {"facts": dict(view.facts), "burden": burden, "problem": None})

    def fail(self, case: str, problem: str) -> None:
        """Keep the sentence of a case that failed."""
        self._place(case, ".html").unlink(missing_ok=True)
        self._write_case(case, {"facts": None, "burden": None, "problem": problem})

    def has(self, case: str) -> bool:
        """Whether a case that went well is reported."""
        try:
            return json.loads(self._place(case, ".json").read_text(encoding="utf-8")).get("problem") is None
        except (OSError, ValueError, AttributeError):
            return False

    def finish(self, names: Iterable[str] = ()) -> None:
        """Write the tables and the index of every case in the folder.

        Args:
            names: of cases that are surely there: another machine's files may be readable before they are listed.

        Raises:
            PVSError: the numbers of a case cannot be read, or a table cannot be written.
        """
        expected = {self._place(name, ".json") for name in names}
        # Another run may write the same tables. Whoever writes last has seen all cases: it looks again afterwards.
        written: dict[Path, tuple[int, ...]] | None = None
        while written != (listed := self._listed(expected)):
            self._write_tables(sorted(listed))
            written = listed

    def _listed(self, expected: set[Path]) -> dict[Path, tuple[int, ...]]:
        """The JSON files of cases, each with what changes when it is replaced."""
        cases = self.folder / "cases"
        # A network file system may list a folder from memory until something is made in it.
        with tempfile.TemporaryDirectory(prefix=files.PART, dir=cases):
            # Unlike ``rglob``, a walk goes on where a folder disappears meanwhile.
            found = {Path(place) / name for place, _, names in os.walk(cases) for name in names}
            paths = {path for path in found if path.suffix == ".json" and not _hidden(path, self.folder)}
        listed: dict[Path, tuple[int, ...]] = {}
        for path in paths | expected:
            try:
                status = path.stat()
            except OSError as error:
                raise PVSError(f"{path}: expected the JSON of a case, found: {error.strerror}") from error
            listed[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return listed

    def _write_tables(self, paths: Iterable[Path]) -> None:
        cases = []
        for path in paths:
            try:
                cases.append(json.loads(path.read_text(encoding="utf-8")))
                entry_of(cases[-1])
            except (OSError, ValueError, PVSError) as error:
                raise PVSError(f"{path}: expected the JSON of a case, found: {error}") from error
        measured = [case for case in cases if case["burden"] is not None]
        for name, columns, part in (("burden", REGION_COLUMNS, "regions"), ("pvs", PVS_COLUMNS, "pvs")):
            files.write_text(self.folder / f"{name}.csv", _csv(columns, measured, part))
        write_index(self.folder / "index.html", (entry_of(case) for case in cases))

    def _place(self, case: str, ending: str) -> Path:
        place = self.folder / "cases" / f"{case}{ending}"
        if not place.resolve().is_relative_to((self.folder / "cases").resolve()):
            raise PVSError(f"{case}: expected the name of a case, found one that leaves the folder of reports")
        return place

    def _write_case(self, case: str, content: Mapping[str, Any]) -> None:
        page = self._place(case, ".html")
        shown = page.relative_to(self.folder).as_posix() if page.is_file() else None
        path = self._place(case, ".json")
        entry = {"case": case, "page": shown, **content}
        files.write_text(path, json.dumps(entry, indent=1, allow_nan=False, default=str) + "\n")


def _hidden(path: Path, root: Path) -> bool:
    """Whether a path below a folder lies in a hidden one, where files are filled before they are put in place."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def view_of(
    name: str,
    images: Mapping[str, FloatArray],
    mask: Mask,
    grid: Grid,
    anatomy: Anatomy | None,
    facts: Mapping[str, Any],
    fluid: FloatArray | None = None,
) -> CaseView:
    """What a report shows of a case, measured. All arrays (x, y, z) lie on the grid, in RAS+ order."""
    return CaseView(
        name=name,
        images={sequence: image for sequence, image in images.items() if image.any()},
        mask=mask != 0,
        regions={} if anatomy is None else {shown: anatomy.mask(label) for shown, label in REGIONS.items()},
        spacing_mm=grid.spacing_mm,
        burden=burden_of(mask, grid.affine, anatomy, fluid),
        facts=facts,
        affine=grid.affine,
    )


def _csv(columns: tuple[str, ...], cases: list[dict[str, Any]], part: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *columns])
    for case in cases:
        for row in case["burden"][part]:
            writer.writerow([plain(case["case"]), *(plain(row[column]) for column in columns)])
    return text.getvalue()
