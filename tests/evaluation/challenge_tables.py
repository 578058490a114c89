"""Figures of Tables 5, 6 and 7 of the EPVS challenge's paper (epvs_challenge_2024), typed in: facts, not text.

Written as printed but for one name: ``bear-walker`` of Tables 6 and 7 is the ``bear_walker`` of Table 5.
"""

from __future__ import annotations

from pvs_model.evaluation.ranking import Score

#: Per team: recall, precision, DSC and AVD in CSO, then in BG, each as mean and printed rank.
_TABLE_6 = """\
BIG_AEHRC   0.527  2   0.713  4   0.545  1   0.235  1   0.697  1   0.750  5   0.678  1   0.243  2
thefridge   0.316  6   0.804  1   0.429  4   0.500  5   0.527  6   0.841  1   0.631  2   0.281  5
nic-vicorob 0.385  5   0.749  2   0.469  2   0.392  4   0.527  5   0.747  6   0.621  3   0.272  4
HufsAim     0.530  1   0.530  9   0.457  3   0.358  2   0.627  2   0.562  9   0.579  5   0.269  3
CCNU_CS_24  0.397  4   0.629  7   0.420  5   0.374  3   0.601  4   0.639  8   0.593  4   0.221  1
SHIVA       0.435  3   0.676  6   0.382  6   0.507  6   0.623  3   0.820  2   0.480  7   0.713  9
AbdulQayyum 0.207  8   0.736  3   0.269  7   0.736  8   0.397  8   0.774  3   0.486  6   0.542  7
bear_walker 0.219  7   0.617  8   0.222  8   0.552  7   0.428  7   0.730  7   0.397  9   0.312  6
umb_zw      0.186  9   0.693  5   0.219  9   0.791  9   0.361  9   0.760  4   0.421  8   0.608  8
GDVL        0.000 10   0.001 10   0.000 10   0.998 10   0.000 10   0.000 10   0.000 10   0.999 10
"""
_TABLE_7 = """\
BIG_AEHRC   0.316  3   0.530  1   0.326  1   0.532  1   0.514  1   0.621  1   0.441  1   0.521  1
CCNU_CS_24  0.353  1   0.365  5   0.291  2   0.587  3   0.409  3   0.494  4   0.347  2   0.606  4
SHIVA       0.316  4   0.405  3   0.269  3   0.648  4   0.425  2   0.511  3   0.344  3   0.685  6
HufsAim     0.331  2   0.354  6   0.262  4   0.543  2   0.373  4   0.441  5   0.331  4   0.589  2
bear_walker 0.169  5   0.412  2   0.162  6   0.697  5   0.345  5   0.512  2   0.278  6   0.596  3
nic-vicorob 0.141  6   0.388  4   0.171  5   0.793  6   0.244  6   0.410  6   0.295  5   0.661  5
GDVL        0.000  7   0.000  7   0.000  7   1.000  7   0.000  7   0.000  7   0.000  7   1.000  7
"""

#: Table 5: gross rank in the validation and the test phase, and final rank, in its order.
TABLE_5: dict[str, tuple[float, float | None, float | None]] = {
    "BIG_AEHRC": (2.25, 1.00, 1.625),
    "CCNU_CS_24": (4.75, 2.75, 3.750),
    "SHIVA": (4.75, 3.25, 4.000),
    "HufsAim": (4.50, 4.00, 4.250),
    "nic-vicorob": (3.75, 5.50, 4.625),
    "bear_walker": (7.25, 4.50, 5.875),
    "GDVL": (10.00, 7.00, 8.500),
    "thefridge": (3.75, None, None),
    "AbdulQayyum": (6.25, None, None),
    "umb_zw": (7.75, None, None),
}


def _typed(table: str, phase: str) -> tuple[list[Score], dict[tuple[str, str], tuple[int, ...]]]:
    scores, ranks = [], {}
    for line in table.splitlines():
        team, *figures = line.split()
        means, places = [float(x) for x in figures[0::2]], [int(x) for x in figures[1::2]]
        for region, at in (("CSO", 0), ("BG", 4)):
            scores.append(Score(team, phase, region, None, *means[at : at + 4]))
            ranks[team, region] = tuple(places[at : at + 4])
    return scores, ranks


_VALIDATION, VALIDATION_RANKS = _typed(_TABLE_6, "validation")
_TEST, TEST_RANKS = _typed(_TABLE_7, "test")
#: All means of Tables 6 and 7.
SCORES = [*_VALIDATION, *_TEST]
#: The ranks in brackets, by phase, then team and region: recall, precision, DSC, AVD.
PRINTED_RANKS = {"validation": VALIDATION_RANKS, "test": TEST_RANKS}
