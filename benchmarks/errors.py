"""Where the errors of an ensemble lie: missed PVS, borders of PVS, PVS that are not labelled, and everything else.

    python -m benchmarks.errors [NAME=]SETS/NAME ... [--weights DIR]

Per set, in voxels relative to those of the reference: of missed PVS ("missed") and of detected PVS outside the mask
("too small"); of clusters of the mask that touch a reference PVS ("too large"), that touch none but a PVS too faint
to be labelled ("unlabelled PVS"), and others ("no PVS"). Below each, Dice without these errors. Only
simulated cases have unlabelled PVS.
"""

from __future__ import annotations

import numpy as np

from benchmarks.cases import Bool, argument_parser, format_score, load_cases, mask_of, mean, parse_sets
from pvs_model.evaluation.tables import markdown
from pvs_model.inference.device import choose_device
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_probability
from pvs_model.preprocessing.network_grid import choose_configuration
from pvs_model.volume.components import label_components

MISSING, ADDED = ("missed", "too small"), ("too large", "unlabelled PVS", "no PVS")


def errors(mask: Bool, reference: Bool, pvs: Bool) -> dict[str, int]:
    """Counts the wrong voxels of a mask by their class.

    Args:
        mask: bool (x, y, z).
        reference: bool (x, y, z), labelled PVS.
        pvs: bool (x, y, z), voxels with PVS, labelled or not.

    Example:
        >>> mask, reference = np.zeros((2, 9, 1, 1), bool)
        >>> reference[[0, 1, 4]], mask[[1, 2, 7]] = True, True
        >>> errors(mask, reference, reference)
        {'missed': 1, 'too small': 1, 'too large': 1, 'unlabelled PVS': 0, 'no PVS': 1}
    """

    def touching(components: Bool, other: Bool) -> Bool:
        labels, sizes = label_components(components)
        touched = np.bincount(labels[other], minlength=len(sizes)) > 0
        touched[0] = False
        return np.asarray(touched[labels])

    detected, right, known = touching(reference, mask), touching(mask, reference), touching(mask, pvs)
    classes = (
        reference & ~detected, detected & ~mask, right & ~reference, mask & ~right & known, mask & ~right & ~known,
    )  # fmt: skip
    return {name: int(c.sum()) for name, c in zip((*MISSING, *ADDED), classes, strict=True)}


def main() -> None:
    """Segments every case and prints a row of errors and a row of Dice for each set."""
    args = argument_parser(__doc__).parse_args()
    weights, device = Weights(args.weights), choose_device(args.device)
    lines = []
    for name, folder in parse_sets(args.sets).items():
        shares: list[list[float]] = []
        dices: list[list[float]] = []
        for case in load_cases(folder, args.count, anatomy_weights=args.weights):
            ensemble = weights.ensemble(choose_configuration(case.prepared.grid))
            text = weights.embed(prompt(case.sequences, case.thickness_mm))
            probability = predict_probability(case.prepared, ensemble, text, device, backend="auto")
            mask = mask_of(case.prepared, probability, ensemble) & ~case.ignore
            reference = case.reference & ~case.ignore
            if not reference.any():
                continue
            wrong = errors(mask, reference, case.maps["FLUID"] > 0 if case.maps else reference)
            total, hits = int(reference.sum()), int((mask & reference).sum())
            shares.append([hits / total, *(count / total for count in wrong.values())])
            score = [2 * hits / (int(mask.sum()) + total)]
            # A missing voxel that is added is right, and one that is removed is in neither.
            for key, count in wrong.items():
                right, voxels = (hits + count, count) if key in MISSING else (hits, -count)
                score.append(2 * right / (int(mask.sum()) + total + voxels))
            dices.append(score)
        for title, rows in (("voxels", shares), ("Dice", dices)):
            cells = [format_score(mean(row[k] for row in rows)) for k in range(1 + len(MISSING + ADDED))]
            lines.append([name, str(len(rows)), title, *cells])
    columns = ["right / as it is", *MISSING, *ADDED]
    print(markdown(["set", "cases", "", *columns], lines))


if __name__ == "__main__":
    main()
