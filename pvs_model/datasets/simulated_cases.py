"""Writes simulated cases in the layout of the challenge, each with a record from which it can be replayed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pvs_model.errors import PVSError
from pvs_model.files import write_text
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.insertion import InsertedCase, InsertionParams, RealScan, insert_with
from pvs_model.simulation.parameters import ScanParams, SceneParams, draw_scan, draw_voxel
from pvs_model.simulation.protocols import Protocol, on_grid
from pvs_model.simulation.subject import SimulatedCase, simulate, whole_scene
from pvs_model.types import SEQUENCES, Triple

#: Endings of the files of a case: masks, and maps of its PVS.
MASKS = ("PVS", "BG", "CSO", "IGNORE")
MAPS = {"FLUID": "pvs_fraction", "CNR": "cnr", "DIAMETER": "diameter_mm"}

AnyCase = SimulatedCase | InsertedCase
#: Increased when the fields of records change.
RECORD_FORMAT = 2


@dataclass(frozen=True)
class CaseSpec:
    """Specification of a case: equal ones give equal cases, given the same heads or scans.

    Attributes:
        case: Name of the case and of its folder.
        source: Name of the head model, or of the real scan into which PVS are inserted.
        protocol: Name of the acquisition protocol.
        seed: Seed of every draw.
    """

    case: str
    source: str
    protocol: str
    seed: int


def plain_scan(seed: int, dimensions: int, acquired: tuple[Triple, Triple, Triple] | None = None) -> ScanParams:
    """Draws a scan of fair quality: all sequences, contrasts of real tissue, skull-stripped, nothing extreme.

    Args:
        seed: Seed of every draw.
        dimensions: Spatial dimensions of the network that the scan is for.
        acquired: Voxel size of each sequence relative to the grid; None for that of the grid.
    """
    same = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    drawn = draw_scan(seed, dimensions, complete=True, acquired=acquired or same, random_share=0.0)
    t1w, t2w, flair = (min(0.05, n) for n in drawn.noise)
    return replace(drawn, skull_stripped=True, noise=(t1w, t2w, flair), kspace_fraction=(1.0, 1.0, 1.0))


def simulate_protocol(
    head: HeadModel, seed: int, protocol: Protocol, subject: str | None = None, sequences: Sequence[str] = SEQUENCES
) -> SimulatedCase:
    """Simulates a whole subject under a protocol, of fair quality.

    Args:
        head: Head to scan.
        seed: Seed of every draw. Geometry and contrasts do not depend on ``sequences``.
        protocol: Voxel sizes.
        subject: As for ``draw_scene``.
        sequences: Sequences that are acquired. PVS are labelled where they are visible in one of these.
    """
    scan = plain_scan(seed, protocol.dimensions, protocol.acquired())
    t1w, t2w, flair = (name in sequences for name in SEQUENCES)
    scan = replace(scan, present=(t1w, t2w, flair))
    scene = whole_scene(head, seed, protocol.grid_mm, subject=subject)
    return simulate(head, seed, protocol.grid_mm, scene=scene, scan=scan)


def simulate_random(head: HeadModel, seed: int, subject: str | None = None) -> SimulatedCase:
    """Simulates a whole subject with voxels, plane, contrast and missing sequences from the ranges of training."""
    dimensions = random.Random(seed).choice((2, 3))
    voxel, plane = draw_voxel(seed, dimensions)
    scene = whole_scene(head, seed, voxel, plane, subject=subject)
    return simulate(head, seed, voxel, plane, scene=scene, scan=draw_scan(seed, dimensions))


def write_case(folder: Path, name: str, head: HeadModel, seed: int, voxel_mm: Triple, reference: Path | None = None,
               case: SimulatedCase | None = None) -> Path:  # fmt: skip
    """Simulates a subject on a grid of ``voxel_mm`` and saves it (``save``).

    Returns:
        Folder of the images.
    """
    protocol = on_grid(voxel_mm)
    spec = CaseSpec(name, head.name, protocol.name, seed)
    return save(folder, spec, case or simulate_protocol(head, seed, protocol), reference)


def save(folder: Path, spec: CaseSpec, case: AnyCase, reference: Path | None = None) -> Path:
    """Writes ``<folder>/<case>/<case>_{T1w,T2w,FLAIR}.nii.gz``; a missing sequence has no file.

    Labels (``_PVS``), regions (``_BG``, ``_CSO``), voxels that scores ignore (``_IGNORE``), properties of the PVS
    (``_FLUID``, fraction of the voxel; ``_CNR``; ``_DIAMETER``, mm) and the record for a replay (``_simulation.json``)
    go to ``<reference>/<case>``, by default the same folder. The record is written last: it marks a complete case.

    Returns:
        Folder of the images.
    """
    from pvs_model.volume.io import write_mask, write_volume

    images, other = folder / spec.case, (reference or folder) / spec.case
    record_path = other / f"{spec.case}_simulation.json"
    record_path.unlink(missing_ok=True)
    written = []
    for sequence, image, present in zip(SEQUENCES, case.images, case.present, strict=True):
        path = images / f"{spec.case}_{sequence}.nii.gz"
        if present:
            write_volume(path, image, case.affine)
            written.append(path)
        else:
            path.unlink(missing_ok=True)  # of an earlier case
    arrays = (case.reference, case.basal_ganglia, case.centrum_semiovale, case.pvs.ignore)
    for name, mask in zip(MASKS, arrays, strict=True):
        write_mask(other / f"{spec.case}_{name}.nii.gz", mask, like=written[0])
    for name, field in MAPS.items():
        write_volume(other / f"{spec.case}_{name}.nii.gz", getattr(case.pvs, field), case.affine)
    drawn = {"insertion": asdict(case.params)} if isinstance(case, InsertedCase) else {
        "scene": asdict(case.scene), "scan": asdict(case.scan)
    }  # fmt: skip
    record = {"format": RECORD_FORMAT, **asdict(spec), **drawn, "sha256": digest(case)}
    write_text(record_path, json.dumps(record, indent=1) + "\n")
    return images


def digest(case: AnyCase) -> str:
    """Computes the SHA-256 of images, labels, maps and regions, bit for bit."""
    sha = hashlib.sha256()
    maps = (getattr(case.pvs, field.name) for field in fields(case.pvs))
    for array in (case.images, *maps, case.basal_ganglia, case.centrum_semiovale):
        sha.update(f"{array.dtype.str} {array.shape} ".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def is_complete(folder: Path, spec: CaseSpec) -> bool:
    """Whether a folder already contains the complete case of a specification.

    Raises:
        PVSError: The folder contains another case of the same name.
    """
    path = folder / spec.case / f"{spec.case}_simulation.json"
    if not path.is_file():
        return False
    present = read_record(path).spec
    if present != spec:
        raise PVSError(
            f"{path.parent}: expected a case of {spec.source}, {spec.protocol}, seed {spec.seed}, got one of "
            f"{present.source}, {present.protocol}, seed {present.seed}: choose another output, or overwrite it"
        )
    return True


@dataclass(frozen=True)
class Record:
    """Content of a ``_simulation.json``: specification, drawn parameters, and checksum of the arrays."""

    spec: CaseSpec
    drawn: InsertionParams | tuple[SceneParams, ScanParams]
    sha256: str


def read_record(path: Path) -> Record:
    """Reads a record that ``save`` wrote.

    Raises:
        PVSError: The file is missing, is not a record, or has the format of another version.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        record_format = values.get("format", 1)
        if record_format != RECORD_FORMAT and "sha256" in values:
            raise PVSError(
                f"{path}: expected a record of format {RECORD_FORMAT}, got format {record_format} of another "
                "version of this program: simulate the case again with --overwrite"
            )
        spec = CaseSpec(**{name: values[name] for name in ("case", "source", "protocol", "seed")})
        drawn: InsertionParams | tuple[SceneParams, ScanParams]
        if "insertion" in values:
            scene = SceneParams(**_tuples(values["insertion"].pop("scene")))
            drawn = InsertionParams(scene=scene, **_tuples(values["insertion"]))
        else:
            drawn = SceneParams(**_tuples(values["scene"])), ScanParams(**_tuples(values["scan"]))
        return Record(spec, drawn, values["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PVSError(f"{path}: expected the record of a simulated case, got {error!r}") from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Converts the lists of JSON to the tuples of records."""

    def inner(value: Any) -> Any:
        return tuple(map(inner, value)) if isinstance(value, list) else value

    return {name: inner(value) for name, value in values.items()}


def replay(record: Record, head: Callable[[str], HeadModel], scan: Callable[[str], RealScan]) -> AnyCase:
    """Simulates the case of a record again.

    Args:
        record: Record of the case.
        head: Returns a head model by name.
        scan: Returns a real scan by name.

    Raises:
        PVSError: The result differs from the recorded case.
    """
    case: AnyCase
    if isinstance(record.drawn, InsertionParams):
        case = insert_with(scan(record.spec.source), record.drawn)
    else:
        scene, scan_params = record.drawn
        case = simulate(head(record.spec.source), record.spec.seed, scene.voxel_mm, scene.plane, scene, scan_params)
    if digest(case) != record.sha256:
        raise PVSError(
            f"{record.spec.case}: expected the arrays of its record, got others: {record.spec.source} has "
            "changed, or the version of torch"
        )
    return case
