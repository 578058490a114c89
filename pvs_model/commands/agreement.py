"""Compare volumes with visual scores, and repeated measurements with each other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pvs_model import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``agreement``."""
    parser.add_argument("table", type=Path, metavar="FILE", help="CSV: subject, volume, score, region, repeat")
    parser.add_argument("--volume", metavar="COLUMN", help="the column of volumes or counts (default: volume)")
    parser.add_argument("--group", action="append", default=[], metavar="COLUMN", help="also within each of its values")
    parser.add_argument("--json", type=Path, metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Prints the agreement and writes it if requested."""
    from pvs_model.evaluation.rater_agreement import agree, read_measurements

    result = agree(read_measurements(args.table, args.group, args.volume))
    print(result.text())
    if args.json:
        files.write_text(args.json, json.dumps(result.as_json(), indent=1, allow_nan=False) + "\n")
    return 0
