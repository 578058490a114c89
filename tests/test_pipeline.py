"""From scans in any order and spacing to a mask in its place: the geometry between reading and writing.

The networks are replaced by a function of the standardised image: it finds the bright ball of the body
(conftest.py), so a mask that lands elsewhere in space shows an error of geometry.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from pvs_model import cohort, pipeline
from pvs_model.errors import VolumeError, WeightsError
from pvs_model.inference import predict as prediction
from pvs_model.inference.ensemble import Ensemble
from pvs_model.inference.postprocess import to_mask
from pvs_model.pipeline import Segmenter, Settings, network_kind, prepare, slices_last, target_spacing
from pvs_model.types import SEQUENCES, Case, Grid, Volume
from pvs_model.volume import intensity

CPU = torch.device("cpu")
ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
#: As the shipped ensembles' (training/release.py), without networks.
ENSEMBLES = {
    "3d": Ensemble("3d", (), 0.5, 32, 0.25, (0.45, 1.25), (0.45, 2.5)),
    "2d": Ensemble("2d", (), 0.5, 32, 0.25, (0.34, 1.1), (2.5, 8.0)),
}
T1, T2, FLAIR = range(3)


def grid(*spacing_mm: float) -> Grid:
    return Grid((10, 10, 10), np.diag([*spacing_mm, 1.0]))


# ---- prepare -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [p for n in (1, 2, 3) for p in itertools.combinations(SEQUENCES, n)], ids="+".join)
def test_missing_sequences_are_zeros(body: Any, present: tuple[str, ...]) -> None:
    prepared = prepare({name: body.volume(name) for name in present})
    assert prepared.image.shape == (3, *prepared.grid.shape) and prepared.image.dtype == np.float32
    for channel, name in enumerate(SEQUENCES):
        assert prepared.image[channel].any() == (name in present)
    assert prepared.reference == ("T2w" if "T2w" in present else present[0])
    assert prepared.warnings == ()


def test_channels_are_standardised_within_their_head(body: Any) -> None:
    volumes = {name: body.volume(name) for name in SEQUENCES}
    prepared = prepare(volumes)
    for channel, name in enumerate(SEQUENCES):
        head = intensity.foreground(volumes[name].data)
        np.testing.assert_array_equal(prepared.image[channel], intensity.standardise(volumes[name].data, head))
    np.testing.assert_array_equal(prepared.inside, intensity.foreground(volumes["T2w"].data))


def test_the_order_in_which_sequences_come_does_not_matter(body: Any) -> None:
    volumes = {name: body.volume(name) for name in SEQUENCES}
    there, back = prepare(volumes), prepare(dict(reversed(volumes.items())))
    np.testing.assert_array_equal(there.image, back.image)


def test_other_grids_are_brought_onto_the_t2w(body: Any) -> None:
    tilted = {"axes": (2, 0, 1), "signs": (-1, 1, -1), "spacing_mm": (0.8, 1.3, 1.0), "tilt_deg": 15.0}
    moved = prepare({"T1w": body.volume("T1w", **tilted), "T2w": body.volume("T2w")})
    same = prepare({"T1w": body.volume("T1w"), "T2w": body.volume("T2w")})
    assert moved.grid.shape == same.grid.shape
    np.testing.assert_array_equal(moved.grid.affine, body.volume("T2w").affine)
    both = same.inside & (moved.image[T1] != 0)
    assert both.sum() > 0.97 * same.inside.sum()
    within = ndimage.binary_erosion(same.inside, iterations=2)  # the rim is half air on the other grid
    assert np.corrcoef(moved.image[T1][within], same.image[T1][within])[0, 1] > 0.9
    np.testing.assert_array_equal(moved.image[T2], same.image[T2])


def test_series_that_lie_apart_are_refused_by_name(body: Any) -> None:
    away = body.volume("T1w")
    away.affine[0, 3] += 500
    with pytest.raises(VolumeError, match=r"T1w.nii.gz: expected T1w to overlap in space with T2w.nii.gz.* 0%"):
        prepare({"T1w": away, "T2w": body.volume("T2w")})


def test_series_that_overlap_in_part_are_told(body: Any) -> None:
    half = body.volume("FLAIR")
    cut = half.data.shape[2] // 2
    half = replace(half, data=np.ascontiguousarray(half.data[..., :cut]))
    prepared = prepare({"FLAIR": half, "T2w": body.volume("T2w")})
    assert len(prepared.warnings) == 1
    assert "FLAIR covers only" in prepared.warnings[0] and "T2w" in prepared.warnings[0]
    assert prepared.image[FLAIR][..., : cut - 1].any() and not prepared.image[FLAIR][..., cut + 1 :].any()


def test_a_sequence_that_is_empty_where_the_reference_lies_is_left_out(body: Any) -> None:
    flair = body.volume("FLAIR")
    data = np.zeros_like(flair.data)
    data = np.concatenate([data, np.ones_like(data)], axis=2)  # something only above the T2w's box
    prepared = prepare({"FLAIR": replace(flair, data=data), "T2w": body.volume("T2w")})
    assert not prepared.image[FLAIR].any()
    assert any("FLAIR" in warning and "left out" in warning for warning in prepared.warnings)


def test_a_mask_instead_of_a_scan_is_refused(body: Any) -> None:
    scan = body.volume("T2w")
    with pytest.raises(VolumeError, match=r"T2w.nii.gz: expected contrast within the head"):
        prepare({"T2w": replace(scan, data=(scan.data > 0).astype(np.float32))})
    flat = body.volume("T1w")
    prepared = prepare({"T1w": replace(flat, data=(flat.data > 0).astype(np.float32)), "T2w": scan})
    assert not prepared.image[T1].any() and any("T1w" in warning for warning in prepared.warnings)


def test_n4_takes_out_a_slope(body: Any) -> None:
    scan = body.volume("T2w")
    x = np.linspace(-0.5, 0.5, scan.data.shape[0], dtype=np.float32)[:, None, None]
    sloped = replace(scan, data=scan.data * np.exp(x))
    clean = prepare({"T2w": scan}).image[T2]

    def error(n4: bool) -> float:
        prepared = prepare({"T2w": sloped}, n4=n4)
        return float(np.abs(prepared.image[T2] - clean)[prepared.inside].mean())

    assert error(n4=True) < 0.7 * error(n4=False)


# ---- choices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(
    ("thickness", "kind"), [(0.5, "3d"), (2.4, "3d"), (2.499, "3d"), (2.5, "2d"), (3.0, "2d"), (8.0, "2d")]
)
def test_the_network_follows_the_largest_spacing(order: tuple[int, ...], thickness: float, kind: str) -> None:
    spacing = np.array([0.5, 0.45, thickness])[list(order)]
    assert network_kind(grid(*spacing)) == kind


def test_two_and_a_half_mm_is_thick_in_float32_and_tilted(body: Any) -> None:
    for tilt in (0.0, 7.3, 33.0):
        affine = body.grid((0.7, 0.7, 2.5), tilt_deg=tilt)[1].astype(np.float32).astype(np.float64)
        assert network_kind(Grid((4, 4, 4), affine)) == "2d"


def test_slices_come_last() -> None:
    assert slices_last((1, 1, 5), 2) == (0, 1, 2)
    assert slices_last((1, 5, 1), 2) == (0, 2, 1)
    assert slices_last((5, 1, 1), 2) == (1, 2, 0)
    assert slices_last((2, 1, 1), 3) == (1, 2, 0)
    # Isotropic scans stay as they are; for the 2D network they are axial.
    assert slices_last((1, 1, 1), 3) == slices_last((1.1, 1, 1), 3) == (0, 1, 2)
    assert slices_last((3, 3, 3), 2) == (0, 1, 2)


@pytest.mark.parametrize(
    ("kind", "spacing", "wanted"),
    [
        ("3d", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ("3d", (0.45, 0.45, 2.4), (0.45, 0.45, 2.4)),
        ("3d", (0.44, 1.26, 0.45), (0.44, 1.26, 0.45)),  # a hair outside is inside
        ("3d", (0.3, 0.3, 1.0), (0.45, 0.45, 1.0)),
        ("3d", (0.3, 0.3, 0.3), (0.45, 0.45, 0.45)),
        ("3d", (1.5, 2.0, 1.0), (1.25, 2.0, 1.0)),
        ("3d", (2.0, 2.0, 2.0), (1.25, 1.25, 2.0)),
        ("3d", (2.0, 1.9999, 2.0001), (1.25, 1.25, 2.0001)),
        ("2d", (0.5, 0.5, 6.0), (0.5, 0.5, 6.0)),
        ("2d", (0.2, 6.0, 0.2), (0.34, 6.0, 0.34)),
        ("2d", (12.0, 1.5, 1.5), (12.0, 1.1, 1.1)),  # slices are never made up
        ("2d", (3.0, 3.0, 3.0), (1.1, 1.1, 3.0)),
    ],
)
def test_only_spacings_outside_the_trained_range_are_changed(
    kind: str, spacing: tuple[float, float, float], wanted: tuple[float, float, float]
) -> None:
    assert target_spacing(spacing, ENSEMBLES[kind]) == wanted


# ---- predict: crop, turn, respace, and back ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module", autouse=True)
def find_the_ball(seen: dict[str, Any]) -> Any:
    """In place of the networks: the probability of being brighter than 2.5 deviations in T2w."""

    def find(ensemble: Ensemble, image: Tensor, text: Any, device: Any, **options: Any) -> Tensor:
        seen.update(shape=tuple(image.shape), **options)
        return ((image[T2] - 2.5) * 4).sigmoid()[None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "predict_maps", find)
        yield


def located(mask: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centre of a mask in mm."""
    return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]


SPACINGS = {
    "3d": [(1.0, 1.0, 1.0), (0.8, 1.2, 0.9), (1.0, 1.0, 2.2), (0.9, 2.4, 1.0), (2.0, 2.0, 2.0), (1.6, 1.0, 1.0)],
    "2d": [(1.0, 1.0, 3.0), (1.0, 3.0, 1.0), (3.0, 0.8, 1.0), (1.6, 1.6, 2.5)],
}


@given(
    st.sampled_from(ORIENTATIONS),
    st.sampled_from([(kind, spacing) for kind, spacings in SPACINGS.items() for spacing in spacings]),
    st.sampled_from([0.0, 11.0]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_mask_lies_on_the_ball(
    body: Any, orientation: tuple[Any, Any], kind_spacing: tuple[str, tuple[float, float, float]], tilt: float
) -> None:
    kind, spacing = kind_spacing
    scan = body.volume("T2w", axes=orientation[0], signs=orientation[1], spacing_mm=spacing, tilt_deg=tilt)
    prepared = prepare({"T2w": scan})
    assert network_kind(prepared.grid) == kind
    probability = pipeline.predict(prepared, ENSEMBLES[kind], None, CPU)
    assert probability.shape == prepared.grid.shape
    mask = prepared.undo(to_mask(probability, 0.5, prepared.inside))
    assert mask.shape == scan.data.shape
    ball = scan.data == 900
    dice = 2 * (mask & ball).sum() / (mask.sum() + ball.sum())
    respaced = target_spacing(prepared.grid.spacing_mm, ENSEMBLES[kind]) != prepared.grid.spacing_mm
    assert dice > 0.85 if respaced else dice == 1
    np.testing.assert_allclose(located(mask, scan.affine), body.ball_mm, atol=max(spacing) / 2)


@pytest.mark.parametrize("thick", [0, 1, 2])
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_the_network_gets_the_crop_with_slices_last(body: Any, seen: dict[str, Any], thick: int, kind: str) -> None:
    spacing = [0.8, 0.9, 1.0]
    spacing[thick] = 3.0 if kind == "2d" else 2.2
    scan = body.volume("T2w", spacing_mm=tuple(spacing), margin_mm=15.0)
    prepared = prepare({"T2w": scan})
    pipeline.predict(prepared, ENSEMBLES[kind], None, CPU)
    order = {0: (1, 2, 0), 1: (0, 2, 1), 2: (0, 1, 2)}[thick]
    # The box of the body and a margin of 4 voxels, as far as the scan reaches.
    box = []
    for axis in order:
        where = np.flatnonzero(prepared.inside.any(tuple(a for a in range(3) if a != axis)))
        box.append(min(prepared.grid.shape[axis], where[-1] + 5) - max(0, where[0] - 4))
    assert seen["shape"] == (3, *box)
    assert seen["shape"] != (3, *(prepared.grid.shape[a] for a in order))


def test_fine_grids_are_seen_more_coarsely_and_restored(body: Any, seen: dict[str, Any]) -> None:
    small = type(body)(radii_mm=(8.0, 9.0, 7.0), ball_mm=(5.0, -7.0, 4.0), ball_radius_mm=2.0)
    scan = small.volume("T2w", spacing_mm=(0.3, 0.3, 0.3), margin_mm=2.0)
    prepared = prepare({"T2w": scan})
    probability = pipeline.predict(prepared, ENSEMBLES["3d"], None, CPU)
    box = [min(n, 4 + 1 + w[-1]) - max(0, w[0] - 4) for n, w in
           ((prepared.grid.shape[a], np.unique(np.nonzero(prepared.inside)[a])) for a in range(3))]  # fmt: skip
    assert seen["shape"][1:] == tuple(round(n * 0.3 / 0.45) for n in box)
    mask, ball = probability >= 0.5, scan.data == 900
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.9
    np.testing.assert_allclose(located(mask, scan.affine), small.ball_mm, atol=0.1)


def test_options_reach_the_networks(body: Any, seen: dict[str, Any]) -> None:
    prepared = prepare({"T2w": body.volume("T2w")})
    with tqdm(disable=True) as bar:
        pipeline.predict(prepared, ENSEMBLES["3d"], None, CPU, mirror=True, bar=bar)
        assert seen["mirror"] is True and seen["progress"] == bar.update
    pipeline.predict(prepared, ENSEMBLES["3d"], None, CPU)
    assert seen["mirror"] is False and seen["progress"] is None


# ---- the segmenter -------------------------------------------------------------------------------------------------


def test_a_case_from_files_to_facts(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_body(tmp_path / "a_{}.nii.gz", ("T1w", "T2w"), signs=(-1, 1, 1))
    with caplog.at_level(logging.INFO):
        result = Segmenter(Settings(weights, "cpu")).segment(Case("a", paths, Path("a.nii.gz")))
    assert result.mask.dtype == np.uint8 and result.mask.any()
    assert result.reference == "T2w" and result.probability.shape == result.mask.shape
    facts = result.facts
    assert (facts["network"], facts["members"], facts["threshold"]) == ("3d", 2, 0.5)
    assert facts["prompt"] == "Perivascular spaces in the whole brain, T1w and T2w MRI, 1 mm slices."
    assert facts["sequences"] == ["T1w", "T2w"] and facts["spacing_mm"] == [1.0, 1.0, 1.0]
    assert facts["voxels"] == int(result.mask.sum()) and facts["warnings"] == []
    assert list(facts["seconds"]) == ["read", "align", "prepare", "load", "predict"]
    assert [m.split(" ")[1] for m in caplog.messages] == ["read", "align", "prepare", "load", "predict"]


def test_the_prompt_names_what_the_network_sees(body: Any, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = body.volume("T1w", spacing_mm=(1, 1, 4))
    flat = replace(flat, data=(flat.data > 0).astype(np.float32))
    monkeypatch.setattr(pipeline, "read", lambda case: {"T1w": flat, "T2w": body.volume("T2w", spacing_mm=(1, 1, 4))})
    facts = Segmenter(Settings(weights, "cpu")).segment(Case("a", {}, Path("a.nii.gz"))).facts
    assert facts["prompt"] == "Perivascular spaces in the whole brain, T2w MRI, 3 mm slices."
    assert facts["sequences"] == ["T2w"] and facts["network"] == "2d"
    assert len(facts["warnings"]) == 1 and "T1w" in facts["warnings"][0]


def test_a_case_with_a_problem_is_not_read(weights: Path) -> None:
    case = Case("a", {"T2w": Path("/nowhere.nii.gz")}, Path("a.nii.gz"), problem="two files for T2w")
    with pytest.raises(VolumeError, match="^two files for T2w$"):
        Segmenter(Settings(weights, "cpu")).segment(case)


def test_missing_weights_are_told_before_any_case_is_read(
    write_body: Callable[..., dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    monkeypatch.setattr(pipeline, "read", lambda case: pytest.fail("a case was read"))
    with pytest.raises(WeightsError, match="MANIFEST.json: expected the manifest"):
        cohort.run(tmp_path / "in", tmp_path / "out", Settings(tmp_path / "none"))


def test_a_bug_in_one_case_leaves_the_others(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_body(tmp_path / "in" / name / f"{name}_{{}}.nii.gz", ("T2w",))
    real = pipeline.prepare

    def broken(volumes: dict[str, Volume], n4: bool = False, anatomy: Any = None) -> Any:
        if volumes["T2w"].source == tmp_path / "in" / "a" / "a_T2w.nii.gz":
            raise KeyError("a bug\nof ours")
        return real(volumes, n4, anatomy)

    monkeypatch.setattr(pipeline, "prepare", broken)
    failures = cohort.run(tmp_path / "in", tmp_path / "out", Settings(weights, "cpu"))
    assert len(failures) == 1 and failures[0].startswith("a: unexpected KeyError: ")
    assert "\n" not in failures[0] and "[" not in failures[0]
    assert [p.relative_to(tmp_path / "out").as_posix() for p in sorted((tmp_path / "out").rglob("*.nii.gz"))] == [
        "b/b_pred.nii.gz"
    ]
