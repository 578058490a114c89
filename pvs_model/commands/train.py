"""Train one network on simulated patches, labelled cases, or both; repeat the command to resume."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvs_model.config import NetworkConfig, default_weights
from pvs_model.errors import PVSError, WeightsError
from pvs_model.nets.precision import PRECISIONS
from pvs_model.nets.zoo import MODELS, ModelSpec
from pvs_model.training.config import (
    FINE_TUNING,
    FINE_TUNING_RATE,
    LEARNING_RATE,
    LOSSES,
    PATCH,
    SCHEDULES,
    SIMULATE_ON,
    TrainingConfig,
)

if TYPE_CHECKING:
    from pvs_model.training.sampling import FoldData


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``train``; those of ``TrainingConfig`` have its names and defaults."""
    parser.epilog = (
        "Several GPUs of one machine: python -m torch.distributed.run --nproc-per-node 4 -m pvs_model train ..."
    )
    _add_data_arguments(parser)
    _add_training_arguments(parser)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--anatomies", type=Path, help="folder of label maps with FreeSurfer ids, to simulate from")
    add(
        "--cases", type=Path, metavar="DIR",
        help="labelled cases in any layout that segment reads, <case>_PVS.nii.gz (and _BG, _CSO) beside",
    )  # fmt: skip
    add(
        "--scans", type=Path, nargs="+", metavar="DIR",
        help="unlabelled real scans as negative examples; PVS are inserted into them",
    )  # fmt: skip
    add(
        "--held-out", type=Path, metavar="DIR",
        help="label maps to validate on instead of a fold; left out of --anatomies by name",
    )  # fmt: skip
    add(
        "--fold", type=int, default=0, metavar="K",
        help="anatomies and cases K, K + FOLDS, ... are held out for validation",
    )  # fmt: skip
    add("--folds", type=int, default=5)
    add(
        "--ensemble", type=int, metavar="N",
        help="one common training on all label maps but those of --held-out, then N members from it, each on its own "
        "fold; from a copy of the code in --output, at low priority",
    )  # fmt: skip
    add(
        "--member-steps", type=int, default=3000, metavar="STEPS",
        help="with --ensemble: steps of each member (default: %(default)s); --steps are those of the common training",
    )  # fmt: skip
    add("--encoder", type=Path, help="folder of a BERT encoder (default: the installed one)")
    add("--cache", type=Path, help="folder for prepared anatomies and cases")
    add("--output", type=Path, required=True, help="folder of the run; a state in it is resumed")


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, TrainingConfig()
    add(
        "--network", choices=tuple(MODELS), required=True, metavar="NAME",
        help="3d, 2d, or another of docs/benchmark.md, such as dynunet-3d",
    )  # fmt: skip
    add(
        "--start", type=Path, metavar="FILE",
        help="weights to begin from, such as weights/3d_fold0.safetensors to fine-tune; a narrower "
        "network is widened",
    )  # fmt: skip
    add("--steps", type=int, default=default.steps)
    add("--batch", type=int, default=default.batch, help="samples per step and process (default: %(default)s)")
    add("--patch", type=int, help=f"side of a patch in voxels (default: {PATCH[3]} in 3D, {PATCH[2]} in 2D)")
    add(
        "--case-share", type=float, default=default.case_share, metavar="SHARE",
        help="with --cases and --anatomies: fraction of the samples from --cases (default: %(default)s)",
    )  # fmt: skip
    add(
        "--scan-share", type=float, default=default.scan_share, metavar="SHARE",
        help="fraction of the samples from --scans (default: %(default)s)",
    )  # fmt: skip
    add(
        "--learning-rate", type=float,
        help=f"default: the network's own, mostly {LEARNING_RATE:g}; {FINE_TUNING_RATE:g} with --start",
    )  # fmt: skip
    add(
        "--loss", choices=LOSSES, default=default.loss,
        help="dice-topk is nnU-Net's with the hardest tenth of the voxels; choose the threshold anew",
    )  # fmt: skip
    add("--schedule", choices=SCHEDULES, default=default.schedule, help="of the learning rate")
    add(
        "--precision", choices=PRECISIONS, default=default.precision,
        help="auto: bfloat16 on GPUs and on CPUs with instructions for it",
    )  # fmt: skip
    add("--seed", type=int, default=default.seed)
    add(
        "--minutes", type=float, dest="max_minutes", default=default.max_minutes, metavar="MINUTES",
        help="time limit; repeat the command to continue",
    )  # fmt: skip
    add("--save-every", type=int, default=default.save_every, metavar="STEPS", help="interval of saved states")
    add(
        "--refresh", type=int, dest="refresh_interval", default=default.refresh_interval, metavar="SAMPLES",
        help="interval of new scenes",
    )  # fmt: skip
    add(
        "--workers", type=int, default=default.workers, metavar="N",
        help="processes that draw samples ahead (default: %(default)s, in the loop); a GPU needs all cores",
    )  # fmt: skip
    add(
        "--reuse", type=int, default=default.reuse, metavar="TIMES",
        help="draw each sample several times, flipped and with other intensities (default: %(default)s): a GPU learns "
        "faster than a CPU simulates",
    )  # fmt: skip
    add(
        "--replay-buffer", type=int, default=default.replay_buffer, metavar="SAMPLES",
        help="with --reuse: samples kept on the device (default: %(default)s; 3 MB each in 3D)",
    )  # fmt: skip
    add(
        "--simulate-on", choices=SIMULATE_ON, default=default.simulate_on,
        help="device: simulate where the network is (other random numbers than on the CPU)",
    )  # fmt: skip
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")


def run(args: argparse.Namespace) -> int:
    """Trains until the last step or the time limit and prints the result as JSON."""
    from pvs_model.inference.device import choose_device
    from pvs_model.nets.text import find_encoder
    from pvs_model.training.distributed import init_distributed
    from pvs_model.training.ensemble import continue_from_copy, plan_stages, train_ensemble
    from pvs_model.training.segmentation import train

    encoder, model = args.encoder or find_encoder(), MODELS[args.network]
    if encoder is None:
        raise PVSError("--encoder: expected the folder of a BERT encoder, got none, and none is installed")
    _check(args, model.config)
    if args.ensemble is not None:
        continue_from_copy(args.output)
    training = _training_config(args, model)
    if args.start is not None:
        _check_start(args.start, args.network, model.config)
    with init_distributed(choose_device(args.device)) as (context, device):
        if not context.is_first:
            logging.getLogger().setLevel(logging.WARNING)  # one process logs for all
        data = _load_data(args, model.config)
        if args.ensemble is not None:
            stages = plan_stages(training, args.ensemble, args.member_steps)
            print(json.dumps(train_ensemble(model.config, stages, data, args.output, encoder, device, args.start)))
            return 0
        result = train(model.config, training, data, args.output, encoder, device, args.start, context)
        if context.is_first:
            print(json.dumps(result))
    return 0


def _training_config(args: argparse.Namespace, model: ModelSpec) -> TrainingConfig:
    """The user's options, and what the network prescribes."""
    prescribed: dict[str, Any] = dict(model.training) | (FINE_TUNING if args.start else {})
    options = {f.name: getattr(args, f.name) for f in fields(TrainingConfig) if hasattr(args, f.name)}
    options["patch"] = _patch(args, model.config)
    if options.pop("learning_rate") is not None:
        prescribed["learning_rate"] = args.learning_rate
    return TrainingConfig(**{**options, **prescribed})


def _patch(args: argparse.Namespace, network: NetworkConfig) -> int:
    return PATCH[network.dimensions] if args.patch is None else int(args.patch)


def _check(args: argparse.Namespace, network: NetworkConfig) -> None:
    patch = _patch(args, network)
    divisor = 16 if network.architecture != "graph_fusion" else 2 ** (len(network.widths) - 1)
    if patch < 2 * divisor or patch % divisor or args.batch < 1 or args.steps < 1:
        raise PVSError(
            f"--patch, --batch, --steps: expected a multiple of {divisor} that is at least {2 * divisor}, and at "
            f"least 1 for the others, got {patch}, {args.batch}, {args.steps}"
        )
    if not 0 <= args.case_share <= 1 or not 0 <= args.scan_share < 1 or args.workers < 0:
        raise PVSError(
            "--case-share, --scan-share, --workers: expected 0 to 1, 0 to 1, and at least 0, "
            f"got {args.case_share}, {args.scan_share}, {args.workers}"
        )
    if args.ensemble is not None and (args.ensemble < 2 or args.member_steps < 1 or args.held_out is None):
        raise PVSError(
            "--ensemble, --member-steps, --held-out: expected at least 2 members of at least 1 step, and label maps "
            f"to hold out, got {args.ensemble}, {args.member_steps}, {args.held_out}"
        )
    if args.save_every < 1 or args.refresh_interval < 1:
        raise PVSError(
            f"--save-every, --refresh: expected at least 1 each, got {args.save_every}, {args.refresh_interval}"
        )
    if args.reuse < 1 or args.replay_buffer < args.batch:
        raise PVSError(
            f"--reuse, --replay-buffer: expected at least 1, and at least the batch, got {args.reuse}, "
            f"{args.replay_buffer}"
        )
    if args.cases and (network.view or network.regions):
        raise PVSError(
            f"--cases with --network {args.network}: expected a network of slices as acquired or of volumes, without "
            "a region channel; others are trained on simulation alone"
        )


def _check_start(path: Path, name: str, network: NetworkConfig) -> None:
    """Checks that weights to begin from belong to the network.

    Raises:
        WeightsError: They are missing or differ.
    """
    from pvs_model.nets import checkpoint
    from pvs_model.nets.widen import can_widen

    if not path.is_file():
        raise WeightsError(f"{path}: expected a file of weights, got none")
    try:
        stored = NetworkConfig.from_json(checkpoint.read_metadata(path)[checkpoint.CONFIG_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: expected the weights of a network that train wrote, got others") from error
    own, other = asdict(network), asdict(stored)
    differing = [key for key in own if own[key] != other[key]]
    if differing and not can_widen(stored, network):
        differences = ", ".join(f"{key} {other[key]} instead of {own[key]}" for key in differing[:3])
        matching = [model.name for model in MODELS.values() if model.config == stored]
        hint = f"; use --network {matching[0]} for them" if matching else ""
        raise WeightsError(f"{path}: expected weights of the network {name}, got those of another: {differences}{hint}")


def _load_data(args: argparse.Namespace, network: NetworkConfig) -> FoldData:
    """Training and validation data of the fold."""
    from pvs_model.datasets.label_maps import find_label_maps, load_head_model
    from pvs_model.datasets.labelled_cases import LabelledCase, load_cases
    from pvs_model.training.sampling import FoldData, split

    if args.anatomies is None and args.cases is None:
        raise PVSError("--anatomies, --cases: expected label maps to simulate from, labelled cases, or both; got none")
    if args.scans is not None and args.anatomies is None:
        raise PVSError("--scans: expected --anatomies as well: real scans are mixed with simulated samples; got none")
    used: list[Path] = []
    held_out: list[Path] = []
    if args.anatomies is not None and args.held_out is not None:
        used, held_out = find_label_maps(args.anatomies), find_label_maps(args.held_out)
        names = {path.name for path in held_out}
        used = [path for path in used if path.name not in names]
        if not used and args.cases is None:
            raise PVSError(
                f"--anatomies {args.anatomies}: expected label maps besides those of --held-out {args.held_out}, got "
                "the same ones only"
            )
    elif args.anatomies is not None:
        used, held_out = split(find_label_maps(args.anatomies), args.fold, args.folds, "label maps")
    cases: list[LabelledCase] = []
    held_out_cases: list[LabelledCase] = []
    if args.cases is not None:
        usable = load_cases(args.cases, network, args.cache, default_weights())
        cases, held_out_cases = split(usable, args.fold, args.folds, "labelled cases")
    scans = []
    if args.scans is not None:
        from pvs_model.training.real_scan_patches import load_unlabelled_scans

        scans = load_unlabelled_scans(args.scans, default_weights(), args.cache)
    return FoldData(
        anatomies=[load_head_model(path, args.cache) for path in used],
        held_out_anatomies=[load_head_model(path, args.cache) for path in held_out],
        cases=cases,
        held_out_cases=held_out_cases,
        scans=scans,
        fold=(args.fold, args.folds) if args.held_out is None or args.cases is not None else None,
    )
