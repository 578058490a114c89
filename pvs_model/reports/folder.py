"""A folder of reports: JSON and HTML of each case, and tables and an index over all of them.

``cases/<case>.json`` and ``.html`` are written when a case ends; ``burden.csv``, ``pvs.csv`` and ``index.html`` from
all cases in the folder, so that an interrupted and resumed run ends with the same tables as an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pvs_model import files
from pvs_model.anatomy.regions import Anatomy
from pvs_model.burden.records import PVS_COLUMNS, REGION_COLUMNS
from pvs_model.burden.regions import REGIONS, burden_of, regions_of
from pvs_model.burden.subregions import CSO, white_matter_parts
from pvs_model.errors import PVSError
from pvs_model.evaluation.tables import csv_text
from pvs_model.reports.case_report import CaseView, write_case_report
from pvs_model.reports.cohort_index import summary_of, write_index
from pvs_model.reports.regions import OTHER_WM
from pvs_model.types import FloatArray, Grid, Mask


class ReportFolder:
    """The reports of a run, in a folder of their own, never among the masks.

    Args:
        folder: Created if it does not exist.
        tables: Whether ``finish`` writes anything: jobs of single cases leave the tables to a last one.

    Raises:
        PVSError: the folder cannot be created.
    """

    def __init__(self, folder: Path, tables: bool = True) -> None:
        self.folder = folder
        self.tables = tables
        try:
            (folder / "cases").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PVSError(f"{folder}: cannot create the folder for reports: {error.strerror}") from error

    def add(self, view: CaseView) -> None:
        """Writes the HTML and the JSON of a successful case."""
        page = self._place(view.name, ".html")
        write_case_report(page, view)
        burden = None if view.burden is None else view.burden.as_json()
        self._write_case(view.name, {"metadata": dict(view.metadata), "burden": burden, "problem": None})

    def fail(self, case: str, problem: str) -> None:
        """Records the problem of a failed case."""
        self._place(case, ".html").unlink(missing_ok=True)
        self._write_case(case, {"metadata": None, "burden": None, "problem": problem})

    def has(self, case: str) -> bool:
        """Whether a successful case is reported."""
        try:
            return json.loads(self._place(case, ".json").read_text(encoding="utf-8")).get("problem") is None
        except (OSError, ValueError, AttributeError):
            return False

    def metadata(self, case: str) -> dict[str, Any]:
        """Returns how the mask of a case was made; nothing if it has failed or has no report."""
        try:
            return dict(json.loads(self._place(case, ".json").read_text(encoding="utf-8"))["metadata"] or {})
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def finish(self, names: Iterable[str] = ()) -> None:
        """Writes the tables and the index of every case in the folder.

        Args:
            names: Cases known to be there: another machine's files may be readable before they are listed.

        Raises:
            PVSError: the numbers of a case cannot be read, or a table cannot be written.
        """
        if not self.tables:
            return
        expected = {self._place(name, ".json") for name in names}
        # Another run may write the same tables: the last one to write has listed all cases again afterwards.
        written: dict[Path, tuple[int, ...]] | None = None
        while written != (listed := self._listed(expected)):
            self._write_tables(sorted(listed))
            written = listed

    def _listed(self, expected: set[Path]) -> dict[Path, tuple[int, ...]]:
        """Returns the JSON files of cases, each with attributes that change when it is replaced."""
        cases = self.folder / "cases"
        # A network file system may list a folder from its cache until something is created in it.
        with tempfile.TemporaryDirectory(prefix=files.PART, dir=cases):
            # Unlike ``rglob``, a walk goes on where a folder disappears meanwhile.
            present = {Path(place) / name for place, _, names in os.walk(cases) for name in names}
            paths = {path for path in present if path.suffix == ".json" and not _hidden(path, self.folder)}
        listed: dict[Path, tuple[int, ...]] = {}
        for path in paths | expected:
            try:
                status = path.stat()
            except OSError as error:
                raise PVSError(f"{path}: expected the JSON of a case, got: {error.strerror}") from error
            listed[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return listed

    def _write_tables(self, paths: Iterable[Path]) -> None:
        cases = []
        for path in paths:
            try:
                cases.append(json.loads(path.read_text(encoding="utf-8")))
                summary_of(cases[-1])
            except (OSError, ValueError, PVSError) as error:
                raise PVSError(f"{path}: expected the JSON of a case, got: {error}") from error
        measured = [case for case in cases if case["burden"] is not None]
        for name, columns, part in (("burden", REGION_COLUMNS, "regions"), ("pvs", PVS_COLUMNS, "pvs")):
            empty = dict.fromkeys(columns)  # columns that an older version did not write
            rows = ({"case": case["case"], **empty, **row} for case in measured for row in case["burden"][part])
            files.write_text(self.folder / f"{name}.csv", csv_text(["case", *columns], rows))
        write_index(self.folder / "index.html", (summary_of(case) for case in cases))

    def _place(self, case: str, ending: str) -> Path:
        place = self.folder / "cases" / f"{case}{ending}"
        if not place.resolve().is_relative_to((self.folder / "cases").resolve()):
            raise PVSError(f"{case}: expected the name of a case, got one outside the folder of reports")
        return place

    def _write_case(self, case: str, content: Mapping[str, Any]) -> None:
        page = self._place(case, ".html")
        shown = page.relative_to(self.folder).as_posix() if page.is_file() else None
        path = self._place(case, ".json")
        entry = {"case": case, "page": shown, **content}
        files.write_text(path, json.dumps(entry, indent=1, allow_nan=False, default=str) + "\n")


def _hidden(path: Path, root: Path) -> bool:
    """Whether a path below a folder is in a hidden one, where files are written before they are renamed."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def view_of(
    name: str,
    images: Mapping[str, FloatArray],
    mask: Mask,
    grid: Grid,
    anatomy: Anatomy | None,
    metadata: Mapping[str, Any],
    pvs_fraction: FloatArray | None = None,
) -> CaseView:
    """Measures a case and returns the data of its report. All arrays (x, y, z) lie on the grid, in RAS+ order."""
    regions, parts = {}, None
    if anatomy is not None:
        parts = white_matter_parts(anatomy, grid.affine)
        where = regions_of(mask, grid.affine, anatomy)  # those in which the burden counts PVS
        regions = {shown: where == value for value, shown in enumerate(REGIONS, 1)}
        cso = parts.masks(regions["WM"]).get(CSO)
        if cso is not None:
            regions = {CSO: cso, OTHER_WM: regions.pop("WM") & ~cso, **regions}
    return CaseView(
        name=name,
        images={sequence: image for sequence, image in images.items() if image.any()},
        mask=mask != 0,
        regions=regions,
        spacing_mm=grid.spacing_mm,
        burden=burden_of(mask, grid.affine, anatomy, pvs_fraction, parts),
        metadata=metadata,
        affine=grid.affine,
    )
