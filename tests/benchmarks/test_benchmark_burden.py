"""The benchmark of burden: what a cohort holds, one subject on several grids, and that counts reach the table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import benchmarks.burden
from benchmarks.burden import BASAL, CENTRUM, averaged, densities, variation
from benchmarks.cases import load_cases
from pvs_model.anatomy.regions import Anatomy
from pvs_model.config import InferenceConfig
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.protocols import on_grid
from pvs_model.simulation.render import render
from pvs_model.simulation.subject import whole_scene
from pvs_model.types import Case


def test_a_cohort_goes_from_none_to_many() -> None:
    pairs = [densities(k, 20) for k in range(20)]
    assert pairs[0] == (0.0, 0.0)
    assert sorted(p[0] for p in pairs) == [p[0] for p in pairs] and pairs[-1][0] == pytest.approx(CENTRUM[1])
    basal = [p[1] for p in pairs]
    assert len(set(basal)) == 20 and max(basal) == pytest.approx(BASAL[1]) and basal != sorted(basal)


@pytest.mark.parametrize("cases", [2, 3, 8, 15, 36])
def test_every_case_of_a_cohort_has_its_own_densities(cases: int) -> None:
    pairs = [densities(k, cases) for k in range(cases)]
    assert [len({pair[region] for pair in pairs}) for region in range(2)] == [cases, cases]


def test_a_subject_averaged_onto_larger_voxels_keeps_its_amounts(anatomy: HeadModel) -> None:
    scene = render(replace(whole_scene(anatomy, 3, (2.0, 2.0, 2.0)), shape=(32, 30, 28)), anatomy)
    thick = averaged(scene, (1, 1, 4))
    assert thick.voxel_mm == (2.0, 2.0, 8.0) and tuple(thick.regions.shape) == (32, 30, 7)
    before = scene.fractions.unflatten(3, (7, 4)).float().mean(4)
    assert float((thick.fractions.float() - before).abs().max()) <= 0.5
    assert torch.equal(averaged(scene, (1, 1, 1)).pvs_fraction, scene.pvs_fraction)


def test_the_coefficient_of_variation() -> None:
    assert variation([1.0, 1.0, 1.0]) == 0.0
    assert variation([1.0, 3.0]) == pytest.approx(2**0.5 / 2)
    assert variation([0.0, 0.0]) is None


def test_the_burden_benchmark_end_to_end(
    anatomy: HeadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a phantom, with the reference as the pipeline's masks: predicted and reference burden are equal."""

    class ReferenceSegmenter:
        """Returns the reference as the mask, and the simulated fluid as the PVS fraction."""

        def __init__(self, settings: InferenceConfig) -> None:
            pass

        def segment(self, case: Case) -> SimpleNamespace:
            (loaded,) = (c for c in load_cases(case.images["T2w"].parents[1]) if c.name == case.name)
            labels = np.zeros(loaded.reference.shape, np.uint8)
            for name, value in (("CSO", 2), ("BG", 12)):
                labels[loaded.regions[name]] = value
            prepared = SimpleNamespace(anatomy=Anatomy(labels, labels > 0))
            mask = loaded.reference.astype(np.uint8)
            return SimpleNamespace(canonical_mask=mask, pvs_fraction=loaded.maps["FLUID"], prepared=prepared)

    monkeypatch.setattr(benchmarks.burden.HeadModels, "find", lambda self, name: anatomy)
    monkeypatch.setattr(benchmarks.burden, "Segmenter", ReferenceSegmenter)
    monkeypatch.setattr(benchmarks.burden, "protocol_named", lambda name: on_grid((3.0, 3.0, 3.0)))
    arguments = ["cohort", str(tmp_path), "--cases", "3", "--json", str(tmp_path / "out.json")]
    assert benchmarks.burden.main(arguments) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["1mm"]
    assert [row["case"] for row in rows] == ["sub00", "sub01", "sub02"]
    for row in rows:
        values = row["predicted and reference"]
        assert len(set(values["all count"])) == len(set(values["all volume"])) == 1
        predicted, true = values["all fluid"]
        assert predicted <= true  # all fluid counts, also where it is not labelled
    first, _, last = (row["predicted and reference"] for row in rows)
    assert first["all count"] == [0, 0] and last["all volume"][1] > 0 and last["all fluid"][0] > 0
    assert "| 1mm | all | volume |" in capsys.readouterr().out
