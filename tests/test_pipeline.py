"""The segmenter: a case from files to mask and metadata."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pvs_model import batch, pipeline
from pvs_model.config import BatchConfig, InferenceConfig
from pvs_model.errors import VolumeError, WeightsError
from pvs_model.nets.text import prompt as standard_prompt
from pvs_model.pipeline import Segmenter
from pvs_model.types import Case, Volume


def test_a_case_from_files_to_facts(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_body(tmp_path / "a_{}.nii.gz", ("T1w", "T2w"), signs=(-1, 1, 1))
    with caplog.at_level(logging.INFO):
        result = Segmenter(InferenceConfig(weights, "cpu")).segment(Case("a", paths, Path("a.nii.gz")))
    assert result.mask.dtype == np.uint8 and result.mask.any()
    assert result.reference == "T2w" and result.probability.shape == result.mask.shape
    metadata = result.metadata
    assert (metadata["network"], metadata["members"], metadata["threshold"]) == ("3d", 2, 0.5)
    assert metadata["prompt"] == "Perivascular spaces in the whole brain, T1w and T2w MRI, 1 mm slices."
    assert metadata["sequences"] == ["T1w", "T2w"] and metadata["spacing_mm"] == [1.0, 1.0, 1.0]
    assert metadata["voxels"] == int(result.mask.sum()) and metadata["warnings"] == []
    assert list(metadata["seconds"]) == ["read", "align", "prepare", "load", "predict"]
    assert [m.split(" ")[1] for m in caplog.messages] == ["read", "align", "prepare", "load", "predict"]


def test_a_fast_run_takes_one_network_and_says_so(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path
) -> None:
    case = Case("a", write_body(tmp_path / "a_{}.nii.gz", ("T2w",)), Path("a.nii.gz"))
    full, fast = (Segmenter(InferenceConfig(weights, "cpu", fast=fast)).segment(case) for fast in (False, True))
    assert (full.metadata["members"], full.metadata["overlap"], full.metadata["warnings"]) == (2, 0.25, [])
    assert (fast.metadata["members"], fast.metadata["overlap"]) == (1, 0.0)
    assert fast.metadata["warnings"] == ["fast run: one network and windows without overlap, for a quick look"]
    assert not np.array_equal(fast.probability, full.probability)


def test_the_prompt_names_what_the_network_sees(body: Any, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = body.volume("T1w", spacing_mm=(1, 1, 4))
    flat = replace(flat, data=(flat.data > 0).astype(np.float32))
    monkeypatch.setattr(pipeline, "read", lambda case: {"T1w": flat, "T2w": body.volume("T2w", spacing_mm=(1, 1, 4))})
    metadata = Segmenter(InferenceConfig(weights, "cpu")).segment(Case("a", {}, Path("a.nii.gz"))).metadata
    assert metadata["prompt"] == "Perivascular spaces in the whole brain, T2w MRI, 3 mm slices."
    assert metadata["sequences"] == ["T2w"] and metadata["network"] == "2d"
    assert len(metadata["warnings"]) == 1 and "T1w" in metadata["warnings"][0]


@pytest.mark.parametrize(("region", "warned"), [("brain", 0), ("basal ganglia", 1)])
def test_a_prompt_for_a_region_warns_where_regions_are_not_known(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path, region: str, warned: int
) -> None:
    case = Case("a", write_body(tmp_path / "a_{}.nii.gz", ("T2w",)), Path("a.nii.gz"))
    text = standard_prompt(["T2w"], 1.0, region)
    metadata = Segmenter(InferenceConfig(weights, "cpu", prompt=text)).segment(case).metadata
    expected = "the mask is not limited to the basal ganglia: the regions of this scan are not known"
    assert metadata["warnings"].count(expected) == warned


def test_a_case_with_a_problem_is_not_read(weights: Path) -> None:
    case = Case("a", {"T2w": Path("/nowhere.nii.gz")}, Path("a.nii.gz"), problem="two files for T2w")
    with pytest.raises(VolumeError, match="^two files for T2w$"):
        Segmenter(InferenceConfig(weights, "cpu")).segment(case)


def test_missing_weights_are_told_before_any_case_is_read(
    write_body: Callable[..., dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    monkeypatch.setattr(pipeline, "read", lambda case: pytest.fail("a case was read"))
    with pytest.raises(WeightsError, match="MANIFEST.json: expected the manifest"):
        batch.run(tmp_path / "in", tmp_path / "out", BatchConfig(tmp_path / "none"))


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
    failures = batch.run(tmp_path / "in", tmp_path / "out", BatchConfig(weights, "cpu"))
    assert len(failures) == 1 and failures[0].startswith("a: unexpected KeyError: ")
    assert "\n" not in failures[0] and "[" not in failures[0]
    assert [p.relative_to(tmp_path / "out").as_posix() for p in sorted((tmp_path / "out").rglob("*.nii.gz"))] == [
        "b/b_pred.nii.gz"
    ]
