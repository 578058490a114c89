"""Trains models of the zoo with equal budgets and scores them on the same cases.

    python -m benchmarks.networks --networks all|NAME ... --output DIR [--steps N] [--seeds S] [--anatomies DIR]
                                  [--validation DIR] [--backgrounds DIR] [--minutes M]

Each network learns from the same simulated scenes in the same order. The command resumes what is in ``--output`` and
writes ``benchmark.md``, ``benchmark.json`` and rank plots there (docs/benchmark.md).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import WEIGHTS
from benchmarks.networks.plan import Budget, select_models
from pvs_model.errors import PVSError

#: Phantoms used where no label maps are given: for training, and for the choice of thresholds.
PHANTOMS, HELD_OUT_PHANTOMS = 4, 2
#: Every fifth label map is held out for the choice of thresholds; at least one.
FOLDS = 5


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.networks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=["all"], metavar="NAME",
        help="all, or names from docs/benchmark.md, such as 3d dynunet-3d (default: all)")  # fmt: skip
    add("--output", type=Path, required=True, help="folder of the benchmark; existing results are kept")
    add("--anatomies", type=Path, help="label maps for training (default: phantoms)")
    add("--validation", type=Path, help="label maps of other heads for the test cases (default: phantoms)")
    add("--backgrounds", type=Path, help="real scans with inserted PVS as additional test cases")
    add("--steps", type=int, default=200, help="steps of each training (default: %(default)s)")
    add("--seeds", type=int, default=2, metavar="S",
        help="trainings of the graph-fusion network and its ablations (default: %(default)s)")  # fmt: skip
    add("--baseline-seeds", type=int, metavar="S", help="trainings of the baselines (default: --seeds)")
    add("--patch", type=int, default=32, help="patch size in 3D; twice that in 2D (default: %(default)s)")
    add("--batch", type=int, default=2, help="patches per step (default: %(default)s)")
    add("--cases", type=int, default=1, help="test cases per protocol (default: %(default)s)")
    add("--crop-mm", type=float, default=80.0, metavar="MM",
        help="side of the box that is scored, 0 for the whole head (default: %(default)s)")  # fmt: skip
    add("--window", type=int, default=64, help="window size of inference; twice that in 2D (default: %(default)s)")
    add("--minutes", type=float, default=float("inf"), help="maximum time of training; run again to resume")
    add("--no-equal-seconds", action="store_true",
        help="do not train baselines a second time, for as long as the graph-fusion network")  # fmt: skip
    add("--weights", type=Path, default=WEIGHTS, help="folder with the anatomy network (default: the shipped one)")
    add("--encoder", type=Path, help="folder of a BERT encoder (default: the installed one)")
    add("--cache", type=Path, help="folder of prepared anatomies and registrations")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark. Returns 1 if a training failed, else 0.

    Raises:
        PVSError: If an option is invalid or the input cannot be used.
    """
    budget = Budget(
        steps=args.steps, seeds=args.seeds,
        baseline_seeds=args.seeds if args.baseline_seeds is None else args.baseline_seeds,
        patch=args.patch, batch=args.batch, cases=args.cases, crop_mm=args.crop_mm, window=args.window,
        equal_seconds=not args.no_equal_seconds,
    )  # fmt: skip
    select_models(args.networks)  # rejects unknown names before the slow imports
    from benchmarks.networks.report import write_report
    from benchmarks.networks.run import Setup, run_benchmark
    from pvs_model.datasets.label_maps import find_label_maps, load_head_model
    from pvs_model.datasets.real_scans import load_real_scans
    from pvs_model.datasets.simulated_sets import HeadModels
    from pvs_model.inference.device import choose_device
    from pvs_model.nets.text import find_encoder
    from pvs_model.simulation.phantom import make_phantom
    from pvs_model.training.sampling import FoldData, split

    encoder = args.encoder or find_encoder()
    if encoder is None:
        raise PVSError("--encoder: expected the folder of a BERT encoder, got none, and none is installed")
    cache = args.cache or args.output / "cache"
    if args.anatomies is not None:
        maps = find_label_maps(args.anatomies)
        if len(maps) < 2:
            raise PVSError(f"{args.anatomies}: expected at least 2 label maps, one to choose thresholds on, got 1")
        used, held_out = split(maps, 0, min(FOLDS, len(maps)), "label maps")
        material = FoldData([load_head_model(p, cache) for p in used], [load_head_model(p, cache) for p in held_out])
    else:
        heads = [make_phantom(seed) for seed in range(PHANTOMS + HELD_OUT_PHANTOMS)]
        material = FoldData(heads[:PHANTOMS], heads[PHANTOMS:])
    scans = load_real_scans(args.backgrounds, args.anatomies, cache) if args.backgrounds else []
    test_heads, device = HeadModels(args.validation, cache), choose_device(args.device)
    setup = Setup(material, test_heads, scans, args.weights, encoder, device)
    result = run_benchmark(setup, args.networks, budget, args.output, args.minutes)
    for path in write_report(args.output, result):
        print(path)
    for failure in result.failed:
        print(f"failed: {failure['model']}: {failure['error']}")
    if result.remaining:
        print(f"{result.remaining} trainings remaining: run again to resume")
    return 1 if result.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status: 2 for errors that a user can fix, which go to stderr."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    try:
        return run(args)
    except PVSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
