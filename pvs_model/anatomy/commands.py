"""``python -m pvs_model regions``: brain mask and regions of scans, for use on their own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pvs_model.errors import PVSError, VolumeError, WeightsError
from pvs_model.types import SEQUENCES


def add_regions(command: argparse.ArgumentParser) -> None:
    """The options of ``regions``."""
    command.add_argument("scans", type=Path, metavar="IN", help="an image, or a folder of cases as segment takes it")
    command.add_argument(
        "output", type=Path, metavar="OUT", help="folder for the brain mask, the regions and their names"
    )
    command.add_argument("--weights", type=Path, default=Path(__file__).resolve().parents[2] / "weights")
    command.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")


def run_regions(args: argparse.Namespace) -> int:
    """Write the regions of every scan; one that fails is told and the others go on.

    Returns:
        0; 1 when a scan failed.
    """
    if not (args.weights / "anatomy.safetensors").is_file():
        raise WeightsError(f"{args.weights}: expected the anatomy network (anatomy.safetensors), found none")
    scans, failures = _scans(args.scans)
    from pvs_model.anatomy.predict import write_regions
    from pvs_model.inference.predict import choose_device

    device = choose_device(args.device)
    for scan, folder in scans:
        try:
            written = write_regions(scan, args.output / folder, args.weights, device)
        except PVSError as error:
            failures.append(str(error))
            continue
        print(f"{scan}: {written.brain}, {written.regions}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _scans(source: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Images to look at, each with its folder below the output, and what cannot be read, in sentences.

    Of a case it is the sequence with the thinnest slices.
    """
    if not source.is_dir():
        return [(source, Path())], []
    from pvs_model.layouts import choose
    from pvs_model.volume.io import read_grid

    found: list[tuple[Path, Path]] = []
    failed: list[str] = []
    for case in choose(source).find_cases(source):
        spacing = {}
        for name, path in case.images.items():
            try:
                spacing[name] = round(max(read_grid(path).spacing_mm), 1)
            except VolumeError as error:
                failed.append(str(error))
        if not spacing:
            problem = case.problem or f"{case.name}: expected an image that can be read, found none"
            failed.append(problem)
            continue
        best = min(spacing, key=lambda name: (spacing[name], SEQUENCES.index(name)))
        found.append((case.images[best], Path(case.name)))
    return found, failed
