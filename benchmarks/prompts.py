"""What a prompt for a region changes: the whole answer against the reference of that region.

    python -m benchmarks.prompts [NAME=]SETS/NAME ... [--weights DIR]

Per set and region: Dice of the answer to the region's prompt and of the answer to "the whole brain", both without
limiting the mask to the region, and the fraction of the region's answer that lies inside the region; then both for the
mask of a run, which keeps the components inside the region of the anatomy network.
"""

from __future__ import annotations

import numpy as np

from benchmarks.cases import argument_parser, format_score, load_cases, mask_of, mean, parse_sets
from pvs_model.evaluation.metrics import dice
from pvs_model.evaluation.tables import markdown
from pvs_model.inference.device import choose_device
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_probability
from pvs_model.preprocessing.network_grid import choose_configuration

#: Regions of prompts by the names of their masks.
REGIONS = {"CSO": "centrum semiovale", "BG": "basal ganglia"}


def main() -> None:
    """Segments each case with three prompts and scores the answers."""
    args = argument_parser(__doc__).parse_args()
    weights, device = Weights(args.weights), choose_device(args.device)
    lines = []
    for name, folder in parse_sets(args.sets).items():
        values: dict[str, list[tuple[float, ...]]] = {short: [] for short in REGIONS}
        for case in load_cases(folder, args.count, anatomy_weights=args.weights):
            ensemble = weights.ensemble(choose_configuration(case.prepared.grid))
            masks, limited = {}, {}
            for short, region in {"brain": "brain", **REGIONS}.items():
                text = weights.embed(prompt(case.sequences, case.thickness_mm, region))
                probability = predict_probability(case.prepared, ensemble, text, device, backend="auto")
                masks[short] = mask_of(case.prepared, probability, ensemble)
                limited[short] = mask_of(case.prepared, probability, ensemble, region)
            for short, rows in values.items():
                inside = case.regions[short]
                reference = case.reference & inside
                if reference.any():
                    answers = (masks[short], limited[short])
                    shares = [np.count_nonzero(x & inside) / max(1, np.count_nonzero(x)) for x in answers]
                    scores = [dice(x, reference) for x in (masks[short], masks["brain"], limited[short])]
                    rows.append((*scores[:2], shares[0], scores[2], shares[1]))
        for short, rows in values.items():
            cells = [format_score(mean(row[k] for row in rows)) for k in range(5)]
            lines.append([name, REGIONS[short], str(len(rows)), *cells])
    columns = ["its prompt", "the whole brain's prompt", "inside the region", "mask of a run", "of it inside"]
    print(markdown(["set", "region", "cases", *columns], lines))


if __name__ == "__main__":
    main()
