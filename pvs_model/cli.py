"""The commands of ``python -m pvs_model``: segment, demo, simulate, train, release."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pvs_model.errors import PVSError

Command = Callable[[argparse.Namespace], int]


def _segment(rest: Sequence[str]) -> int:
    """The container's own entry point, which lies beside the package in a checkout and in the image."""
    import importlib.util

    path = Path(__file__).resolve().parents[1] / "process.py"
    spec = importlib.util.spec_from_file_location("process", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PVSError(f"{path}: expected process.py beside the package, found none")
    process = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(process)
    code: int = process.main(list(rest))
    return code


def _demo(args: argparse.Namespace) -> int:
    from pvs_model.demo import demo

    return demo(args.output, args.weights)


def _simulate(args: argparse.Namespace) -> int:
    from pvs_model.synth.phantom import phantom
    from pvs_model.training.cases import write_case
    from pvs_model.training.data import label_maps, load_anatomy

    spacing = tuple(args.voxel_mm)
    if not all(0.2 <= v <= 10 for v in spacing) or args.count < 1:
        raise PVSError(f"--voxel-mm, --count: expected 0.2 to 10 mm and at least 1 case, found {spacing}, {args.count}")
    for number in range(args.count):
        seed = args.seed + number
        if args.anatomies is None:
            anatomy = phantom(seed)
        else:
            maps = label_maps(args.anatomies)
            anatomy = load_anatomy(maps[number % len(maps)])
        folder = write_case(args.output, f"sim{seed:04d}", anatomy, seed, spacing)
        print(f"{folder}: {anatomy.name}, seed {seed}, voxels {' x '.join(f'{v:g}' for v in spacing)} mm")
    return 0


def _train(args: argparse.Namespace) -> int:
    import torch

    from pvs_model.config import NETWORK_2D, NETWORK_3D
    from pvs_model.nets.text import find_encoder
    from pvs_model.training.data import label_maps, load_anatomy
    from pvs_model.training.loop import TrainingConfig, train

    encoder = args.encoder or find_encoder()
    if encoder is None:
        raise PVSError("--encoder: expected the folder of a BERT encoder, found none installed")
    maps = label_maps(args.anatomies)
    if args.patch < 16 or args.patch % 8 or args.batch < 1 or args.steps < 1:
        raise PVSError(
            "--patch, --batch, --steps: expected a multiple of 8 from 16 on, and at least 1 of the others, "
            f"found {args.patch}, {args.batch}, {args.steps}"
        )
    if not 0 <= args.fold < args.folds <= len(maps):
        raise PVSError(f"--fold {args.fold} --folds {args.folds}: expected 0 <= fold < folds <= {len(maps)} label maps")
    loaded = [load_anatomy(path, args.cache) for path in maps]
    held_out = loaded[args.fold :: args.folds]
    used = [anatomy for k, anatomy in enumerate(loaded) if k % args.folds != args.fold]
    device = torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    training = TrainingConfig(
        steps=args.steps, batch=args.batch, patch=args.patch, learning_rate=args.learning_rate,
        seed=args.seed, minutes=args.minutes,
    )  # fmt: skip
    network = NETWORK_3D if args.network == "3d" else NETWORK_2D
    facts = train(network, training, used, held_out, args.output, encoder, device, args.start)
    print(json.dumps(facts))
    return 0


def _release(args: argparse.Namespace) -> int:
    from pvs_model.training.release import release

    try:
        scores = json.loads(args.scores.read_text()) if args.scores else {}
    except (OSError, ValueError) as error:
        raise PVSError(f"{args.scores}: expected a JSON file of scores, found {error}") from error
    missing = [path for path in args.members if not path.is_file()]
    if missing:
        raise PVSError(f"{missing[0]}: expected the weights of a trained network, found no such file")
    release(
        args.weights, args.network, args.members, args.threshold, args.window, args.overlap, args.data,
        scores,
    )  # fmt: skip
    print(f"{args.weights}: {args.network} ensemble of {len(args.members)}, threshold {args.threshold}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line; ``segment`` takes the arguments of ``process.py``."""
    out = argparse.ArgumentParser(prog="python -m pvs_model", description="Perivascular spaces in brain MRI.")
    commands = out.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Command, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        return command

    commands.add_parser("segment", help="segment every case of a folder (the same as process.py)", add_help=False)

    demo = add("demo", _demo, "Simulate one subject, segment it, print scores, write a picture.")
    demo.add_argument("--output", type=Path, default=Path("demo_output"))
    demo.add_argument("--weights", type=Path, help="weights folder (default: the shipped ones)")

    simulate = add("simulate", _simulate, "Write simulated cases with truth and region masks, in the epvs layout.")
    simulate.add_argument("--anatomies", type=Path, help="folder of label maps with FreeSurfer ids (default: phantom)")
    simulate.add_argument("--voxel-mm", type=float, nargs=3, default=(1.0, 1.0, 1.0), metavar=("X", "Y", "Z"))
    simulate.add_argument("--count", type=int, default=1)
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--output", type=Path, required=True)

    train = add("train", _train, "Train one network on simulated patches; run again to resume.")
    train.add_argument("--anatomies", type=Path, required=True, help="folder of label maps with FreeSurfer ids")
    train.add_argument("--network", choices=("3d", "2d"), required=True)
    train.add_argument("--output", type=Path, required=True, help="folder of the run; a state in it is resumed")
    train.add_argument("--fold", type=int, default=0, help="anatomies K, K + FOLDS, ... are held out")
    train.add_argument("--folds", type=int, default=5)
    train.add_argument("--steps", type=int, default=4000)
    train.add_argument("--batch", type=int, default=1)
    train.add_argument("--patch", type=int, default=48, help="side of a patch in voxels, a multiple of 8")
    train.add_argument("--learning-rate", type=float, default=1.5e-3)
    train.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; run again to go on")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--start", type=Path, help="weights to begin from")
    train.add_argument("--encoder", type=Path, help="folder of a BERT encoder (default: the installed one)")
    train.add_argument("--cache", type=Path, help="folder that keeps prepared anatomies")
    train.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")

    release = add("release", _release, "Copy trained networks into a weights folder and write its manifest.")
    release.add_argument("members", type=Path, nargs="+", help="network.safetensors of each fold")
    release.add_argument("--network", choices=("3d", "2d"), required=True)
    release.add_argument("--weights", type=Path, default=Path("weights"))
    release.add_argument("--threshold", type=float, required=True)
    release.add_argument("--window", type=int, required=True)
    release.add_argument("--overlap", type=float, default=0.25)
    release.add_argument("--data", default="simulated", help="what it was trained on, in words")
    release.add_argument("--scores", type=Path, help="JSON file of what was measured")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status; errors that a user can mend come as one sentence on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["segment"]:
            return _segment(arguments[1:])
        args = parser().parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
        code: int = args.run(args)
        return code
    except PVSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
