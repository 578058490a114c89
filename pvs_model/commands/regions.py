"""Write the brain mask and the regions of scans, on their own grids."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pvs_model.config import default_weights
from pvs_model.errors import PVSError, VolumeError, WeightsError
from pvs_model.inference.weights import ANATOMY, has_anatomy
from pvs_model.types import SEQUENCES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``regions``."""
    parser.add_argument("scans", type=Path, metavar="IN", help="an image, or a folder of cases as for segment")
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="folder for the brain mask, the regions and their names"
    )
    parser.add_argument("--weights", type=Path, default=default_weights(), help="folder with the anatomy network")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")


def run(args: argparse.Namespace) -> int:
    """Writes the regions of every scan; failures are reported and the remaining scans continue.

    Returns:
        0; 1 when a scan failed.
    """
    if not has_anatomy(args.weights):
        raise WeightsError(f"{args.weights}: expected the anatomy network ({ANATOMY}), got none")
    scans, failures = _scans(args.scans)
    from pvs_model.anatomy.inference import write_regions
    from pvs_model.inference.device import choose_device

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
    """The image with the thinnest slices of each case, with its output folder; and sentences on unreadable files."""
    if not source.is_dir():
        return [(source, Path())], []
    from pvs_model.layouts import choose
    from pvs_model.volume.io import read_grid

    scans: list[tuple[Path, Path]] = []
    failures: list[str] = []
    for case in choose(source).find_cases(source):
        spacing = {}
        for name, path in case.images.items():
            try:
                spacing[name] = round(max(read_grid(path).spacing_mm), 1)
            except VolumeError as error:
                failures.append(str(error))
        if not spacing:
            failures.append(case.problem or f"{case.name}: expected an image that can be read, got none")
            continue
        thinnest = min(spacing, key=lambda name: (spacing[name], SEQUENCES.index(name)))
        scans.append((case.images[thinnest], Path(case.name)))
    return scans, failures
