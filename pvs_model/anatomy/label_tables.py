"""Writes the label table of region maps in the forms of BIDS, ITK-SNAP, FSLeyes, and FreeView with FreeSurfer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pvs_model.anatomy.regions import Label, label_table
from pvs_model.errors import VolumeError
from pvs_model.files import write_text


def write_label_tables(folder: Path, name: str) -> dict[str, Path]:
    """Writes the label table in every form.

    Args:
        folder: Folder of the files; it is made if necessary.
        name: Beginning of their names: ``<name>.tsv`` (BIDS), ``<name>_itksnap.txt``, ``<name>_fsleyes.lut`` and
            ``<name>_freesurfer.txt``.

    Returns:
        The files, by "bids", "itksnap", "fsleyes" and "freesurfer".

    Raises:
        VolumeError: A file cannot be written.

    Example:
        >>> sorted(path.name for path in write_label_tables(Path("out"), "regions").values())
        ['regions.tsv', 'regions_freesurfer.txt', 'regions_fsleyes.lut', 'regions_itksnap.txt']
    """
    written = {}
    for form, (ending, text) in FORMS.items():
        written[form] = folder / f"{name}{ending}"
        write_text(written[form], text(), VolumeError)
    return written


def bids_text() -> str:
    """Returns the table as BIDS has it: tab-separated index, name, abbreviation, color."""
    rows = ["index\tname\tabbreviation\tcolor"]
    rows += [
        f"{row.value}\t{row.name}\t{row.abbreviation}\t#{''.join(f'{c:02x}' for c in row.colour)}"
        for row in label_table()
    ]
    return _lines(rows)


def itksnap_text() -> str:
    """Returns the label descriptions of ITK-SNAP: index, colour, opacity, visibility of voxels and mesh, name."""
    rows = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    for row in label_table():
        shown = int(row.value > 0)
        red, green, blue = row.colour
        rows.append(f'{row.value:5d} {red:5d}{green:5d}{blue:5d} {shown:6d} {shown:3d}{shown:4d}    "{row.name}"')
    return _lines(rows)


def fsleyes_text() -> str:
    """Returns the lookup table of FSLeyes: value, colour from 0 to 1, name; 0 is transparent there."""
    return _lines(
        f"{row.value} {' '.join(f'{c / 255:.5f}' for c in row.colour)} {row.name}" for row in label_table() if row.value
    )


def freesurfer_text() -> str:
    """Returns the color table of FreeSurfer: index, name without spaces, colour, transparency."""
    return _lines(
        [
            "#No. Label Name:                          R   G   B   A",
            *(f"{row.value:<5d}{_dashed(row):<38}{_padded(row)}   0" for row in label_table()),
        ]
    )


#: Ending of the file name, and text, by form.
FORMS: Mapping[str, tuple[str, Callable[[], str]]] = {
    "bids": (".tsv", bids_text),
    "itksnap": ("_itksnap.txt", itksnap_text),
    "fsleyes": ("_fsleyes.lut", fsleyes_text),
    "freesurfer": ("_freesurfer.txt", freesurfer_text),
}


def _dashed(row: Label) -> str:
    return row.name.replace(" ", "-")


def _padded(row: Label) -> str:
    return " ".join(f"{c:3d}" for c in row.colour)


def _lines(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)
