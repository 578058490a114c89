"""Copy trained networks into a weights folder and write its manifest."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pvs_model.config import TRAINED_RANGE
from pvs_model.errors import PVSError
from pvs_model.inference.settings import COMBINE, EnsembleSettings
from pvs_model.inference.weights import missing_parts

#: Overlap of windows from which more gains no Dice (docs/performance.md).
OVERLAP = {"3d": 0.125, "2d": 0.25}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``release``."""
    add = parser.add_argument
    add("members", type=Path, nargs="*", help="network.safetensors of each fold")
    add(
        "--anatomy", type=Path, metavar="FILE",
        help="anatomy.safetensors of an anatomy training, to copy instead of an ensemble (with --data and --scores)",
    )  # fmt: skip
    add("--network", choices=("3d", "2d"), help="scans that it is for (default: those that the networks read)")
    add("--weights", type=Path, default=Path("weights"))
    add("--threshold", type=float, help="probability that a PVS reaches somewhere (default: mean of the networks' own)")
    add("--low-threshold", type=float, help="probability that each of its voxels reaches (default: --threshold)")
    add(
        "--window",
        type=int,
        help="side of the sliding window (default: 64 in 3D, 192 in 2D, or larger training patches)",
    )
    add("--overlap", type=float, help="of neighbouring windows (default: 0.125 in 3D, 0.25 in 2D)")
    add(
        "--groups", nargs="+", metavar="NAME",
        help="group of each network; averaged within (default: all in one)",
    )  # fmt: skip
    add("--combine", choices=COMBINE, default=COMBINE[0], help="of the groups (default: mean)")
    add(
        "--mirrored", action=argparse.BooleanOptionalAction, default=True,
        help="each network sees another mirror image of its windows, which costs nothing (default: yes)",
    )  # fmt: skip
    add("--data", default="simulated", help="description of the training data")
    add("--scores", type=Path, help="JSON file of measured scores")


def run(args: argparse.Namespace) -> int:
    """Releases an ensemble or an anatomy network, and warns about what the weights folder still lacks."""
    if bool(args.members) == (args.anatomy is not None):
        raise PVSError("expected the networks of an ensemble, or --anatomy FILE alone")
    try:
        scores = json.loads(args.scores.read_text()) if args.scores else {}
    except (OSError, ValueError) as error:
        raise PVSError(f"{args.scores}: expected a JSON file of scores, got {error}") from error
    for path in args.members or [args.anatomy]:
        if not path.is_file():
            raise PVSError(f"{path}: expected the weights of a trained network, got no such file")
    line = _release_ensemble(args, scores) if args.members else _release_anatomy(args, scores)
    for missing in missing_parts(args.weights):
        print(f"warning: {missing}", file=sys.stderr)
    print(f"{args.weights}: {line}")
    return 0


def _release_anatomy(args: argparse.Namespace, scores: dict[str, Any]) -> str:
    from pvs_model.training.release import release_anatomy

    release_anatomy(args.weights, args.anatomy, args.data, scores)
    return "anatomy network"


def _release_ensemble(args: argparse.Namespace, scores: dict[str, Any]) -> str:
    from pvs_model.training.release import add_anatomy, defaults_of, release

    if args.groups is not None and len(args.groups) != len(args.members):
        raise PVSError(f"--groups: expected one for each of {len(args.members)} networks, got {len(args.groups)}")
    defaults = defaults_of(args.members)
    configuration = args.network or defaults.configuration
    threshold = defaults.threshold if args.threshold is None else args.threshold
    if threshold is None:
        raise PVSError("--threshold: expected a probability, since the files of the networks hold none")
    overlap = OVERLAP[configuration] if args.overlap is None else args.overlap
    window = args.window or defaults.roi_size
    settings = EnsembleSettings(
        threshold, window, overlap, *TRAINED_RANGE[configuration], args.combine, args.low_threshold
    )
    release(args.weights, configuration, args.members, settings, args.data, scores, args.groups, args.mirrored)
    add_anatomy(args.weights)
    return f"{configuration} ensemble of {len(args.members)}, threshold {threshold}, window {window}"
