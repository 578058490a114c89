"""Simulated cases as files, in the layout of the challenge."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from pvs_model.synth.anatomy import Anatomy
from pvs_model.synth.case import SimulatedCase, simulate
from pvs_model.synth.engine import ScanParams, Triple, draw_scan
from pvs_model.types import SEQUENCES


def plain_scan(seed: int, dimensions: int) -> ScanParams:
    """A scan of fair quality: all sequences, skull-stripped, nothing extreme drawn."""
    drawn = draw_scan(seed, dimensions, complete=True)
    noise = tuple(min(0.05, n) for n in drawn.noise)
    return replace(drawn, stripped=True, thick=(1.0, 1.0, 1.0), noise=noise, ring_keep=(1.0, 1.0, 1.0))  # type: ignore[arg-type]


def write_case(
    folder: Path, name: str, anatomy: Anatomy, seed: int, voxel_mm: Triple, truth: Path | None = None,
    case: SimulatedCase | None = None,
) -> Path:  # fmt: skip
    """Simulate a subject and write ``<folder>/<name>/<name>_{T1w,T2w,FLAIR}.nii.gz``.

    Truth (``<name>_PVS.nii.gz``), regions (``_BG``, ``_CSO``) and the record it can be replayed from
    (``_simulation.json``) go to ``<truth>/<name>``, by default the same folder.

    Returns:
        the folder of the images.
    """
    from pvs_model.volume.io import write_volume

    if case is None:
        scan = plain_scan(seed, 2 if max(voxel_mm) >= 2.5 else 3)
        case = simulate(anatomy, seed, voxel_mm, scan=scan)
    images, other = folder / name, (truth or folder) / name
    images.mkdir(parents=True, exist_ok=True)
    other.mkdir(parents=True, exist_ok=True)
    for sequence, image in zip(SEQUENCES, case.images, strict=True):
        write_volume(images / f"{name}_{sequence}.nii.gz", image, case.affine)
    for label, mask in (("PVS", case.truth), ("BG", case.basal_ganglia), ("CSO", case.centrum_semiovale)):
        write_volume(other / f"{name}_{label}.nii.gz", mask, case.affine)
    record = {"anatomy": anatomy.name, "scene": asdict(case.scene), "scan": asdict(case.scan)}
    (other / f"{name}_simulation.json").write_text(json.dumps(record, indent=1) + "\n")
    return images
