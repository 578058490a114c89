"""What a prompt for a region changes: the whole answer against the reference of that region.

    python -m benchmarks.prompts [NAME=]SETS/NAME ... [--weights DIR]

Per set and region: Dice of the answer to the region's prompt and of the answer to "the whole brain", both without
limiting the mask to the region, and the fraction of the region's answer that lies inside the region.
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
        values: dict[str, list[tuple[float, float, float]]] = {short: [] for short in REGIONS}
        for case in load_cases(folder, args.count, anatomy_weights=args.weights):
            ensemble = weights.ensemble(choose_configuration(case.prepared.grid))
            masks = {}
            for short, region in {"brain": "brain", **REGIONS}.items():
                text = weights.embed(prompt(case.sequences, case.thickness_mm, region))
                probability = predict_probability(case.prepared, ensemble, text, device, backend="auto")
                masks[short] = mask_of(case.prepared, probability, ensemble.threshold)
            for short, rows in values.items():
                reference = case.reference & case.regions[short]
                if reference.any():
                    answer = masks[short]
                    inside = np.count_nonzero(answer & case.regions[short]) / max(1, np.count_nonzero(answer))
                    rows.append((dice(answer, reference), dice(masks["brain"], reference), inside))
        for short, rows in values.items():
            cells = [format_score(mean(row[k] for row in rows)) for k in range(3)]
            lines.append([name, REGIONS[short], str(len(rows)), *cells])
    print(markdown(["set", "region", "cases", "its prompt", "the whole brain's prompt", "inside the region"], lines))


if __name__ == "__main__":
    main()
