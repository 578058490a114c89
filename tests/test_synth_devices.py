"""Rendering and acquiring run where the anatomy lies: nothing is made on another device by default.

There is no GPU here. In its place the default device is one that holds no values: a tensor that is
made without saying where then lies there, and meeting a real one is an error.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pvs_model.synth.anatomy import Anatomy
from pvs_model.synth.case import simulate, whole_scene
from pvs_model.synth.engine import acquire, draw_scan, draw_scene, render, standardise

EVERYTHING = {
    "pvs_centrum": 5.0, "pvs_basal": 5.0, "pvs_other": 3.0, "lesion_burden": 0.8, "lesion_dots": 1.0, "lacunes": 1.0,
    "islands": 4.0, "sheets": 0.5, "folia": 0.3, "voids": 1.0, "bridges": 3.0, "flip": True,
}  # fmt: skip


@pytest.mark.parametrize("target", ["whole", "basal"])
def test_nothing_is_made_on_a_device_by_default(anatomy: Anatomy, target: str) -> None:
    params = replace(draw_scene(1, (18, 18, 18), (1.0, 1.0, 1.0), target=target), **EVERYTHING)
    scan = replace(
        draw_scan(2, complete=True), acquired=((1.0, 1.5, 1.0), (1.0, 1.0, 2.2), (1.2, 1.2, 1.0)),
        ring_keep=(0.8, 0.8, 0.8), grain=(0.5, 0.0, 0.5), stripped=False,
    )  # fmt: skip
    with torch.device("meta"):
        scene = render(params, anatomy)
        taken = acquire(scene, scan)
        images = standardise(taken, scene)
    assert {t.device.type for t in (scene.fractions, scene.coverage, taken.images, images)} == {"cpu"}
    again = render(params, anatomy)
    assert torch.equal(scene.fractions, again.fractions)
    assert torch.equal(images, standardise(acquire(again, scan), again))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_case_is_simulated_on_a_gpu(anatomy: Anatomy) -> None:
    there = anatomy.to("cuda")
    first, again = (simulate(there, 1, (1.0, 1.0, 1.0)) for _ in range(2))
    assert (first.images == again.images).all() and (first.truth == again.truth).all()
    here = simulate(anatomy, 1, (1.0, 1.0, 1.0), scene=whole_scene(anatomy, 1, (1.0, 1.0, 1.0)))
    assert first.images.shape == here.images.shape  # a GPU draws other random numbers
