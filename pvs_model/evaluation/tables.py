"""Tables: as Markdown that also reads well in a terminal, as CSV, and from CSV."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pvs_model.errors import PVSError

#: What a cell without a value holds, in small letters.
NO_VALUE = frozenset({"", "-", "na", "n/a", "nan", "none", "null"})


#: 13,1 and 1.234,5.
_DECIMAL_COMMA = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+(?:[eE][+-]?\d+)?")


class TableError(PVSError):
    """A table cannot be read."""


@dataclass(frozen=True)
class Line:
    """A line of a table that was read: "FILE, line 3", and its cells by the column's name in small letters.

    ``decimal_comma``: whether 13,1 is a number, as spreadsheets of many countries write it.
    """

    where: str
    cells: Mapping[str, Any]
    decimal_comma: bool = False

    def name(self, column: str, what: str) -> str:
        """The text of a cell.

        Raises:
            TableError: it is empty.
        """
        value = self.cells.get(column)
        text = "" if value is None else str(value).strip()
        if not text:
            raise TableError(f"{self.where}: expected a {what} in column {column}, found none")
        return text

    def number(self, column: str) -> float | None:
        """The number in a cell; None for an empty one.

        Raises:
            TableError: something else, or infinity.
        """
        value = self.cells.get(column)
        if value is None or (isinstance(value, str) and value.strip().lower() in NO_VALUE):
            return None
        if self.decimal_comma and isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value.strip()):
            value = value.strip().replace(".", "").replace(",", ".")
        try:
            number = math.inf if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.inf
        if math.isinf(number):
            raise TableError(f"{self.where}: expected a number in column {column}, found {value}")
        return None if math.isnan(number) else number


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned, without a line end.

    Args:
        header: names of the columns; the first column is set to the left, the others to the right.
        lines: cells as they are to be shown, as many per line as there are names.
    """
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (header, *lines)]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(header))]
    shown = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in cells
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (shown[0], rule, *shown[1:]))


def csv_text(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """The text of a CSV file; None is an empty cell, floats keep every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or as spreadsheets write it: UTF-16, or Windows' own encoding.

    Raises:
        TableError: it is not there, or no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: expected a table, found {error.strerror or error}") from error
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig",) if b"\0" in content else ("utf-8-sig", "cp1252"):
        with suppress(UnicodeDecodeError):
            return content.decode(encoding)
    raise TableError(f"{path}: expected text in UTF-8, found other bytes")


def _trimmed(cells: list[str], least: int) -> list[str]:
    """Cells without the empty ones at the end, as long as there are more than ``least``."""
    while len(cells) > least and not cells[-1]:
        cells = cells[:-1]
    return cells


def read_csv(path: Path) -> list[Line]:
    """The lines of a CSV file below its first, which names the columns. Commas, semicolons or tabs between cells.

    Empty cells at the ends of lines, and a first line that says ``sep=;``, are left out: spreadsheets write them.

    Raises:
        TableError: no such file, no lines, a column named twice, or a line with more or fewer cells than the first.
    """
    text = re.sub(r"\Asep=.\r?\n", "", read_text(path))
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    # strict: an open quote is an error, not one long cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    lines = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            where = f"{path}, line {reader.line_num}"
            if not any(cells):
                continue
            if not header:
                header = [cell.lower() for cell in _trimmed(cells, 0)]
                if again := sorted({name for name in header if name and header.count(name) > 1}):
                    raise TableError(f"{path}: expected each column once, found {', '.join(again)} twice")
                continue
            cells = _trimmed(cells, len(header))
            if len(cells) != len(header):
                raise TableError(f"{where}: expected {len(header)} cells as in the first line, found {len(cells)}")
            lines.append(Line(where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num}: expected a CSV table, found {error}") from error
    # Where numbers have points, a comma parts thousands, which is no number here.
    points = any(re.fullmatch(r"[+-]?\d+\.\d+", cell) for line in lines for cell in line.cells.values())
    if delimiter != "," and not points:
        lines = [replace(line, decimal_comma=True) for line in lines]
    if not lines:
        raise TableError(f"{path}: expected a table, found {'its first line only' if header else 'nothing in it'}")
    return lines
