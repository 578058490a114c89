"""Simulated cases as files, in the layout of the challenge, each with the record that it can be replayed from."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pvs_model.errors import PVSError
from pvs_model.synth.anatomy import Anatomy
from pvs_model.synth.background import Background, MixedCase, MixParams, mix_as
from pvs_model.synth.case import SimulatedCase, simulate, whole_scene
from pvs_model.synth.engine import ScanParams, SceneParams, Triple, draw_scan, draw_voxel
from pvs_model.synth.protocols import Protocol, on_grid
from pvs_model.types import SEQUENCES

#: What the files of a case end in: masks, and maps of its PVS.
MASKS = ("PVS", "BG", "CSO", "IGNORE")
MAPS = {"FLUID": "fluid", "CNR": "cnr", "DIAMETER": "diameter_mm"}

AnyCase = SimulatedCase | MixedCase


@dataclass(frozen=True)
class Order:
    """What a case is asked to be: equal orders give equal cases, given the same heads or scans.

    Attributes:
        case: its name, also that of its folder.
        source: name of the anatomy, or of the real scan that PVS are mixed into.
        protocol: how it is acquired, in a word.
        seed: of every draw.
    """

    case: str
    source: str
    protocol: str
    seed: int


def plain_scan(seed: int, dimensions: int, acquired: tuple[Triple, Triple, Triple] | None = None) -> ScanParams:
    """A scan of fair quality: all sequences, the contrasts of real tissue, skull-stripped, nothing extreme drawn.

    Args:
        seed: of every draw.
        dimensions: of the network that is to see the scan.
        acquired: voxel size of each sequence relative to the grid; None for all on the grid's own.
    """
    same = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    drawn = draw_scan(seed, dimensions, complete=True, acquired=acquired or same, random_share=0.0)
    t1w, t2w, flair = (min(0.05, n) for n in drawn.noise)
    return replace(drawn, stripped=True, noise=(t1w, t2w, flair), ring_keep=(1.0, 1.0, 1.0))


def simulate_protocol(
    anatomy: Anatomy, seed: int, protocol: Protocol, subject: str | None = None
) -> SimulatedCase:
    """A whole subject as a site would have scanned it, of fair quality; ``subject`` as for ``draw_scene``."""
    scan = plain_scan(seed, protocol.dimensions, protocol.acquired())
    scene = whole_scene(anatomy, seed, protocol.grid_mm, subject=subject)
    return simulate(anatomy, seed, protocol.grid_mm, scene=scene, scan=scan)


def simulate_random(anatomy: Anatomy, seed: int, subject: str | None = None) -> SimulatedCase:
    """A whole subject with everything drawn from the ranges of training: voxels, plane, contrast, missing sequences."""
    dimensions = random.Random(seed).choice((2, 3))
    voxel, plane = draw_voxel(seed, dimensions)
    scene = whole_scene(anatomy, seed, voxel, plane, subject=subject)
    return simulate(anatomy, seed, voxel, plane, scene=scene, scan=draw_scan(seed, dimensions))


def write_case(folder: Path, name: str, anatomy: Anatomy, seed: int, voxel_mm: Triple, truth: Path | None = None,
               case: SimulatedCase | None = None) -> Path:  # fmt: skip
    """Simulate a subject on a grid of ``voxel_mm`` and save it (``save``).

    Returns:
        the folder of the images.
    """
    protocol = on_grid(voxel_mm)
    order = Order(name, anatomy.name, protocol.name, seed)
    return save(folder, order, case or simulate_protocol(anatomy, seed, protocol), truth)


def save(folder: Path, order: Order, case: AnyCase, truth: Path | None = None) -> Path:
    """Write ``<folder>/<case>/<case>_{T1w,T2w,FLAIR}.nii.gz``; a missing sequence has no file.

    Labels (``_PVS``), regions (``_BG``, ``_CSO``), voxels that scores ignore (``_IGNORE``), what is known of the PVS
    (``_FLUID``, share of the voxel; ``_CNR``; ``_DIAMETER``, mm) and the record that the case can be replayed from
    (``_simulation.json``) go to ``<truth>/<case>``, by default the same folder. The record comes last:
    where it is, the case is complete.

    Returns:
        the folder of the images.
    """
    from pvs_model.volume.io import write_mask, write_volume

    images, other = folder / order.case, (truth or folder) / order.case
    record_path = other / f"{order.case}_simulation.json"
    record_path.unlink(missing_ok=True)
    written = []
    for sequence, image, there in zip(SEQUENCES, case.images, case.present, strict=True):
        path = images / f"{order.case}_{sequence}.nii.gz"
        if there:
            write_volume(path, image, case.affine)
            written.append(path)
        else:
            path.unlink(missing_ok=True)  # of a case that was here before
    masks = (case.truth, case.basal_ganglia, case.centrum_semiovale, case.pvs.ignore)
    for name, mask in zip(MASKS, masks, strict=True):
        write_mask(other / f"{order.case}_{name}.nii.gz", mask, like=written[0])
    for name, field in MAPS.items():
        write_volume(other / f"{order.case}_{name}.nii.gz", getattr(case.pvs, field), case.affine)
    made_from = {"mix": asdict(case.mix)} if isinstance(case, MixedCase) else {
        "scene": asdict(case.scene), "scan": asdict(case.scan)
    }  # fmt: skip
    part = record_path.with_suffix(".part")
    part.write_text(json.dumps({**asdict(order), **made_from, "sha256": digest(case)}, indent=1) + "\n")
    part.replace(record_path)
    return images


def digest(case: AnyCase) -> str:
    """SHA-256 of images, labels, maps and regions, bit for bit."""
    sha = hashlib.sha256()
    maps = (getattr(case.pvs, field.name) for field in fields(case.pvs))
    for array in (case.images, *maps, case.basal_ganglia, case.centrum_semiovale):
        sha.update(f"{array.dtype.str} {array.shape} ".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def is_complete(folder: Path, order: Order) -> bool:
    """Whether a case of this order lies in a folder already, whole.

    Raises:
        PVSError: another case lies there under the same name.
    """
    path = folder / order.case / f"{order.case}_simulation.json"
    if not path.is_file():
        return False
    found = read_record(path).order
    if found != order:
        raise PVSError(
            f"{path.parent}: expected a case of {order.source}, {order.protocol}, seed {order.seed}, found one of "
            f"{found.source}, {found.protocol}, seed {found.seed}: choose another output, or overwrite it"
        )
    return True


@dataclass(frozen=True)
class Record:
    """A ``_simulation.json``: the order, every number that was drawn for it, and the check sum of its arrays."""

    order: Order
    drawn: MixParams | tuple[SceneParams, ScanParams]
    sha256: str


def read_record(path: Path) -> Record:
    """Read what ``save`` wrote.

    Raises:
        PVSError: the file is missing or holds something else.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        order = Order(**{name: values[name] for name in ("case", "source", "protocol", "seed")})
        drawn: MixParams | tuple[SceneParams, ScanParams]
        if "mix" in values:
            scene = SceneParams(**_tuples(values["mix"].pop("scene")))
            drawn = MixParams(scene=scene, **_tuples(values["mix"]))
        else:
            drawn = SceneParams(**_tuples(values["scene"])), ScanParams(**_tuples(values["scan"]))
        return Record(order, drawn, values["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PVSError(f"{path}: expected the record of a simulated case, found: {error!r}") from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; records hold tuples."""

    def inner(value: Any) -> Any:
        return tuple(map(inner, value)) if isinstance(value, list) else value

    return {name: inner(value) for name, value in values.items()}


def replay(record: Record, head: Callable[[str], Anatomy], scan: Callable[[str], Background]) -> AnyCase:
    """The case of a record once more.

    Args:
        record: as read.
        head: finds an anatomy by name.
        scan: finds a real scan by name.

    Raises:
        PVSError: the result differs from the case that the record was written with.
    """
    case: AnyCase
    if isinstance(record.drawn, MixParams):
        case = mix_as(scan(record.order.source), record.drawn)
    else:
        scene, scan_params = record.drawn
        case = simulate(head(record.order.source), record.order.seed, scene.voxel_mm, scene.plane, scene, scan_params)
    if digest(case) != record.sha256:
        raise PVSError(
            f"{record.order.case}: expected the arrays of its record, found others: {record.order.source} is not "
            "what it was, or torch is another version"
        )
    return case
