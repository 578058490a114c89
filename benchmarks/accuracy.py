"""Scores of the shipped ensembles on labelled cases, one row per set and region.

    python -m pvs_model simulate --anatomies DIR --protocol NAME --count N --seed 9000 --output SETS/NAME
    python -m benchmarks.accuracy SETS/NAME ... [--sequences T2w] [--json FILE]

Every case is read, prepared and predicted as ``process.py`` does, at the threshold in the manifest. On
simulated cases the result is one on simulated scans. ``--sequences`` drops the others, to see what a missing
one costs; a set whose reference would be dropped is scored on the grid of what is left.
"""

from __future__ import annotations

import numpy as np

from benchmarks.cases import LabelledCase, arguments, cases_of, header, measured, row, sets_of, write_json
from pvs_model.inference.ensemble import Weights
from pvs_model.inference.postprocess import to_mask, without_specks
from pvs_model.inference.predict import choose_device
from pvs_model.nets.text import prompt
from pvs_model.pipeline import network_kind, predict
from pvs_model.types import SEQUENCES, FloatArray


def probability(
    case: LabelledCase,
    weights: Weights,
    device: object,
    region: str = "brain",
    sequences: tuple[str, ...] = SEQUENCES,
    template: int = 0,
    mirror: bool = False,
) -> FloatArray:
    """Probability (x, y, z) of a case, of which only some sequences are shown to the network."""
    from dataclasses import replace

    kept = [name for name in SEQUENCES if name in sequences and name in case.volumes]
    image = np.where(
        np.array([name in kept for name in SEQUENCES])[:, None, None, None], case.prepared.image, np.float32(0)
    )
    shown = replace(case.prepared, image=image)
    text = weights.embed(prompt(kept, max(shown.grid.spacing_mm), region, template))
    return predict(shown, weights.ensemble(network_kind(shown.grid)), text, device, mirror=mirror, backend="auto")


def main() -> None:
    """Segment, score, print."""
    parser = arguments(__doc__)
    parser.add_argument("--sequences", default=",".join(SEQUENCES), help="those shown to the network")
    parser.add_argument("--mirror", action="store_true", help="average over mirror images")
    args = parser.parse_args()
    weights, device = Weights(args.weights), choose_device(args.device)
    shown = tuple(args.sequences.split(","))
    kept: list[dict[str, object]] = []
    print(header("set", "network", "region"))
    for name, folder in sets_of(args.sets).items():
        results: dict[str, list[dict[str, float | None]]] = {}
        for case in cases_of(folder, args.count):
            kind = network_kind(case.prepared.grid)
            threshold = weights.ensemble(kind).threshold
            found = probability(case, weights, device, sequences=shown, mirror=args.mirror)
            mask = to_mask(found, threshold, case.prepared.inside)
            mask = without_specks(mask, float(np.prod(case.prepared.grid.spacing_mm))) > 0
            everywhere = np.ones_like(mask)
            for region, inside in {"CSO": case.regions["CSO"], "BG": case.regions["BG"], "brain": everywhere}.items():
                result = measured(mask & inside, case.truth & inside)
                results.setdefault(region, []).append(result)
                kept.append({"set": name, "case": case.name, "region": region, **result})
        for region, values in results.items():
            print(row((name, kind, region), values), flush=True)
    write_json(args.json, kept)


if __name__ == "__main__":
    main()
