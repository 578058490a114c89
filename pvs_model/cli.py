"""The commands of ``python -m pvs_model``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pvs_model.anatomy.commands import add_regions, run_regions
from pvs_model.benchmark.commands import add_benchmark, run_benchmark
from pvs_model.cohort.commands import add_cohort, run_cohort
from pvs_model.config import SUBJECTS, NetworkConfig
from pvs_model.errors import PVSError, WeightsError
from pvs_model.evaluation.commands import (
    add_agreement,
    add_evaluate,
    add_rank,
    run_agreement,
    run_evaluate,
    run_rank,
)
from pvs_model.nets.registry import ENTRIES
from pvs_model.training.settings import FINE_TUNING_RATE, LEARNING_RATE, LOSSES, PRECISIONS, SCHEDULES, SIMULATE_ON

if TYPE_CHECKING:
    from pvs_model.training.material import Material

#: The weights that are shipped with the package.
SHIPPED = Path(__file__).resolve().parents[1] / "weights"

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
    from pvs_model.synth.protocols import on_grid
    from pvs_model.training import sets
    from pvs_model.training.backgrounds import load_backgrounds

    ways = ("protocol", "voxel_mm", "replay" if args.replay else "backgrounds")
    given = [f"--{name.replace('_', '-')}" for name in ways if getattr(args, name)]
    low, high = args.contrast
    if len(given) > 1:
        raise PVSError(f"{' and '.join(given)}: expected one of them, since each says which grid a case lies on")
    if args.count < 1 or not 0 <= low <= high <= 1:
        raise PVSError(
            f"--count, --contrast: expected at least 1 case and 0 <= LOW <= HIGH <= 1, found {args.count}, {low:g}, "
            f"{high:g}"
        )
    if args.voxel_mm and not all(0.2 <= v <= 10 for v in args.voxel_mm):
        raise PVSError(f"--voxel-mm: expected 0.2 to 10 mm, found {' '.join(f'{v:g}' for v in args.voxel_mm)}")
    heads = sets.Heads(args.anatomies, args.cache)
    scans = []
    if args.backgrounds:
        scans = load_backgrounds(args.backgrounds, args.anatomies, args.cache or args.output / ".cache")
    if args.replay:
        plan = sets.plan_replays(args.replay, heads, scans)
    elif scans:
        plan = sets.plan_mixes(args.count, args.seed, scans, (low, high), args.pvs)
    else:
        protocol = on_grid(tuple(args.voxel_mm)) if args.voxel_mm else args.protocol or "1mm"
        plan = sets.plan_heads(args.count, args.seed, protocol, heads, args.pvs)
    made = sets.write_set(args.output, plan, args.overwrite or bool(args.replay), sheet=not args.replay)
    print(f"{args.output}: {made} cases made, {len(plan.orders) - made} were there already")
    return 0


def _train(args: argparse.Namespace) -> int:
    from pvs_model.inference.predict import choose_device
    from pvs_model.nets.text import find_encoder
    from pvs_model.training.distributed import joined
    from pvs_model.training.loop import train
    from pvs_model.training.settings import TrainingConfig

    encoder, entry = args.encoder or find_encoder(), ENTRIES[args.network]
    network = entry.config
    if encoder is None:
        raise PVSError("--encoder: expected the folder of a BERT encoder, found none installed")
    multiple = 16 if network.architecture != "graph_fusion" else 2 ** (len(network.widths) - 1)
    if args.patch < 2 * multiple or args.patch % multiple or args.batch < 1 or args.steps < 1:
        raise PVSError(
            f"--patch, --batch, --steps: expected a multiple of {multiple} from {2 * multiple} on, and at least 1 of "
            f"the others, found {args.patch}, {args.batch}, {args.steps}"
        )
    if not 0 <= args.case_share <= 1 or not 0 <= args.scan_share < 1 or args.workers < 0 or not args.shard_mib > 0:
        raise PVSError(
            "--case-share, --scan-share, --workers, --shard-mib: expected 0 to 1, 0 to 1, at least 0, and above 0, "
            f"got {args.case_share}, {args.scan_share}, {args.workers}, {args.shard_mib}"
        )
    if args.workers and args.simulate_on == "device":
        raise PVSError("--workers: expected 0 with --simulate-on device, for workers render on the CPU")
    own = dict(entry.training)
    rate = own.pop("learning_rate", LEARNING_RATE)
    rate = FINE_TUNING_RATE if args.start else float(rate)
    training = TrainingConfig(
        steps=args.steps, batch=args.batch, patch=args.patch, seed=args.seed, minutes=args.minutes,
        learning_rate=rate if args.learning_rate is None else args.learning_rate, loss=args.loss,
        schedule=args.schedule, precision=args.precision, workers=args.workers, simulate_on=args.simulate_on,
        case_share=args.case_share, shard_mib=args.shard_mib, save_every=args.save_every, refresh=args.refresh,
        scan_share=args.scan_share,
        **own,  # type: ignore[arg-type]
    )  # fmt: skip
    if args.cases and (network.view or network.regions):
        raise PVSError(
            f"--cases with --network {args.network}: expected a network of slices as acquired or of volumes, without "
            "a region channel; it trains on simulation alone"
        )
    if args.start is not None:
        _check_start(args.start, args.network, network)
    with joined(choose_device(args.device)) as (ranks, device):
        if not ranks.first:
            logging.getLogger().setLevel(logging.WARNING)  # one process tells for all
        material = _material(args, network)
        facts = train(network, training, material, args.output, encoder, device, args.start, ranks)
        if ranks.first:
            print(json.dumps(facts))
    return 0


def _check_start(path: Path, name: str, network: NetworkConfig) -> None:
    """Refuse to go on from the weights of another network, in a sentence that says where they differ."""
    from pvs_model.nets import checkpoint

    if not path.is_file():
        raise WeightsError(f"{path}: expected a file of weights, found none")
    try:
        found = NetworkConfig.from_json(checkpoint.read_metadata(path)[checkpoint.CONFIG_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: expected the weights of a network that train wrote, found others") from error
    differing = [key for key, value in asdict(network).items() if asdict(found)[key] != value]
    if differing:
        told = ", ".join(f"{key} {asdict(found)[key]} in place of {asdict(network)[key]}" for key in differing[:3])
        fitting = [entry.name for entry in ENTRIES.values() if entry.config == found]
        hint = f"; they are of --network {fitting[0]}" if fitting else ""
        raise WeightsError(f"{path}: expected weights of the network {name}, found those of another: {told}{hint}")


def _material(args: argparse.Namespace, network: NetworkConfig) -> Material:
    """What ``train`` learns from: what the user named, in folds."""
    from pvs_model import pipeline
    from pvs_model.training.data import label_maps, load_anatomy
    from pvs_model.training.labelled import LabelledCase
    from pvs_model.training.labelled_files import load_cases
    from pvs_model.training.material import Material, split

    if args.anatomies is None and args.cases is None:
        raise PVSError(
            "--anatomies, --cases: expected label maps to simulate from, labelled cases, or both; found none"
        )
    if args.scans is not None and args.anatomies is None:
        raise PVSError("--scans: expected --anatomies, too: real scans go with simulated samples, got none")
    used: list[Path] = []
    held_out: list[Path] = []
    if args.anatomies is not None and args.held_out is not None:
        used, held_out = label_maps(args.anatomies), label_maps(args.held_out)
        names = {path.name for path in held_out}
        used = [path for path in used if path.name not in names]
    elif args.anatomies is not None:
        used, held_out = split(label_maps(args.anatomies), args.fold, args.folds, "label maps")
    cases: list[LabelledCase] = []
    held_out_cases: list[LabelledCase] = []
    if args.cases is not None:
        usable = load_cases(args.cases, network, pipeline, args.cache)
        cases, held_out_cases = split(usable, args.fold, args.folds, "labelled cases")
    scans = []
    if args.scans is not None:
        from pvs_model.training.real_scans import load_scans

        scans = load_scans(args.scans, SHIPPED, args.cache)
    return Material(
        anatomies=[load_anatomy(path, args.cache) for path in used],
        held_out_anatomies=[load_anatomy(path, args.cache) for path in held_out],
        cases=cases,
        held_out_cases=held_out_cases,
        scans=scans,
    )


def _release(args: argparse.Namespace) -> int:
    from pvs_model.pipeline import lacking
    from pvs_model.training.release import add_anatomy, release

    try:
        scores = json.loads(args.scores.read_text()) if args.scores else {}
    except (OSError, ValueError) as error:
        raise PVSError(f"{args.scores}: expected a JSON file of scores, found {error}") from error
    missing = [path for path in args.members if not path.is_file()]
    if missing:
        raise PVSError(f"{missing[0]}: expected the weights of a trained network, found no such file")
    if args.groups is not None and len(args.groups) != len(args.members):
        raise PVSError(f"--groups: expected one of each of {len(args.members)} networks, found {len(args.groups)}")
    release(
        args.weights, args.network, args.members, args.threshold, args.window, args.overlap, args.data,
        scores, groups=args.groups, combine=args.combine,
    )  # fmt: skip
    add_anatomy(args.weights)
    for line in lacking(args.weights):
        print(f"warning: {line}", file=sys.stderr)
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

    add_cohort(add("cohort", run_cohort, "Segment a folder of cases on many workers: this machine's or a cluster's."))
    add_regions(add("regions", run_regions, "Write the brain mask and the regions of scans, on their own grids."))

    demo = add("demo", _demo, "Simulate one subject, segment it, print scores, write a picture.")
    demo.add_argument("--output", type=Path, default=Path("demo_output"))
    demo.add_argument("--weights", type=Path, help="weights folder (default: the shipped ones)")

    simulate = add("simulate", _simulate, "Write simulated cases with truth and region masks, in the epvs layout.")
    simulate.add_argument("--anatomies", type=Path, help="folder of label maps with FreeSurfer ids (default: phantom)")
    simulate.add_argument("--protocol", metavar="NAME", help="a scanner's by name; or table2 (all in turn), or random")
    simulate.add_argument("--voxel-mm", type=float, nargs=3, metavar=("X", "Y", "Z"), help="in place of --protocol")
    simulate.add_argument("--backgrounds", type=Path, metavar="DIR", help="mix PVS into the real scans of a folder")
    simulate.add_argument("--contrast", type=float, nargs=2, default=(0.2, 0.7), metavar=("LOW", "HIGH"),
                          help="with --backgrounds: signal of PVS as a share of that from tissue to CSF")  # fmt: skip
    simulate.add_argument("--pvs", choices=SUBJECTS, help="many thin PVS, or few wide ones (default: drawn per case)")
    simulate.add_argument("--count", type=int, default=1)
    simulate.add_argument("--seed", type=int, default=0, help="of the first case")
    simulate.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="_simulation.json of cases to redo")
    simulate.add_argument("--overwrite", action="store_true", help="make cases again that are complete")
    simulate.add_argument("--cache", type=Path, help="folder that keeps prepared anatomies and registrations")
    simulate.add_argument("--output", type=Path, required=True)

    train = add("train", _train, "Train one network on simulated patches, labelled cases, or both; again: resume.")
    train.add_argument("--anatomies", type=Path, help="folder of label maps with FreeSurfer ids, to simulate from")
    train.add_argument(
        "--cases",
        type=Path,
        metavar="DIR",
        help="labelled cases in any layout that segment reads, <case>_PVS.nii.gz (and _BG, _CSO) beside",
    )
    train.add_argument(
        "--case-share",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the samples from --cases where --anatomies is given, too (default: %(default)s)",
    )
    train.add_argument("--scans", type=Path, nargs="+", metavar="DIR",
                       help="unlabelled real scans that teach what is no PVS; PVS are inserted into them")  # fmt: skip
    train.add_argument("--scan-share", type=float, default=0.15, metavar="SHARE",
                       help="share of the samples from --scans (default: %(default)s)")  # fmt: skip
    train.add_argument("--network", choices=tuple(ENTRIES), required=True, metavar="NAME",
                       help="3d, 2d, or another of docs/benchmark.md, such as dynunet-3d")  # fmt: skip
    train.add_argument("--output", type=Path, required=True, help="folder of the run; a state in it is resumed")
    train.add_argument(
        "--fold",
        type=int,
        default=0,
        metavar="K",
        help="anatomies and cases K, K + FOLDS, ... are held out for validation",
    )
    train.add_argument("--folds", type=int, default=5)
    train.add_argument("--held-out", type=Path, metavar="DIR",
                       help="label maps to validate on instead of a fold; left out of --anatomies by name")  # fmt: skip
    train.add_argument("--steps", type=int, default=4000)
    train.add_argument("--save-every", type=int, default=200, metavar="STEPS", help="from one state to the next")
    train.add_argument("--refresh", type=int, default=3, metavar="SAMPLES", help="after which a new scene is rendered")
    train.add_argument("--batch", type=int, default=1, help="samples per step (and process)")
    train.add_argument("--patch", type=int, default=48, help="side of a patch in voxels, a multiple of 8 or more")
    train.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help="weights to begin from, such as weights/3d_fold0.safetensors to fine-tune",
    )
    train.add_argument(
        "--learning-rate",
        type=float,
        help=f"default: the network's own, mostly {LEARNING_RATE:g}; {FINE_TUNING_RATE:g} with --start",
    )
    train.add_argument(
        "--loss",
        choices=LOSSES,
        default=LOSSES[0],
        help="dice-topk is nnU-Net's with the hardest tenth of the voxels; choose the threshold anew",
    )
    train.add_argument("--schedule", choices=SCHEDULES, default=SCHEDULES[0], help="of the learning rate")
    train.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="auto: bfloat16 on GPUs and on CPUs with instructions for it",
    )
    train.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; run again to go on")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that render scenes ahead (default: %(default)s, in the loop); the samples stay the same",
    )
    train.add_argument(
        "--simulate-on",
        choices=SIMULATE_ON,
        default=SIMULATE_ON[0],
        help="device: simulate where the network is (other random numbers than on the CPU)",
    )
    train.add_argument("--shard-mib", type=float, default=15.0, metavar="MIB", help="largest file of the state")
    train.add_argument("--encoder", type=Path, help="folder of a BERT encoder (default: the installed one)")
    train.add_argument("--cache", type=Path, help="folder that keeps prepared anatomies and cases")
    train.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    train.epilog = (
        "Several GPUs of one machine: python -m torch.distributed.run --nproc-per-node 4 -m pvs_model train ..."
    )

    summary = "Score a folder of masks against a folder of truth, as the challenge does."
    add_evaluate(add("evaluate", run_evaluate, summary))
    add_rank(add("rank", run_rank, "Rank teams as the challenge does, with tests and the stability of the ranks."))
    add_agreement(add("agreement", run_agreement, "Volumes against visual scores, and between repeated measurements."))

    summary = "Train every network of the papers at an equal budget and score them alike; again: resume."
    add_benchmark(add("benchmark", run_benchmark, summary))

    release = add("release", _release, "Copy trained networks into a weights folder and write its manifest.")
    release.add_argument("members", type=Path, nargs="+", help="network.safetensors of each fold")
    release.add_argument("--network", choices=("3d", "2d"), required=True)
    release.add_argument("--weights", type=Path, default=Path("weights"))
    release.add_argument("--threshold", type=float, required=True)
    release.add_argument("--window", type=int, required=True)
    release.add_argument("--overlap", type=float, default=0.25)
    release.add_argument("--groups", nargs="+", metavar="NAME",
                         help="group of each network; averaged within (default: all in one)")  # fmt: skip
    release.add_argument("--combine", choices=("mean", "maximum"), default="mean", help="of the groups (default: mean)")
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
    except BrokenPipeError:  # the program that reads this one's output has ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
