"""Reads the headers of DICOM files, and groups them by study and series."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pvs_model.errors import LayoutError, PVSError, first_line
from pvs_model.types import Float64Array

if TYPE_CHECKING:
    from pydicom import Dataset

log = logging.getLogger(__name__)

#: Fewest slices of a volume; localisers have fewer.
MIN_SLICES = 8
#: Distance in mm below which two slices count as one position.
SAME_POSITION_MM = 0.01
#: Largest difference between the distances of slices, as a share of the distance.
UNEQUAL = 0.05
#: Largest distance of a slice from its place at equal distances, as a fraction of that distance.
OFF_GRID = 0.1

#: Values of ScanningSequence, the decisive first.
_PULSES = {"EP": "echo-planar", "SE": "spin", "GR": "gradient"}

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "StudyDate", "StudyTime",
    "Modality", "SeriesNumber", "SeriesDescription", "ProtocolName", "ImageType", "ScanningSequence",
    "EchoPulseSequence", "InversionRecovery", "RepetitionTime", "EchoTime", "InversionTime", "ContrastBolusAgent",
    "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One slice in the patient's space.

    Attributes:
        position_mm: Centre of the first voxel (3,), in DICOM's axes (left, posterior, superior).
        along_row: Step from a voxel to the next of its row (3,), mm.
        along_column: Step from a voxel to the next of its column (3,), mm.
    """

    position_mm: Float64Array
    along_row: Float64Array
    along_column: Float64Array


@dataclass(frozen=True)
class Series:
    """The images of a DICOM series that have one echo time and one image type.

    Attributes:
        uid: Series instance UID.
        number: Series number, 0 without one.
        description: Series description, or else the name of the protocol.
        files: Files of its images.
        modality: Such as "MR".
        image_type: Values of ImageType, such as ("ORIGINAL", "PRIMARY", "M").
        pulse: "spin", "gradient", "echo-planar", or "" where unknown.
        inversion: Whether the header names an inversion recovery.
        repetition_ms, echo_ms, inversion_ms: Times of the sequence; None where unknown.
        agent: Contrast agent, or "".
        problem: Why its images are no volume; None if they are one.
        part: Echo time or image type, where others of the same UID have another; else "".
    """

    uid: str
    number: int = 0
    description: str = ""
    files: tuple[Path, ...] = ()
    modality: str = "MR"
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY")
    pulse: str = ""
    inversion: bool = False
    repetition_ms: float | None = None
    echo_ms: float | None = None
    inversion_ms: float | None = None
    agent: str = ""
    problem: str | None = None
    part: str = ""

    @property
    def label(self) -> str:
        """Number, description and UID, for messages; also the part, where it is one of several."""
        return f"{self.number} {self.description!r} ({self.uid}{self.part and f', {self.part}'})"


@dataclass(frozen=True)
class Study:
    """The series of one study, by number.

    Attributes:
        uid: Study instance UID.
        name: Name of the case: patient and date, in letters, digits and "-"; unique within the input.
        series: Its series.
    """

    uid: str
    name: str
    series: tuple[Series, ...] = ()


@dataclass
class _Stack:
    """Headers of the images of a series; ``frames`` is empty where they have no position."""

    header: Dataset
    files: list[Path] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)


def require_extra() -> None:
    """Checks that the packages of the extra ``dicom`` are installed.

    Raises:
        PVSError: One is missing.
    """
    try:
        import dcm2niix  # noqa: F401
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise PVSError(
            f"DICOM: expected the packages of the extra, pip install '.[dicom]', got no {error.name}"
        ) from error


def read_studies(root: Path) -> list[Study]:
    """Reads the headers of all DICOM images below a folder; other files are ignored.

    Args:
        root: Folder in any structure. Names of files do not matter.

    Returns:
        Studies in the order of their names.

    Raises:
        LayoutError: The folder is missing or holds no DICOM image.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "but it does not exist"
        raise LayoutError(f"{root}: expected a folder or zip file of DICOM series, {got}")
    studies: dict[str, dict[tuple[Any, ...], _Stack]] = {}
    seen: set[str] = set()
    for path, header in _headers(root):
        uid = str(header.SOPInstanceUID)
        if uid in seen:
            continue  # a copy of an image
        seen.add(uid)
        echo = round(_number(header, "EchoTime", "EffectiveEchoTime") or 0, 1)
        key = (str(header.SeriesInstanceUID), echo, _image_type(header))
        stack = studies.setdefault(str(header.StudyInstanceUID), {}).setdefault(key, _Stack(header))
        stack.files.append(path)
        stack.frames += frames_of(header)
    if not studies:
        raise LayoutError(f"{root}: expected DICOM images, got none")
    series = {uid: _with_parts([_series(stack) for stack in stacks.values()]) for uid, stacks in studies.items()}
    return _named(series, studies)


def frames_of(header: Dataset) -> list[Frame]:
    """Returns the slices of an image, single-frame or multi-frame; none where it has no place in space."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        frames = [_frame([header])]
    else:
        shared = _items(header.get("SharedFunctionalGroupsSequence", []))
        frames = [_frame([*_items([group]), *shared]) for group in header.PerFrameFunctionalGroupsSequence]
    return [] if None in frames else [frame for frame in frames if frame is not None]


def _frame(items: list[Dataset]) -> Frame | None:
    values = []
    for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        try:
            values.append(np.array(next(item[keyword].value for item in items if keyword in item), np.float64))
        except (StopIteration, ValueError, TypeError):
            return None
        if values[-1].shape != (count,):
            return None
        if keyword != "ImagePositionPatient" and not values[-1].any():
            return None
    position, orientation, (between_rows, between_columns) = values
    return Frame(position, orientation[:3] * between_columns, orientation[3:] * between_rows)


def _items(groups: Iterable[Dataset]) -> list[Dataset]:
    """The items of the sequences in functional groups."""
    return [item for group in groups for element in group if element.VR == "SQ" for item in element.value or []]


def _headers(root: Path) -> Iterator[tuple[Path, Dataset]]:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    for folder, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(folder, name)
            try:
                header = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
                list(header.iterall())  # decodes every value, which pydicom leaves until it is used
                if all(tag in header for tag in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Rows")):
                    yield path, header
            except InvalidDicomError:
                continue  # no DICOM image
            except Exception as error:  # damaged files make pydicom raise struct.error and others
                log.warning("%s: left out: expected a readable DICOM image, got: %s", path, first_line(error))


def _value(header: Dataset, *keywords: str) -> Any:
    """The first value of some keywords, in the header or in the functional groups of its first frame; else None."""
    frames = list(header.get("PerFrameFunctionalGroupsSequence", []))[:1]
    for item in (header, *_items([*header.get("SharedFunctionalGroupsSequence", []), *frames])):
        for keyword in keywords:
            value = item.get(keyword)
            if value is not None and value != "":
                return value
    return None


def _number(header: Dataset, *keywords: str) -> float | None:
    value = _value(header, *keywords)
    try:
        return None if value is None else float(np.atleast_1d(np.array(value, np.float64))[0])
    except (TypeError, ValueError, IndexError):
        return None


def _image_type(header: Dataset) -> tuple[str, ...]:
    value = header.get("ImageType") or ()
    return (value.upper(),) if isinstance(value, str) else tuple(str(part).upper() for part in value)


def _series(stack: _Stack) -> Series:
    header = stack.header
    scanning = header.get("ScanningSequence") or ()
    scanning = {scanning} if isinstance(scanning, str) else set(scanning)
    enhanced = {"SPIN": "spin", "GRADIENT": "gradient"}.get(str(header.get("EchoPulseSequence", "")), "")
    pulses = (pulse for code, pulse in _PULSES.items() if code in scanning)
    number = _number(header, "SeriesNumber")
    return Series(
        uid=str(header.SeriesInstanceUID),
        number=int(number or 0),
        description=str(header.get("SeriesDescription") or header.get("ProtocolName") or ""),
        files=tuple(sorted(stack.files)),
        modality=str(header.get("Modality", "")),
        image_type=_image_type(header),
        pulse=next(pulses, enhanced),
        inversion="IR" in scanning or header.get("InversionRecovery") == "YES",
        repetition_ms=_number(header, "RepetitionTime"),
        echo_ms=_number(header, "EchoTime", "EffectiveEchoTime"),
        inversion_ms=_number(header, "InversionTime", "InversionTimes"),
        agent=str(header.get("ContrastBolusAgent") or ""),
        problem=_problem(stack.frames),
    )


def _with_parts(series: list[Series]) -> list[Series]:
    """Sets the part of series that share their UID."""
    result = []
    for each in series:
        siblings = [other for other in series if other.uid == each.uid]
        differences = []
        if len({other.echo_ms for other in siblings}) > 1:
            differences.append("no TE" if each.echo_ms is None else f"TE {each.echo_ms:g} ms")
        if len({other.image_type for other in siblings}) > 1:
            differences.append("\\".join(each.image_type))
        result.append(replace(each, part=", ".join(differences)))
    return result


def _problem(frames: list[Frame]) -> str | None:
    """Describes why slices are no volume; None if they are one."""
    if len(frames) < MIN_SLICES:
        return f"{len(frames)} slices in space"
    first = frames[0]
    normal = np.cross(first.along_row, first.along_column)
    normal /= np.linalg.norm(normal)
    steps = np.array([[*frame.along_row, *frame.along_column] for frame in frames])
    if np.abs(steps - steps[0]).max() > 1e-3:
        return "slices of several orientations or voxel sizes"
    places = np.sort([frame.position_mm @ normal for frame in frames])
    distances = np.diff(places)
    if (distances < SAME_POSITION_MM).any():
        return "several images at one position"
    if np.ptp(distances) > UNEQUAL * np.median(distances):
        return f"distances between slices from {distances.min():.2f} to {distances.max():.2f} mm"
    off = np.abs(places - np.linspace(places[0], places[-1], len(places))).max()
    if off > OFF_GRID * np.median(distances):
        return f"slices up to {off:.2f} mm from places at equal distances"
    return None


def _named(series: dict[str, list[Series]], stacks: dict[str, dict[tuple[Any, ...], _Stack]]) -> list[Study]:
    """Names studies after patient and date, and those of one patient and day also by their number."""
    by_name: dict[str, list[str]] = {}
    for uid in sorted(series):
        header = next(iter(stacks[uid].values())).header
        parts = (str(header.get("PatientID") or "patient"), str(header.get("StudyDate") or ""))
        name = "_".join("".join(c if c.isalnum() and c.isascii() else "-" for c in part) for part in parts if part)
        by_name.setdefault(name, []).append(uid)
    return [
        Study(uid, name if len(uids) == 1 else f"{name}_{k}", tuple(sorted(series[uid], key=_order)))
        for name, uids in sorted(by_name.items())
        for k, uid in enumerate(uids, 1)
    ]


def _order(series: Series) -> tuple[int, str, float]:
    return series.number, series.uid, series.echo_ms or 0
