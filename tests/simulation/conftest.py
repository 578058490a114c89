"""Rendered scenes of the toy head."""

from __future__ import annotations

import pytest
from scenes import EMPTY, MANY_PVS, MIMICS, scene_params

from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.render import Scene, render
from pvs_model.simulation.subject import whole_scene


@pytest.fixture(scope="session")
def full(anatomy: HeadModel) -> Scene:
    """Many PVS and many mimics."""
    return render(scene_params(**MANY_PVS, **MIMICS), anatomy)


@pytest.fixture(scope="session")
def bare(anatomy: HeadModel) -> Scene:
    """The same head as ``full``, with without structures."""
    return render(scene_params(**EMPTY), anatomy)


@pytest.fixture(scope="session")
def whole_brain(anatomy: HeadModel) -> Scene:
    """The whole brain at 1 mm, with some space around it."""
    return render(whole_scene(anatomy, 0, (1.0, 1.0, 1.0), margin_mm=8.0), anatomy)
