"""Tables: read from CSV, written as CSV and as Markdown that also reads well in a terminal."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvs_model.errors import PVSError

if TYPE_CHECKING:
    import pandas as pd

#: What a cell without a value holds, in lower case.
NO_VALUE = frozenset({"", "-", "na", "n/a", "nan", "none", "null"})
#: Decimals of the numbers in CSV files; JSON, and the scores of cases that are ranked, keep every digit.
CSV_DECIMALS = 4

#: 13,1 and 1.234,5.
_DECIMAL_COMMA = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+(?:[eE][+-]?\d+)?")


class TableError(PVSError):
    """A table cannot be read."""


def read_csv(path: Path) -> pd.DataFrame:
    """Reads a CSV file with commas, semicolons or tabs between its cells.

    Empty cells at the ends of lines, and a first line ``sep=;``, as spreadsheets write them, are ignored.
    ``pandas.read_csv`` would fill up a line that was cut off; this raises an error.

    Args:
        path: File whose first line names the columns.

    Returns:
        Cells as text. Columns are named in lower case, rows as "FILE, line 3"; ``attrs["decimal_comma"]`` says whether
        13,1 is a number, as spreadsheets of many countries write it.

    Raises:
        TableError: no such file, no lines, a column named twice, or a line with more or fewer cells than the first.
    """
    import pandas as pd

    text = re.sub(r"\Asep=.\r?\n", "", read_text(path))
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows: dict[str, list[str]] = {}
    # strict: an open quote is an error, not one long cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows[f"{path}, line {reader.line_num}"] = [cell.strip() for cell in cells]
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num}: expected a CSV table, got {error}") from error
    if not rows:
        raise TableError(f"{path}: expected a table, got an empty file")
    header = [cell.lower() for cell in _trimmed(rows.pop(next(iter(rows))), 0)]
    if repeated := sorted({name for name in header if name and header.count(name) > 1}):
        raise TableError(f"{path}: expected each column once, got {', '.join(repeated)} twice")
    if not rows:
        raise TableError(f"{path}: expected a table, got its first line only")
    rows = {where: _trimmed(cells, len(header)) for where, cells in rows.items()}
    for where, cells in rows.items():
        if len(cells) != len(header):
            raise TableError(f"{where}: expected {len(header)} cells as in the first line, got {len(cells)}")
    table = pd.DataFrame.from_dict(rows, orient="index", columns=header, dtype=object)
    # Where numbers have points, a comma separates thousands, which is no number here.
    points = any(re.fullmatch(r"[+-]?\d+\.\d+", cell) for cells in rows.values() for cell in cells)
    table.attrs["decimal_comma"] = delimiter != "," and not points
    return table


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8, or as spreadsheets write it: UTF-16, or Windows' own encoding.

    Raises:
        TableError: the file is missing or holds no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: expected a table, got {error.strerror or error}") from error
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig",) if b"\0" in content else ("utf-8-sig", "cp1252"):
        with suppress(UnicodeDecodeError):
            return content.decode(encoding)
    raise TableError(f"{path}: expected text in UTF-8, got other bytes")


def names_in(table: pd.DataFrame, column: str, what: str) -> list[str]:
    """Returns the cells of a column as text.

    Raises:
        TableError: an empty cell.
    """
    names = ["" if cell is None or cell != cell else str(cell).strip() for cell in table[column]]
    if "" in names:
        raise TableError(f"{table.index[names.index('')]}: expected a {what} in column {column}, got an empty cell")
    return names


def numbers_in(table: pd.DataFrame, column: str) -> list[float | None]:
    """Returns the cells of a column as numbers, None for empty ones.

    Raises:
        TableError: a cell holds something else, or infinity.
    """
    return [
        _number(cell, f"{where}: expected a number in column {column}, got {cell}", table.attrs.get("decimal_comma"))
        for where, cell in table[column].items()
    ]


def _number(cell: Any, problem: str, decimal_comma: bool | None) -> float | None:
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in NO_VALUE):
        return None
    if decimal_comma and isinstance(cell, str) and _DECIMAL_COMMA.fullmatch(cell.strip()):
        cell = cell.strip().replace(".", "").replace(",", ".")
    try:
        number = math.inf if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise TableError(problem)
    return None if math.isnan(number) else number


def _trimmed(cells: list[str], least: int) -> list[str]:
    """Cells without the empty ones at the end, as long as there are more than ``least``."""
    while len(cells) > least and not cells[-1]:
        cells = cells[:-1]
    return cells


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]], decimals: int | None = CSV_DECIMALS) -> str:
    """Returns the text of a CSV file: None is an empty cell, numbers are rounded to ``decimals``; None for no rounding.

    A text that a spreadsheet would take for a formula gets a space in front.

    Example:
        >>> print(csv_text(["team", "dice"], [{"team": "=A", "dice": 2 / 3}]), end="")
        team,dice
         =A,0.6667
    """
    import pandas as pd

    cells = [[_plain(row[column], decimals) for column in columns] for row in rows]
    return pd.DataFrame(cells, columns=list(columns), dtype=object).to_csv(index=False, lineterminator="\n")


def _plain(value: object, decimals: int | None) -> object:
    if isinstance(value, float):
        return None if math.isnan(value) else float(value) if decimals is None else round(value, decimals)
    return f" {value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table with its columns aligned, without a line end.

    Args:
        header: Names of the columns; the first column is set to the left, the others to the right.
        lines: Cells as they are to be shown, as many per line as there are names.
    """
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (header, *lines)]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(header))]
    shown = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in cells
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (shown[0], rule, *shown[1:]))


def document(parts: Iterable[str], warnings: Iterable[str] = ()) -> str:
    """Returns headings, paragraphs and tables as one Markdown text, with a sentence per warning at its end."""
    return "\n\n".join([*parts, *(f"Warning: {warning}." for warning in warnings)]) + "\n"


def fixed(value: float | None, form: str = ".3f") -> str:
    """Returns a number in the given format, "-" for None."""
    return "-" if value is None else format(value, form)
