"""The one matcher from file names to sequences."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvs_model.layouts.names import EXTENSIONS, image_stem, sequence_of
from pvs_model.types import SEQUENCES

SPELLINGS = {
    "T1w": ["T1w", "T1", "t1_mprage", "T1-weighted", "3DT1", "t1_3d", "T1_SPGR", "mprage",
            "MP-RAGE", "t1n", "T1_0.88mm_with_skull", "T1_orig_with_skull",
            "T1_norm", "T1_lesion_filled",
            "T1_in_T2space", "t1_to_flair",
            "t1_mprage_sag_p2_iso_ND", "Sag_T1_FSPGR_BRAVO", "sT1W_3D_TFE", "WIP_T1W_3D_TFE_SENSE", "t1_fl2d_tra",
            "T1_GRE", "T1_pre_contrast", "t1_ohne_KM", "tfl3d1_16ns"],
    "T2w": ["T2w", "T2", "t2_tse", "T2_1x1x2mm_with_skull", "t2_space_sag", "T2toT1", "T2_on_T1",
            "sub-01_space-T1w_T2w", "sub-BG01_acq-T1like_run-1_T2w",
            "Ax_T2_FRFSE", "AX_T2_PROPELLER", "t2_blade_tra", "T2W_TSE", "t2_spc_sag_p2", "T2.prenorm"],
    "FLAIR": ["FLAIR", "T2-FLAIR", "T2FLAIR", "flair", "T2_FLAIR", "t2w_flair", "3D_FLAIR",
              "myFLAIR", "t2f", "t2_tirm_tra_dark-fluid", "flair2t1",
              "FLAIR_0.75x0.75x5.5mm_with_skull",
              "7_t2_spc_da-fl_sag", "t2_spc_ir_sag_p2", "t2_blade_tra_dark-fluid", "Sag_CUBE_T2_FLAIR", "spcir_258ns",
              "WIP_FLAIR_3D_VISTA", "t2_spc_da-fl_irprep_sag_p2_iso"],
}  # fmt: skip
NEITHER = [
    "T10", "T12_x", "PVS", "case_PVS", "T1_mask", "T2w_seg", "FLAIR_label", "T1_labels", "x_BG",
    "x_CSO", "case_pred", "T1_brainmask", "T1_dseg", "FLAIR_lesion", "T1map", "T1_map", "T2star",
    "T2*", "T2_star", "T1c", "T1ce", "T1_Gd", "T1_T2_ratio", "T1_FLAIR", "DWI", "scan", "aT1b",
    "t2_fl2d_tra_hemo", "t2_swi3d_tra", "T2_GRE", "T2W_FFE", "AX_T2_GRE", "t2gre", "SWAN_T2", "t2_stir_cor",
    "t1_tra_KM", "T1+C", "Ax_T1_+C", "T1_C+", "AX_T1_POST", "t1_vibe_tra_KM", "T1_BRAVO_GAD", "T1_post_contrast",
    "t2_tse_ir", "FLAIR_KM", "AAHead_Scout_T1", "T1_localizer", "ep2d_diff_t2",
]  # fmt: skip


@pytest.mark.parametrize(
    ("stem", "sequence"),
    [(stem, sequence) for sequence, stems in SPELLINGS.items() for stem in stems],
)
def test_real_world_names(stem: str, sequence: str) -> None:
    assert sequence_of(f"{stem}.nii.gz") == sequence
    assert sequence_of(f"Dr. Müller 7_{stem}.mha") == sequence


@pytest.mark.parametrize("stem", NEITHER)
def test_names_of_none_of_the_three(stem: str) -> None:
    assert sequence_of(f"{stem}.nii.gz") is None


def test_extension_must_be_an_image() -> None:
    assert all(sequence_of(f"T1{extension}") == "T1w" for extension in EXTENSIONS)
    assert sequence_of("T1.NII.GZ") == "T1w"
    assert [sequence_of(name) for name in ("T1.json", "T1", "T1.nii.gz.bak", ".nii")] == [None] * 4
    assert sequence_of("._T1.nii.gz") is None  # a resource fork that macOS leaves behind


def test_the_case_name_says_nothing() -> None:
    assert sequence_of("BG_T1study_T2w.nii.gz", case="BG_T1study") == "T2w"
    assert sequence_of("T2_T1.nii", case="T2") == "T1w"
    assert sequence_of("T1_1mm.nii", case="T1") == "T1w"  # the folder is called by its sequence
    assert sequence_of("T1w.nii", case="T1") == "T1w"
    assert sequence_of("T1_PVS.nii", case="T1") is None


PREFIX = st.text(string.ascii_letters + "0é ü.-", max_size=8).map(lambda text: text.strip())


@given(PREFIX, st.sampled_from(SEQUENCES), st.sampled_from(EXTENSIONS), st.booleans())
def test_a_sequence_at_the_end_is_found(prefix: str, sequence: str, extension: str, upper: bool) -> None:
    # A prefix is a case's name here, and may say anything.
    name = f"{prefix}_{sequence}{extension}" if prefix and prefix[0] != "." else sequence + extension
    detected = sequence_of(name.upper() if upper else name.lower(), case=prefix)
    assert detected == sequence


@given(
    st.sampled_from(["T1", "T2w", "FLAIR"]),
    st.sampled_from(["PVS", "mask", "seg", "label", "BG", "CSO", "pred"]),
    st.booleans(),
    st.sampled_from("_- ."),
)
def test_an_annotation_is_no_sequence(sequence: str, word: str, lower: bool, between: str) -> None:
    word = word.lower() if lower else word
    assert sequence_of(f"x{between}{sequence}{between}{word}.nii.gz") is None
    assert sequence_of(f"x{between}{word}{between}{sequence}.nii.gz") is None


@given(st.text(max_size=20))
def test_any_text_is_judged(text: str) -> None:
    assert sequence_of(text) in (None, *SEQUENCES)
    assert sequence_of(text) == sequence_of(text + "")
    stem = image_stem(text)
    assert stem is None or text.startswith(stem)
