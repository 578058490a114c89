"""Label tables of viewers: each form, read by its own rules, has every value of the region map once."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from pvs_model.anatomy.label_tables import write_label_tables
from pvs_model.anatomy.regions import label_table
from pvs_model.errors import VolumeError

EXPECTED = {row.value: (row.name, row.colour) for row in label_table()}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    written = write_label_tables(tmp_path_factory.mktemp("tables") / "new", "regions")
    return {form: path.read_text().splitlines() for form, path in written.items()}


def test_bids(tables: dict[str, list[str]]) -> None:
    rows = list(csv.DictReader(tables["bids"], delimiter="\t"))
    assert list(rows[0]) == ["index", "name", "abbreviation", "color"]
    read = {int(r["index"]): (r["name"], tuple(bytes.fromhex(r["color"].removeprefix("#")))) for r in rows}
    assert read == EXPECTED and len(rows) == len(EXPECTED)


def test_itksnap(tables: dict[str, list[str]]) -> None:
    """A first line that MRIcron looks for; seven numbers and a quoted name; the background is not drawn."""
    assert tables["itksnap"][0] == "# ITK-SnAP Label Description File"
    rows = [line for line in tables["itksnap"] if not line.startswith("#")]
    read = {}
    for row in rows:
        match = re.fullmatch(r'((?:\s*\d+){7})\s+"([^"]+)"', row)
        assert match is not None, row
        value, *colour, opacity, visible, mesh = map(int, match[1].split())
        assert opacity == visible == mesh == (value != 0)
        read[value] = (match[2], tuple(colour))
    assert read == EXPECTED and len(rows) == len(EXPECTED)


def test_fsleyes(tables: dict[str, list[str]]) -> None:
    read = {}
    for row in tables["fsleyes"]:
        value, red, green, blue, name = row.split(maxsplit=4)
        read[int(value)] = (name, tuple(round(255 * float(c)) for c in (red, green, blue)))
    assert read == {value: row for value, row in EXPECTED.items() if value}


def test_freesurfer(tables: dict[str, list[str]]) -> None:
    """Six columns, names without spaces, and the values and colours of FreeSurferColorLUT.txt."""
    rows = [line.split() for line in tables["freesurfer"] if not line.startswith("#")]
    assert {len(row) for row in rows} == {6}
    read = {int(row[0]): (row[1].replace("-", " "), tuple(map(int, row[2:5]))) for row in rows}
    assert read == EXPECTED
    assert ["12", "left-putamen", "236", "13", "176", "0"] in rows


def test_a_table_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VolumeError, match="expected to write it"):
        write_label_tables(tmp_path / "file", "regions")
