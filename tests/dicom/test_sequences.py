"""Which sequence a series is, by its header alone, and which series of a study is used."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from pvs_model.dicom import sequences
from pvs_model.dicom.headers import Series, Study
from pvs_model.dicom.sequences import recognise, select
from pvs_model.errors import LayoutError

#: Protocols of the three vendors: (description, header) by the sequence they are.
KNOWN: list[tuple[str | None, str, dict[str, Any]]] = [
    ("T1w", "t1_mprage_sag_p2_iso", {"pulse": "gradient", "repetition_ms": 2300, "echo_ms": 2.98, "inversion_ms": 900}),
    ("T1w", "Sag BRAVO", {"pulse": "gradient", "repetition_ms": 8.2, "echo_ms": 3.2, "inversion_ms": 450}),
    ("T1w", "3D TFE", {"pulse": "gradient", "repetition_ms": 7.9, "echo_ms": 3.5}),
    ("T1w", "Ax T1", {"pulse": "spin", "repetition_ms": 550, "echo_ms": 12}),
    ("T1w", "Ax T1 FLAIR", {"pulse": "spin", "repetition_ms": 2200, "echo_ms": 20, "inversion_ms": 860}),
    ("T1w", "t1_fl2d_tra", {"pulse": "gradient", "repetition_ms": 250, "echo_ms": 2.5}),
    ("T2w", "t2_tse_tra", {"pulse": "spin", "repetition_ms": 6000, "echo_ms": 100}),
    ("T2w", "Sag CUBE", {"pulse": "spin", "repetition_ms": 2500, "echo_ms": 85, "inversion_ms": 0}),
    ("T2w", "", {"pulse": "spin", "repetition_ms": 3200, "echo_ms": 408}),
    ("FLAIR", "t2_spc_da-fl_sag", {"pulse": "spin", "repetition_ms": 5000, "echo_ms": 388, "inversion_ms": 1800}),
    ("FLAIR", "", {"pulse": "spin", "repetition_ms": 9000, "echo_ms": 120, "inversion_ms": 2500}),
    ("FLAIR", "Ax FLAIR", {"pulse": "spin", "repetition_ms": 9000, "echo_ms": 120}),
    ("T2w", "AX T2", {}),
    (None, "PD", {"pulse": "spin", "repetition_ms": 2500, "echo_ms": 15}),
    (None, "stir", {"pulse": "spin", "repetition_ms": 4000, "echo_ms": 70, "inversion_ms": 160}),
    (None, "gre", {"pulse": "gradient", "repetition_ms": 620, "echo_ms": 20}),
    (None, "swi3d", {"pulse": "gradient", "repetition_ms": 28, "echo_ms": 20}),
    (None, "tof", {"pulse": "gradient", "repetition_ms": 21, "echo_ms": 3.4}),
    (None, "gre_field_mapping", {"pulse": "gradient", "repetition_ms": 40, "echo_ms": 4.9}),
    (None, "t2_ciss", {"pulse": "gradient", "repetition_ms": 8, "echo_ms": 3.7}),
    (None, "ep2d_diff", {"pulse": "echo-planar", "repetition_ms": 8000, "echo_ms": 90}),
    (None, "mp2rage_INV1", {"pulse": "gradient", "repetition_ms": 5000, "echo_ms": 2.9, "inversion_ms": 700}),
    (None, "t1_mprage_post_gd", {"pulse": "gradient", "repetition_ms": 2300, "echo_ms": 3, "inversion_ms": 900}),
    (None, "t1", {"pulse": "spin", "repetition_ms": 550, "echo_ms": 12, "agent": "Gadovist"}),
    (None, "t1", {"pulse": "spin", "repetition_ms": 6000, "echo_ms": 100}),
    (None, "t2", {"image_type": ("DERIVED", "PRIMARY", "ADC")}),
    (None, "t2", {"modality": "CT"}),
    (None, "t2", {"problem": "3 slices in space"}),
    (None, "series 7", {}),
]


@pytest.mark.parametrize(("sequence", "description", "header"), KNOWN, ids=[f"{k[1]}-{k[0]}" for k in KNOWN])
def test_protocols_of_vendors(sequence: str | None, description: str, header: dict[str, Any]) -> None:
    assert recognise(Series("1.2", description=description, **header))[0] == sequence


def test_the_examples_are_right() -> None:
    result = doctest.testmod(sequences)
    assert result.attempted > 0 and result.failed == 0


def t2w(uid: str, **header: Any) -> Series:
    return Series(uid, **{"description": f"t2 {uid}", "pulse": "spin", "repetition_ms": 6000, "echo_ms": 100, **header})


def chosen(*series: Series, choices: sequences.Choices = ()) -> dict[str, str]:
    selection = select(Study("1.2", "P", series), choices)
    return {sequence: series.uid for sequence, series in selection.chosen.items()}


def test_originals_come_before_reformatted_images() -> None:
    derived = ("DERIVED", "SECONDARY", "MPR")
    assert chosen(t2w("1", image_type=derived), t2w("2")) == {"T2w": "2"}
    assert chosen(t2w("1", image_type=derived)) == {"T2w": "1"}


def test_a_choice_narrows_what_qualifies() -> None:
    other = Series("3", description="unknown", echo_ms=40, repetition_ms=1400)
    series = (t2w("1"), t2w("2", description="t2 tra"), other)
    with pytest.raises(LayoutError, match=r"^expected one T2w series, got 0 't2 1' \(1\); 0 't2 tra' \(2\): choose"):
        chosen(*series)
    assert chosen(*series, choices=[("T2w", "2")]) == {"T2w": "2"}
    assert chosen(*series, choices=[("T2w", "*TRA")]) == {"T2w": "2"}
    assert chosen(*series, choices=[("T2w", "none"), ("T1w", "3")]) == {"T1w": "3"}  # whatever its header says
    # A pattern that matches nothing in this study leaves it as it is: it may be for another one.
    assert chosen(t2w("1"), choices=[("T2w", "*cor")]) == {"T2w": "1"}
    with pytest.raises(LayoutError, match="expected a T1w, T2w or FLAIR series, got 0 't2 1' .* choose with"):
        chosen(t2w("1"), choices=[("T2w", "none")])


def test_one_echo_of_a_series_is_the_sequence() -> None:
    """Proton density and T2w of one series: its UID names both, the timing one of them."""
    first, second = t2w("1", echo_ms=15.0), t2w("1", echo_ms=90.0)
    for choices in ([], [("T2w", "1")]):
        assert select(Study("1.2", "P", (first, second)), choices).chosen == {"T2w": second}


def test_what_is_chosen_must_be_a_volume() -> None:
    with pytest.raises(LayoutError, match="expected a volume in series 0 't2 1' .1., got 3 slices in space"):
        chosen(t2w("1", problem="3 slices in space"), choices=[("T2w", "1")])
