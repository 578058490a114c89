"""Does the network do what the prompt says? Dice of region prompts against truth limited to that region.

    python -m benchmarks.prompts SETS/NAME ...

Per region: the prompt for that region in the standard words, the same in words that training never saw, and the
constant prompt "the whole brain" (what a network that does not read would give). The whole answer is scored,
not only the part within the region: a network that ignores the prompt pays for everything it marks elsewhere.
"""

from __future__ import annotations

import numpy as np

from benchmarks.accuracy import probability
from benchmarks.cases import arguments, cases_of, mean, sets_of, told, write_json
from pvs_model.evaluation.metrics import dice
from pvs_model.inference.device import choose_device
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import HELD_OUT_TEMPLATES
from pvs_model.preprocessing.network_grid import choose_configuration

ASKED = {"BG": "basal ganglia", "CSO": "centrum semiovale"}


def main() -> None:
    """Predict with each prompt, score, print."""
    args = arguments(__doc__).parse_args()
    weights, device = Weights(args.weights), choose_device(args.device)
    kept = []
    print("| set | truth | constant prompt | region prompt | held-out words | share of the answer in the region |")
    print("|---|---|---|---|---|---|")
    for name, folder in sets_of(args.sets).items():
        table: dict[str, list[list[float]]] = {key: [] for key in ASKED}
        for case in cases_of(folder, args.count):
            threshold = weights.ensemble(choose_configuration(case.prepared.grid)).threshold
            constant = (probability(case, weights, device) >= threshold) & case.prepared.foreground
            for key, region in ASKED.items():
                truth = case.within(key)
                answer = (probability(case, weights, device, region) >= threshold) & case.prepared.foreground
                unseen = [
                    (probability(case, weights, device, region, template=k) >= threshold) & case.prepared.foreground
                    for k in HELD_OUT_TEMPLATES
                ]
                share = float((answer & case.regions[key]).sum() / answer.sum()) if answer.any() else float("nan")
                values = [dice(constant, truth), dice(answer, truth), float(np.mean([dice(u, truth) for u in unseen]))]
                table[key].append([*values, share])
                kept.append({"set": name, "case": case.name, "region": key, "values": [*values, share]})
        for key, rows in table.items():
            cells = [mean(column) for column in zip(*rows, strict=True)]
            print(f"| {name} | {key} | " + " | ".join(map(told, cells)) + " |", flush=True)
    write_json(args.json, kept)


if __name__ == "__main__":
    main()
