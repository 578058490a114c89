"""Rendering and acquisition run on the device of the head model.

Instead of a GPU, the default device of these tests is "meta", which holds no values: a tensor that is created without
a device is created there, and combining it with a real tensor is an error.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scenes import MANY_PVS, MIMICS

from pvs_model.simulation.acquisition import acquire, standardise
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.parameters import draw_scan, draw_scene
from pvs_model.simulation.render import render
from pvs_model.simulation.subject import simulate, whole_scene


@pytest.mark.parametrize("target", ["whole", "basal"])
def test_nothing_is_made_on_a_device_by_default(anatomy: HeadModel, target: str) -> None:
    params = replace(draw_scene(1, (18, 18, 18), (1.0, 1.0, 1.0), target=target), **MANY_PVS, **MIMICS, flip=True)
    scan = replace(
        draw_scan(2, complete=True), acquired=((1.0, 1.5, 1.0), (1.0, 1.0, 2.2), (1.2, 1.2, 1.0)),
        kspace_fraction=(0.8, 0.8, 0.8), noise_correlation=(0.5, 0.0, 0.5), skull_stripped=False,
    )  # fmt: skip
    with torch.device("meta"):
        scene = render(params, anatomy)
        taken = acquire(scene, scan)
        images = standardise(taken, scene)
    assert {t.device.type for t in (scene.fractions, scene.pvs_fraction, taken.images, images)} == {"cpu"}
    again = render(params, anatomy)
    assert torch.equal(scene.fractions, again.fractions)
    assert torch.equal(images, standardise(acquire(again, scan), again))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_case_is_simulated_on_a_gpu(anatomy: HeadModel) -> None:
    there = anatomy.to("cuda")
    first, again = (simulate(there, 1, (1.0, 1.0, 1.0)) for _ in range(2))
    assert (first.images == again.images).all() and (first.reference == again.reference).all()
    here = simulate(anatomy, 1, (1.0, 1.0, 1.0), scene=whole_scene(anatomy, 1, (1.0, 1.0, 1.0)))
    assert first.images.shape == here.images.shape  # a GPU draws other random numbers
