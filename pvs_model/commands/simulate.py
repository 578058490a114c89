"""Simulate cases with reference and region masks, in the epvs layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from pvs_model.config import SUBJECTS
from pvs_model.errors import PVSError
from pvs_model.types import SEQUENCES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``simulate``."""
    add = parser.add_argument
    add("--anatomies", type=Path, help="folder of label maps with FreeSurfer ids (default: phantom)")
    add("--protocol", metavar="NAME", help="name of a scanner protocol; table2 (all in turn), or random")
    add("--voxel-mm", type=float, nargs=3, metavar=("X", "Y", "Z"), help="in place of --protocol")
    add("--sequences", nargs="+", choices=SEQUENCES, default=SEQUENCES, help="acquire these alone; labels follow them")
    add("--backgrounds", type=Path, metavar="DIR", help="insert PVS into the real scans of a folder")
    add(
        "--contrast", type=float, nargs=2, default=(0.2, 0.7), metavar=("LOW", "HIGH"),
        help="with --backgrounds: PVS signal as a fraction of the contrast between tissue and CSF",
    )  # fmt: skip
    add("--pvs", choices=SUBJECTS, help="many thin PVS, or few wide ones (default: drawn per case)")
    add("--count", type=int, default=1)
    add("--seed", type=int, default=0, help="of the first case")
    add("--replay", type=Path, nargs="+", metavar="FILE", help="_simulation.json of cases to repeat")
    add("--overwrite", action="store_true", help="repeat cases that are complete")
    add("--cache", type=Path, help="folder for prepared anatomies and registrations")
    add("--output", type=Path, required=True)


def run(args: argparse.Namespace) -> int:
    """Simulates the cases that are not complete yet."""
    from pvs_model.datasets import simulated_sets as sets
    from pvs_model.datasets.real_scans import load_real_scans
    from pvs_model.simulation.protocols import on_grid

    _check(args)
    heads = sets.HeadModels(args.anatomies, args.cache)
    scans = []
    if args.backgrounds:
        scans = load_real_scans(args.backgrounds, args.anatomies, args.cache or args.output / ".cache")
    if args.replay:
        plan = sets.plan_replays(args.replay, heads, scans)
    elif scans:
        plan = sets.plan_insertions(args.count, args.seed, scans, tuple(args.contrast), args.pvs)
    else:
        protocol = on_grid(tuple(args.voxel_mm)) if args.voxel_mm else args.protocol or "1mm"
        plan = sets.plan_simulated(args.count, args.seed, protocol, heads, args.pvs, args.sequences)
    made = sets.write_set(args.output, plan, args.overwrite or bool(args.replay), sheet=not args.replay)
    print(f"{args.output}: {made} cases made, {len(plan.specs) - made} already present")
    return 0


def _check(args: argparse.Namespace) -> None:
    exclusive = ("protocol", "voxel_mm", "replay" if args.replay else "backgrounds")
    given = [f"--{name.replace('_', '-')}" for name in exclusive if getattr(args, name)]
    low, high = args.contrast
    if len(given) > 1:
        raise PVSError(f"{' and '.join(given)}: expected only one of them, since each defines the grid of a case")
    if set(args.sequences) != set(SEQUENCES) and (args.backgrounds or args.replay or args.protocol == "random"):
        raise PVSError(
            "--sequences: expected --protocol NAME or --voxel-mm, whose sequences can be left out, got --backgrounds, "
            "--replay or --protocol random, which define theirs"
        )
    if args.count < 1 or not 0 <= low <= high <= 1:
        raise PVSError(
            f"--count, --contrast: expected at least 1 case and 0 <= LOW <= HIGH <= 1, got {args.count}, {low:g}, "
            f"{high:g}"
        )
    if args.voxel_mm and not all(0.2 <= v <= 10 for v in args.voxel_mm):
        raise PVSError(f"--voxel-mm: expected 0.2 to 10 mm, got {' '.join(f'{v:g}' for v in args.voxel_mm)}")
