"""The shipped weights: complete, checked, of the networks that the docs describe, and better than chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pvs_model.config import NETWORK_2D, NETWORK_3D
from pvs_model.inference.ensemble import Weights
from pvs_model.inference.postprocess import to_mask
from pvs_model.inference.predict import choose_device
from pvs_model.nets.text import prompt, standard_prompts
from pvs_model.pipeline import network_kind, predict, prepare
from pvs_model.synth.anatomy import Anatomy
from pvs_model.synth.case import simulate
from pvs_model.training.cases import plain_scan
from pvs_model.types import SEQUENCES, Volume

SHIPPED = Path(__file__).resolve().parents[1] / "weights"


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights(SHIPPED)


@pytest.mark.parametrize(("kind", "config"), [("3d", NETWORK_3D), ("2d", NETWORK_2D)])
def test_the_manifest_tells_what_the_files_are(weights: Weights, kind: str, config: object) -> None:
    ensemble = weights.ensemble(kind)  # checks every SHA-256
    assert all(network.config == config for network in ensemble.networks)
    for member in weights.manifest["ensembles"][kind]["members"]:
        assert member["steps"] > 0
        assert (SHIPPED / member["file"]).stat().st_size < 16 * 2**20


def test_every_standard_prompt_is_cached(weights: Weights) -> None:
    for text in standard_prompts():
        assert weights.embed(text).shape[1] == NETWORK_3D.text_width


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (0.8, 0.8, 5.0)], ids=["3d", "2d"])
def test_masks_are_far_better_than_chance(
    weights: Weights, anatomy: Anatomy, voxel_mm: tuple[float, float, float]
) -> None:
    kind = "2d" if max(voxel_mm) >= 2.5 else "3d"
    ensemble, text = weights.ensemble(kind), weights.embed(prompt(SEQUENCES, max(voxel_mm)))
    masks, truths = [], []
    for seed in (3, 4, 5):  # a small head holds few PVS: one alone would be a lottery
        case = simulate(anatomy, seed, voxel_mm, scan=plain_scan(seed, 3 if kind == "3d" else 2))
        volumes = {s: Volume(case.images[k], case.affine, Path(s)) for k, s in enumerate(SEQUENCES)}
        prepared = prepare(volumes)
        assert network_kind(prepared.grid) == kind
        probability = predict(prepared, ensemble, text, choose_device("cpu"))
        assert np.isfinite(probability).all() and probability.min() >= 0 and probability.max() <= 1
        masks.append(np.pad(to_mask(probability, ensemble.threshold, prepared.inside) > 0, 1).ravel())
        truths.append(np.pad(case.truth > 0, 1).ravel())
    mask, truth = np.concatenate(masks), np.concatenate(truths)
    hit = (mask & truth).sum()
    dice, recall = 2 * hit / (mask.sum() + truth.sum()), hit / truth.sum()
    assert truth.sum() > 200
    assert dice > 10 * truth.mean() and recall > 10 * mask.mean(), (dice, recall)  # guessing gives about 1 x each
    assert dice > 0.15, dice
