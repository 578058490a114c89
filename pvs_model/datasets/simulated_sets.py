"""Simulates the missing cases of a set and draws a contact sheet of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.datasets.label_maps import find_label_maps, load_head_model
from pvs_model.datasets.simulated_cases import (
    AnyCase,
    CaseSpec,
    is_complete,
    read_record,
    replay,
    save,
    simulate_protocol,
    simulate_random,
)
from pvs_model.errors import PVSError
from pvs_model.simulation.contact_sheet import Row, case_row, write_contact_sheet
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.insertion import InsertionParams, RealScan, insert_pvs
from pvs_model.simulation.phantom import make_phantom
from pvs_model.simulation.protocols import TABLE_2, Protocol, protocol_named
from pvs_model.types import SEQUENCES, Triple

SHEET = "contact_sheet.png"
#: Maximum number of rows of the contact sheet.
MAX_ROWS = 40


@dataclass(frozen=True)
class DatasetPlan:
    """Specifications of the cases of a set, and the function that makes a case."""

    specs: Sequence[CaseSpec]
    make: Callable[[CaseSpec], AnyCase]


class HeadModels:
    """Finds head models by name: the label maps of a folder, or phantoms without one.

    Args:
        folder: Folder of label maps, or None.
        cache: Folder for prepared head models.

    Raises:
        VolumeError: The folder contains no label map.
    """

    def __init__(self, folder: Path | None, cache: Path | None) -> None:
        self.folder = folder
        self.paths = {path.name: path for path in find_label_maps(folder)} if folder is not None else {}
        self.cache = cache
        self.last: HeadModel | None = None

    def name(self, seed: int) -> str:
        """Name of the head of a seed: label maps take turns."""
        return list(self.paths)[seed % len(self.paths)] if self.paths else f"phantom-{seed}"

    def find(self, name: str) -> HeadModel:
        """Returns the head of a name.

        Raises:
            PVSError: There is none.
        """
        if self.last is None or self.last.name != name:
            prefix, _, number = name.partition("-")
            if name in self.paths:
                self.last = load_head_model(self.paths[name], self.cache)
            elif prefix == "phantom" and number.isdigit():
                self.last = make_phantom(int(number))
            else:
                raise PVSError(f"{self.folder or '--anatomies'}: expected the label map {name}, got none of that name")
        return self.last


def plan_simulated(
    count: int, seed: int, protocol: str | Protocol, heads: HeadModels, subject: str | None = None,
    sequences: Sequence[str] = SEQUENCES,
) -> DatasetPlan:  # fmt: skip
    """Plans simulated heads, one per seed; the case of a seed is the same in every set.

    Args:
        count: Number of cases.
        seed: Seed of the first case.
        protocol: Name of one of ``PROTOCOLS``; "table2" for those of the challenge's Table 2 in turn; "random" for
            random ones; or a custom protocol.
        heads: Heads to scan.
        subject: "thin" for many thin PVS, "wide" for few wide ones; drawn when None.
        sequences: Sequences that are acquired, except under "random", which draws them.

    Raises:
        PVSError: There is no protocol of that name.
    """
    fixed = protocol if isinstance(protocol, Protocol) else None
    if fixed is None and protocol not in ("table2", "random"):
        fixed = protocol_named(str(protocol))

    def name(seed: int) -> str:
        if fixed is not None:
            return fixed.name
        return TABLE_2[seed % len(TABLE_2)].name if protocol == "table2" else "random"

    def make(spec: CaseSpec) -> AnyCase:
        head = heads.find(spec.source)
        name = spec.protocol.removesuffix(suffix)
        if fixed is None and name == "random":
            return simulate_random(head, spec.seed, subject)
        return simulate_protocol(head, spec.seed, fixed or protocol_named(name), subject, sequences)

    suffix = f", {subject} PVS" if subject else ""
    kept = [name for name in SEQUENCES if name in sequences]
    if len(kept) < len(SEQUENCES):
        suffix += f", {' and '.join(kept)} alone"
    numbers = range(seed, seed + count)
    return DatasetPlan([CaseSpec(f"sim{s:04d}", heads.name(s), name(s) + suffix, s) for s in numbers], make)


def plan_insertions(count: int, seed: int, scans: Sequence[RealScan], contrast: tuple[float, float],
               subject: str | None = None) -> DatasetPlan:  # fmt: skip
    """Plans real scans with inserted PVS, the scans in turn; ``subject`` as for ``plan_simulated``."""
    by_name = {scan.name: scan for scan in scans}
    protocol = f"mixed {contrast[0]:g} to {contrast[1]:g}" + (f", {subject} PVS" if subject else "")
    specs = [CaseSpec(f"mix{s:04d}", scans[s % len(scans)].name, protocol, s) for s in range(seed, seed + count)]
    return DatasetPlan(specs, lambda spec: insert_pvs(by_name[spec.source], spec.seed, contrast, subject))


def plan_replays(records: Sequence[Path], heads: HeadModels, scans: Sequence[RealScan]) -> DatasetPlan:
    """Plans the cases of some records.

    Raises:
        PVSError: A file is not a record, two are of one case, or a head or scan is not available.
    """
    by_case = {record.spec.case: record for record in map(read_record, records)}
    if len(by_case) < len(records):
        raise PVSError(f"--replay: expected records of different cases, got {len(records) - len(by_case)} doubled")

    def scan(name: str) -> RealScan:
        for background in scans:
            if background.name == name:
                return background
        raise PVSError(f"--backgrounds: expected the scan {name}, got none of that name")

    return DatasetPlan([r.spec for r in by_case.values()], lambda spec: replay(by_case[spec.case], heads.find, scan))


def write_set(folder: Path, plan: DatasetPlan, overwrite: bool = False, sheet: bool = True) -> int:
    """Simulates and saves the missing cases of a plan, then draws ``contact_sheet.png``.

    Returns:
        Number of cases made.

    Raises:
        PVSError: The folder contains another case of the same name; nothing is made then.
    """
    from tqdm import tqdm

    missing = [spec for spec in plan.specs if overwrite or not is_complete(folder, spec)]
    with tqdm(missing, unit="case", desc="simulate") as bar:
        for spec in bar:
            bar.set_postfix_str(f"{spec.case}: {spec.protocol}, {spec.source}")
            save(folder, spec, plan.make(spec))
    if sheet:
        write_contact_sheet([_row(folder, spec) for spec in plan.specs[:MAX_ROWS]], folder / SHEET)
    return len(missing)


def _row(folder: Path, spec: CaseSpec) -> Row:
    """Reads the row of a case from its files."""
    record = read_record(folder / spec.case / f"{spec.case}_simulation.json")
    labels, voxel = _voxels(folder, spec, "PVS")
    regions = [_voxels(folder, spec, name)[0] for name in ("CSO", "BG")]
    present = [(folder / spec.case / f"{spec.case}_{name}.nii.gz").is_file() for name in SEQUENCES]
    images = np.zeros((3, *labels.shape), np.float32)
    for channel, name in enumerate(SEQUENCES):
        if present[channel]:
            images[channel] = _voxels(folder, spec, name)[0]
    if isinstance(record.drawn, InsertionParams):
        scene = record.drawn.scene
        noise = "the scan's own"
    else:
        scene, scan = record.drawn
        noise = "/".join(f"{n:.3f}" for n, is_present in zip(scan.noise, scan.present, strict=True) if is_present)
    per_cm3 = f"CSO {scene.pvs_centrum:.2f}, BG {scene.pvs_basal:.2f}, other {scene.pvs_other:.2f}"
    size = " x ".join(f"{v:.3g}" for v in voxel)
    text = (
        f"{spec.case}   {spec.protocol}   {spec.source}   voxel {size} mm   PVS per cm³: {per_cm3}   "
        f"relative contrast {scene.pvs_relative_contrast:.2f}   noise {noise}"
    )
    return case_row(text, images, present, labels, regions, voxel)


def _voxels(folder: Path, spec: CaseSpec, name: str) -> tuple[npt.NDArray[Any], Triple]:
    """Reads voxels and spacing of a file of a case; ``volume.io.read`` rejects an empty mask."""
    import nibabel

    image = nibabel.load(folder / spec.case / f"{spec.case}_{name}.nii.gz")
    x, y, z = (float(s) for s in image.header.get_zooms()[:3])  # type: ignore[attr-defined]
    return np.asarray(image.dataobj), (x, y, z)  # type: ignore[attr-defined]
