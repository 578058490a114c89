"""Train every network of the papers at an equal budget and score them alike; repeat the command to resume."""

from __future__ import annotations

import argparse
from pathlib import Path

from pvs_model.config import shipped_weights
from pvs_model.errors import PVSError

#: Phantoms that stand in for label maps where none are given: to train on, and to choose thresholds on.
PHANTOMS, HELD_OUT_PHANTOMS = 4, 2
#: One label map in so many is held out, to choose thresholds on; of fewer maps, one.
FOLDS = 5


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("--networks", nargs="+", default=["all"], metavar="NAME",
                         help="all, or some of docs/benchmark.md, such as 3d dynunet-3d (default: all)")  # fmt: skip
    command.add_argument("--output", type=Path, required=True, help="folder of the benchmark; what is there is kept")
    command.add_argument("--anatomies", type=Path, help="label maps to train on (default: phantoms)")
    command.add_argument("--validation", type=Path, help="label maps of other heads, to score on (default: phantoms)")
    command.add_argument("--backgrounds", type=Path, help="real scans into which PVS are mixed, to score on, too")
    command.add_argument("--steps", type=int, default=200, help="of each training (default: %(default)s)")
    command.add_argument("--seeds", type=int, default=2, metavar="S",
                         help="trainings of our network and its ablation (default: %(default)s)")  # fmt: skip
    command.add_argument("--peer-seeds", type=int, metavar="S", help="trainings of the others (default: as --seeds)")
    command.add_argument("--patch", type=int, default=32, help="side in 3D; planes twice (default: %(default)s)")
    command.add_argument("--batch", type=int, default=2, help="patches per step (default: %(default)s)")
    command.add_argument("--cases", type=int, default=1, help="scored per protocol (default: %(default)s)")
    command.add_argument("--crop-mm", type=float, default=80.0, metavar="MM",
                         help="side of the box that is scored, 0 for whole heads (default: %(default)s)")  # fmt: skip
    command.add_argument("--window", type=int, default=64, help="of prediction; planes twice (default: %(default)s)")
    command.add_argument("--minutes", type=float, default=float("inf"), help="train no longer; run again to go on")
    command.add_argument("--no-equal-seconds", action="store_true",
                         help="do not train the others once more for as long as ours took")  # fmt: skip
    command.add_argument("--weights", type=Path, help="folder with the anatomy network (default: the shipped one)")
    command.add_argument("--encoder", type=Path, help="folder of a BERT encoder (default: the installed one)")
    command.add_argument("--cache", type=Path, help="folder that keeps prepared anatomies and registrations")
    command.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")


def run(args: argparse.Namespace) -> int:
    """Returns 1 where a training failed."""
    from pvs_model.benchmark.plan import Budget, chosen

    budget = Budget(
        steps=args.steps, seeds=args.seeds, peer_seeds=args.seeds if args.peer_seeds is None else args.peer_seeds,
        patch=args.patch, batch=args.batch, cases=args.cases, crop_mm=args.crop_mm, window=args.window,
        equal_seconds=not args.no_equal_seconds,
    )  # fmt: skip
    chosen(args.networks)  # a wrong name is told before anything is loaded
    from pvs_model.benchmark.report import write_report
    from pvs_model.benchmark.run import Study
    from pvs_model.benchmark.run import run as run_benchmark
    from pvs_model.inference.device import choose_device
    from pvs_model.nets.text import find_encoder
    from pvs_model.synth.phantom import phantom
    from pvs_model.training.backgrounds import load_backgrounds
    from pvs_model.training.data import label_maps, load_anatomy
    from pvs_model.training.material import Material, split
    from pvs_model.training.sets import Heads

    encoder = args.encoder or find_encoder()
    if encoder is None:
        raise PVSError("--encoder: expected the folder of a BERT encoder, found none installed")
    cache = args.cache or args.output / "cache"
    if args.anatomies is not None:
        maps = label_maps(args.anatomies)
        if len(maps) < 2:
            raise PVSError(f"{args.anatomies}: expected at least 2 label maps, one to choose thresholds on, found 1")
        used, kept = split(maps, 0, min(FOLDS, len(maps)), "label maps")
        material = Material([load_anatomy(p, cache) for p in used], [load_anatomy(p, cache) for p in kept])
    else:
        heads = [phantom(seed) for seed in range(PHANTOMS + HELD_OUT_PHANTOMS)]
        material = Material(heads[:PHANTOMS], heads[PHANTOMS:])
    scans = load_backgrounds(args.backgrounds, args.anatomies, cache) if args.backgrounds else []
    weights = args.weights or shipped_weights()
    study = Study(material, Heads(args.validation, cache), scans, weights, encoder, choose_device(args.device))
    outcome = run_benchmark(study, args.networks, budget, args.output, args.minutes)
    for path in write_report(args.output, outcome):
        print(path)
    for failure in outcome.failed:
        print(f"not finished: {failure['entry']}: {failure['why']}")
    if outcome.left:
        print(f"{outcome.left} trainings left: run again to go on")
    return 1 if outcome.failed else 0
