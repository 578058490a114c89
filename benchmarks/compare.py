"""Two JSON files of ``benchmarks.run`` or ``benchmarks.windows``, figure by figure.

    python -m benchmarks.compare BEFORE.json AFTER.json

Only files of one machine, measured while it did nothing else, say anything about a change; to judge a change of a few
per cent, measure both ways in one run instead.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pvs_model.errors import PVSError


def read(path: Path) -> dict[str, Any]:
    """A benchmark's file.

    Raises:
        PVSError: when it is none.
    """
    try:
        content = json.loads(path.read_text())
        return {"machine": content["machine"], "results": dict(content["results"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PVSError(f"{path}: expected the JSON file of a benchmark, found {error!r}") from error


def compared(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, float, float, float]]:
    """(row, figure, before, after, after / before) for every figure of the rows that both have."""
    out = []
    for name, row in before["results"].items():
        for key, value in row.items():
            other = after["results"].get(name, {}).get(key)
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, other)) and value > 0:
                out.append((name, key, float(value), float(other), float(other) / float(value)))
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    try:
        before, after = read(args.before), read(args.after)
    except PVSError as error:
        raise SystemExit(f"error: {error}") from None
    if before["machine"] != after["machine"]:
        print(f"Note: other machines ({before['machine']} and {after['machine']}): ratios say nothing about the code.")
    last = None
    for name, key, old, new, ratio in compared(before, after):
        if name != last:
            print(name)
        last = name
        print(f"  {key:<12} {old:>10.2f} {new:>10.2f}   x {ratio:.2f}")
    missing = sorted(set(before["results"]) ^ set(after["results"]))
    if missing:
        print("In one of the files only: " + "; ".join(missing))


if __name__ == "__main__":
    main()
