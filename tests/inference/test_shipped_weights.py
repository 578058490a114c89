"""The shipped weights: complete, checked, of the networks that the docs describe, and better than chance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pvs_model.config import NETWORK_3D, NetworkConfig
from pvs_model.datasets.simulated_cases import plain_scan
from pvs_model.inference.device import choose_device
from pvs_model.inference.ensemble import Group
from pvs_model.inference.postprocess import to_mask
from pvs_model.inference.weights import Weights
from pvs_model.nets import checkpoint
from pvs_model.nets.text import prompt, standard_prompts
from pvs_model.pipeline import predict_probability
from pvs_model.preprocessing.network_grid import choose_configuration
from pvs_model.preprocessing.prepare import prepare
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.subject import simulate
from pvs_model.types import SEQUENCES, Volume

SHIPPED = Path(__file__).resolve().parents[2] / "weights"


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights(SHIPPED)


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_the_manifest_tells_what_the_files_are(weights: Weights, kind: str) -> None:
    ensemble = weights.ensemble(kind)  # checks every SHA-256
    members = weights.manifest.content["ensembles"][kind]["members"]
    for network, member in zip(ensemble.networks, members, strict=True):
        # Settings that are newer than the file have their defaults.
        assert network.config == NetworkConfig.from_json(json.dumps(member["network"]))
        assert f"{network.config.dimensions}d" == kind and network.config.text
        assert member["steps"] > 0
        assert (SHIPPED / member["file"]).stat().st_size < 16 * 2**20


def test_networks_of_older_files_are_built_as_they_were(weights: Weights) -> None:
    # Loading them compares every name and shape; their answers are of PVS alone.
    for kind in ("3d", "2d"):
        for network in weights.ensemble(kind).networks:
            known = network.config
            sides = [16] * known.dimensions
            with torch.no_grad():
                maps = network(torch.zeros(1, known.in_channels, *sides), torch.zeros(1, 3, known.text_width))
            assert isinstance(maps, torch.Tensor)
            assert maps.shape == (1, known.outputs, *sides) and maps.isfinite().all()
            assert ("0_1" in network.backbone.nodes) == (known.nested_from == 0)  # type: ignore[union-attr, operator]
    for member in (m for kind in ("3d", "2d") for m in weights.manifest.content["ensembles"][kind]["members"]):
        stored = json.loads(checkpoint.read_metadata(SHIPPED / member["file"])["config"])
        if "nested_from" not in stored:  # from before there was a choice
            loaded = checkpoint.load(SHIPPED / member["file"], member["sha256"]).config
            assert (loaded.nested_from, loaded.fluid) == (0, False)


def test_every_standard_prompt_is_cached(weights: Weights) -> None:
    for text in standard_prompts():
        assert weights.embed(text).shape[1] == NETWORK_3D.text_width


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (0.8, 0.8, 5.0)], ids=["3d", "2d"])
def test_masks_are_far_better_than_chance(
    weights: Weights, anatomy: HeadModel, voxel_mm: tuple[float, float, float]
) -> None:
    kind = "2d" if max(voxel_mm) >= 2.5 else "3d"
    released, text = weights.ensemble(kind), weights.embed(prompt(SEQUENCES, max(voxel_mm)))
    masks, truths = [], []
    for seed in (3, 4, 5):  # a small head holds few PVS: one alone would be a lottery
        network = released.networks[seed % len(released.networks)]
        ensemble = replace(released, groups=(Group((network,)),)).with_settings(roi_size=64)  # the head is small
        case = simulate(anatomy, seed, voxel_mm, scan=plain_scan(seed, 3 if kind == "3d" else 2))
        volumes = {s: Volume(case.images[k], case.affine, Path(s)) for k, s in enumerate(SEQUENCES)}
        prepared = prepare(volumes)
        assert choose_configuration(prepared.grid) == kind
        probability = predict_probability(prepared, ensemble, text, choose_device("cpu"))
        assert np.isfinite(probability).all() and probability.min() >= 0 and probability.max() <= 1
        masks.append(np.pad(to_mask(probability, ensemble.settings.threshold, prepared.foreground) > 0, 1).ravel())
        truths.append(np.pad(case.reference > 0, 1).ravel())
    mask, truth = np.concatenate(masks), np.concatenate(truths)
    hit = (mask & truth).sum()
    dice, recall = 2 * hit / (mask.sum() + truth.sum()), hit / truth.sum()
    assert truth.sum() > 150
    assert dice > 10 * truth.mean() and recall > 10 * mask.mean(), (dice, recall)  # guessing gives about 1 x each
    assert dice > 0.15, dice
