"""A set of simulated cases: what is missing of it is made, what is there is kept, and a page shows it all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.errors import PVSError
from pvs_model.synth.anatomy import Anatomy
from pvs_model.synth.background import Background, MixParams, mix
from pvs_model.synth.params import Triple
from pvs_model.synth.phantom import phantom
from pvs_model.synth.protocols import TABLE_2, Protocol, protocol_named
from pvs_model.synth.sheet import Row, contact_sheet, row
from pvs_model.training.cases import (
    AnyCase,
    Order,
    is_complete,
    read_record,
    replay,
    save,
    simulate_protocol,
    simulate_random,
)
from pvs_model.training.data import label_maps, load_anatomy
from pvs_model.types import SEQUENCES

SHEET = "contact_sheet.png"
MOST_ROWS = 40  # a longer page is none to look at


@dataclass(frozen=True)
class Plan:
    """What a set is to hold, and how a case of it is made."""

    orders: Sequence[Order]
    make: Callable[[Order], AnyCase]


class Heads:
    """Anatomies by name: the label maps of a folder, or phantoms where there is none.

    Args:
        folder: of label maps, or None.
        cache: folder that keeps prepared anatomies.

    Raises:
        VolumeError: the folder holds no label map.
    """

    def __init__(self, folder: Path | None, cache: Path | None) -> None:
        self.folder = folder
        self.paths = {path.name: path for path in label_maps(folder)} if folder is not None else {}
        self.cache = cache
        self.last: Anatomy | None = None

    def name(self, seed: int) -> str:
        """The head of a seed: label maps in turn."""
        return list(self.paths)[seed % len(self.paths)] if self.paths else f"phantom-{seed}"

    def find(self, name: str) -> Anatomy:
        """The head of a name.

        Raises:
            PVSError: there is none.
        """
        if self.last is None or self.last.name != name:
            kind, _, number = name.partition("-")
            if name in self.paths:
                self.last = load_anatomy(self.paths[name], self.cache)
            elif kind == "phantom" and number.isdigit():
                self.last = phantom(int(number))
            else:
                raise PVSError(
                    f"{self.folder or '--anatomies'}: expected the label map {name}, found none of that name"
                )
        return self.last


def plan_heads(
    count: int, seed: int, protocol: str | Protocol, heads: Heads, subject: str | None = None
) -> Plan:
    """Simulated heads, one per seed; a seed's case is the same in every set that has the seed.

    Args:
        count: of cases.
        seed: of the first.
        protocol: one of ``PROTOCOLS`` by name; "table2", those of the challenge's Table 2 in turn; "random",
            everything drawn; or a protocol of the user's own.
        heads: what is scanned.
        subject: "thin" for many thin PVS, "wide" for few wide ones; drawn when None.

    Raises:
        PVSError: no protocol has that name.
    """
    own = protocol if isinstance(protocol, Protocol) else None
    if own is None and protocol not in ("table2", "random"):
        own = protocol_named(str(protocol))

    def name(seed: int) -> str:
        return own.name if own is not None else TABLE_2[seed % len(TABLE_2)].name if protocol == "table2" else "random"

    def make(order: Order) -> AnyCase:
        head = heads.find(order.source)
        name = order.protocol.removesuffix(suffix)
        if own is None and name == "random":
            return simulate_random(head, order.seed, subject)
        return simulate_protocol(head, order.seed, own or protocol_named(name), subject)

    suffix = f", {subject} PVS" if subject else ""
    numbers = range(seed, seed + count)
    return Plan([Order(f"sim{s:04d}", heads.name(s), name(s) + suffix, s) for s in numbers], make)


def plan_mixes(count: int, seed: int, scans: Sequence[Background], contrast: tuple[float, float],
               subject: str | None = None) -> Plan:  # fmt: skip
    """PVS mixed into real scans, the scans in turn; ``subject`` as for ``plan_heads``."""
    by_name = {scan.name: scan for scan in scans}
    words = f"mixed {contrast[0]:g} to {contrast[1]:g}" + (f", {subject} PVS" if subject else "")
    orders = [Order(f"mix{s:04d}", scans[s % len(scans)].name, words, s) for s in range(seed, seed + count)]
    return Plan(orders, lambda order: mix(by_name[order.source], order.seed, contrast, subject))


def plan_replays(records: Sequence[Path], heads: Heads, scans: Sequence[Background]) -> Plan:
    """Cases once more, from their records.

    Raises:
        PVSError: a file is no record, two are of one case, or a head or scan is not at hand.
    """
    read = {record.order.case: record for record in map(read_record, records)}
    if len(read) < len(records):
        raise PVSError(f"--replay: expected records of different cases, found {len(records) - len(read)} doubled")

    def scan(name: str) -> Background:
        for background in scans:
            if background.name == name:
                return background
        raise PVSError(f"--backgrounds: expected the scan {name}, found none of that name")

    return Plan([r.order for r in read.values()], lambda order: replay(read[order.case], heads.find, scan))


def write_set(folder: Path, plan: Plan, overwrite: bool = False, sheet: bool = True) -> int:
    """Make and save the cases that are not there yet, under a progress bar, then draw ``contact_sheet.png``.

    Returns:
        how many were made.

    Raises:
        PVSError: another case lies where one of these is to go; nothing was made then.
    """
    from tqdm import tqdm

    missing = [order for order in plan.orders if overwrite or not is_complete(folder, order)]
    with tqdm(missing, unit="case", desc="simulate") as bar:
        for order in bar:
            bar.set_postfix_str(f"{order.case}: {order.protocol}, {order.source}")
            save(folder, order, plan.make(order))
    if sheet:
        contact_sheet([_row(folder, order) for order in plan.orders[:MOST_ROWS]], folder / SHEET)
    return len(missing)


def _row(folder: Path, order: Order) -> Row:
    """A case as it lies on disk."""
    record = read_record(folder / order.case / f"{order.case}_simulation.json")
    truth, voxel = _voxels(folder, order, "PVS")
    regions = [_voxels(folder, order, name)[0] for name in ("CSO", "BG")]
    present = [(folder / order.case / f"{order.case}_{name}.nii.gz").is_file() for name in SEQUENCES]
    images = np.zeros((3, *truth.shape), np.float32)
    for channel, name in enumerate(SEQUENCES):
        if present[channel]:
            images[channel] = _voxels(folder, order, name)[0]
    if isinstance(record.drawn, MixParams):
        scene = record.drawn.scene
        noise = "the scan's own"
    else:
        scene, scan = record.drawn
        noise = "/".join(f"{n:.3f}" for n, there in zip(scan.noise, scan.present, strict=True) if there)
    per_cm3 = f"CSO {scene.pvs_centrum:.2f}, BG {scene.pvs_basal:.2f}, other {scene.pvs_other:.2f}"
    size = " x ".join(f"{v:.3g}" for v in voxel)
    text = (
        f"{order.case}   {order.protocol}   {order.source}   voxel {size} mm   PVS per cm³: {per_cm3}   "
        f"strength {scene.pvs_strength:.2f}   noise {noise}"
    )
    return row(text, images, present, truth, regions, voxel)


def _voxels(folder: Path, order: Order, name: str) -> tuple[npt.NDArray[Any], Triple]:
    """Voxels and spacing of a file of a case. ``volume.io.read`` refuses a mask in which nothing is marked."""
    import nibabel

    image = nibabel.load(folder / order.case / f"{order.case}_{name}.nii.gz")
    x, y, z = (float(s) for s in image.header.get_zooms()[:3])  # type: ignore[attr-defined]
    return np.asarray(image.dataobj), (x, y, z)  # type: ignore[attr-defined]
