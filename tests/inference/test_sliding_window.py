"""Sliding windows over a volume, and what happens when memory runs out."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pvs_model.config import MANIFEST, NetworkConfig
from pvs_model.errors import DeviceError
from pvs_model.inference import openvino, sliding_window
from pvs_model.inference.device import MemoryPlan, choose_device, memory_plans
from pvs_model.inference.ensemble import Ensemble, Group
from pvs_model.inference.postprocess import to_mask
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.inference.sliding_window import count_windows, roi_size_for
from pvs_model.inference.weights import Weights
from pvs_model.nets.model import build
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_probability as run_pipeline
from pvs_model.preprocessing.prepare import prepare
from pvs_model.simulation.subject import simulate, whole_scene
from pvs_model.types import SEQUENCES, Volume
from pvs_model.volume.components import label_components
from tests.prediction import predict

CPU = torch.device("cpu")
PROMPT = prompt(("T1w", "T2w", "FLAIR"), 1.0)


class Stub(nn.Module):
    """A network whose logits are a function of its windows."""

    def __init__(self, logits: Callable[[Tensor], Tensor], neighbours: int = 1) -> None:
        super().__init__()
        self.logits = logits
        self.neighbours = neighbours
        self.config = NetworkConfig(nested_from=0, fluid=False)
        self.windows: list[tuple[int, ...]] = []

    def forward(self, windows: Tensor, words: Tensor) -> Tensor:
        assert len(words) == len(windows)
        self.windows.append(tuple(windows.shape))
        return self.logits(windows)


def ensemble_of(*networks: nn.Module, kind: str = "3d", window: int = 16, overlap: float = 0.25) -> Ensemble:
    for network in networks:
        network.config = NetworkConfig(
            dimensions=int(kind[0]), neighbour_slices=network.neighbours, nested_from=0, fluid=False
        )  # type: ignore[assignment, arg-type]
    groups = (Group(networks),)  # type: ignore[arg-type]
    return Ensemble(kind, groups, EnsembleSettings(0.5, window, overlap, (0.4, 1.3), (0.4, 2.5)))


def only(ensemble: Ensemble, member: int) -> Ensemble:
    """One network of an ensemble."""
    return replace(ensemble, groups=(Group(ensemble.networks[member : member + 1]),))


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))


TOKENS = torch.zeros(4, 384)


# ---- windows -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(weights: Path) -> Weights:
    return Weights(weights)


def test_one_window_is_a_direct_forward(loaded: Weights) -> None:
    three = only(loaded.ensemble("3d"), 0)
    scan, tokens = image(40, 40, 40), loaded.embed(PROMPT)
    with torch.inference_mode():
        direct = three.networks[0](scan[None], tokens[None]).sigmoid()[0, 0]
    probability = predict(three, scan, tokens, CPU)
    assert probability.dtype == torch.float32 and probability.shape == (40, 40, 40)
    torch.testing.assert_close(probability, direct, rtol=0, atol=1e-6)
    assert float(probability.std()) > 1e-3


def test_bfloat16_on_the_cpu_is_near_float32(loaded: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    three, scan, tokens = loaded.ensemble("3d"), image(40, 40, 40), loaded.embed(PROMPT)
    exact = predict(three, scan, tokens, CPU)
    monkeypatch.setattr("pvs_model.nets.precision.cpu_has_bfloat16", lambda: True)
    fast = predict(three, scan, tokens, CPU)
    assert fast.dtype == torch.float32 and not torch.equal(fast, exact)
    torch.testing.assert_close(fast, exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_two_outputs_are_two_maps(tiny: dict[str, NetworkConfig], kind: str) -> None:
    config = replace(tiny[kind], fluid=True, nested_from=1)
    networks = tuple(build(config).eval() for _ in range(2))
    sides = [16] * config.dimensions
    windows, words = torch.randn(2, config.in_channels, *sides), torch.randn(1, 4, config.text_width)
    maps = sliding_window.mean_probability(networks, CPU, "torch")(windows, words)
    with torch.no_grad():
        first, second = (n(windows, words.expand(2, -1, -1)).sigmoid() for n in networks)
    assert first.shape[1] == 2
    torch.testing.assert_close(maps, (first + second) / 2, rtol=0, atol=1e-6)
    traced = openvino._Probability(networks[1], 1)(windows, words.expand(2, -1, -1))
    torch.testing.assert_close(traced, second)


def test_an_ensemble_is_the_mean_of_its_members(loaded: Weights) -> None:
    both, tokens, scan = loaded.ensemble("3d"), loaded.embed(PROMPT), image(40, 40, 40)
    alone = [predict(only(both, member), scan, tokens, CPU) for member in range(2)]
    assert float((alone[0] - alone[1]).abs().max()) > 1e-3
    torch.testing.assert_close(predict(both, scan, tokens, CPU), (alone[0] + alone[1]) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("kind", "sides"), [("3d", (16, 24, 32)), ("2d", (16, 24))])
def test_a_mirrored_network_answers_a_mirrored_window(
    tiny: dict[str, NetworkConfig], kind: str, sides: tuple[int, ...], training: bool
) -> None:
    network = build(tiny[kind]).train(training)
    window, words = torch.randn(1, network.config.in_channels, *sides), torch.randn(1, 4, network.config.text_width)
    for axes in ((0,), tuple(range(len(sides)))):
        network.mirrored, flips = (), [2 + axis for axis in axes]
        with torch.no_grad():
            expected = network(window.flip(flips), words)
            network.mirrored = axes
            actual = network(window, words)
        scales = [(actual, expected)] if not training else zip(actual, expected, strict=True)
        for own, other in scales:
            torch.testing.assert_close(own, other.flip(flips))
    assert network(torch.randn(1, network.config.in_channels, *[9] * len(sides)), words) is not None  # padded


@pytest.mark.parametrize(("kind", "shape"), [("3d", (40, 40, 40)), ("2d", (40, 40, 3))])
def test_mirroring_is_the_mean_over_mirror_images(loaded: Weights, kind: str, shape: tuple[int, ...]) -> None:
    one = only(loaded.ensemble(kind), 0)
    scan, tokens = image(*shape), loaded.embed(PROMPT)
    axes = (0, 1, 2) if kind == "3d" else (0, 1)
    flips = [[a for k, a in enumerate(axes) if m >> k & 1] for m in range(2 ** len(axes))]
    by_hand = torch.stack(
        [predict(one, scan.flip([a + 1 for a in flip]), tokens, CPU).flip(flip) for flip in flips]
    ).mean(0)
    mirrored = predict(one, scan, tokens, CPU, mirror=True)
    torch.testing.assert_close(mirrored, by_hand, rtol=0, atol=1e-5)
    assert float((mirrored - predict(one, scan, tokens, CPU)).abs().max()) > 1e-3


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("kind", "passes"), [("3d", 8), ("2d", 4)])
def test_mirroring_costs_its_number_of_passes(kind: str, passes: int, mirror: bool) -> None:
    stub = Stub(lambda w: w[:, :1])
    shape = (16, 16, 16) if kind == "3d" else (16, 16, 1)
    predict(ensemble_of(stub, kind=kind), image(*shape), TOKENS, CPU, mirror=mirror)
    assert len(stub.windows) == (passes if mirror else 1)


@pytest.mark.parametrize("shape", [(16, 16, 16), (37, 21, 19), (9, 40, 16), (5, 7, 3), (1, 33, 17)])
@pytest.mark.parametrize("mirror", [False, True])
def test_windows_meet_without_a_seam_at_any_size(shape: tuple[int, int, int], mirror: bool) -> None:
    # Each voxel's answer depends on that voxel only, so the windows' average is that answer exactly.
    scan = image(*shape)
    probability = predict(ensemble_of(Stub(lambda w: w[:, 1:2])), scan, TOKENS, CPU, mirror=mirror)
    assert probability.shape == shape
    torch.testing.assert_close(probability, scan[1].sigmoid(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("shape", [(16, 16, 5), (21, 35, 4), (7, 18, 1)])
def test_slices_keep_their_order_and_their_neighbours(shape: tuple[int, int, int], offset: int) -> None:
    # Channel 3 c + 1 + k is sequence c, k slices above; the border slices are repeated.
    scan = image(*shape)
    stub = Stub(lambda w: w[:, 4 + offset : 5 + offset], neighbours=3)
    probability = predict(ensemble_of(stub, kind="2d"), scan, TOKENS, CPU)
    z = [min(max(k + offset, 0), shape[2] - 1) for k in range(shape[2])]
    torch.testing.assert_close(probability, scan[1][..., z].sigmoid(), rtol=0, atol=1e-5)
    x, y = (16 if n <= 16 else 32 for n in shape[:2])
    assert {window[1:] for window in stub.windows} == {(9, x, y)}


@pytest.mark.parametrize(
    ("kind", "window", "shape", "expected"),
    # A plane is as long as the slice, in steps of 16, from the manifest's side up to twice that; a cube is a cube.
    [
        ("3d", 96, (140, 178, 145), (96, 96, 96)),
        ("2d", 256, (301, 386, 31), (304, 400, 1)),
        ("2d", 256, (212, 600, 20), (256, 352, 1)),
    ],
)
def test_the_window_of_a_scan(kind: str, window: int, shape: tuple[int, int, int], expected: tuple[int, ...]) -> None:
    ensemble = ensemble_of(Stub(lambda w: w[:, :1]), kind=kind, window=window)
    assert roi_size_for(ensemble, shape) == expected


@pytest.mark.parametrize(("kind", "shape"), [("3d", (37, 21, 19)), ("3d", (8, 16, 40)), ("2d", (37, 9, 5))])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6])
def test_progress_counts_every_window(kind: str, shape: tuple[int, int, int], overlap: float) -> None:
    done: list[int] = []
    ensemble = ensemble_of(Stub(lambda w: w[:, :1]), kind=kind, overlap=overlap)
    predict(ensemble, image(*shape), TOKENS, CPU, progress=done.append)
    assert sum(done) == count_windows(ensemble, shape)


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_the_same_bytes_twice(loaded: Weights, kind: str) -> None:
    scan, tokens = image(41, 35, 9), loaded.embed(PROMPT)
    once, again = (predict(loaded.ensemble(kind), scan.clone(), tokens, CPU).numpy().tobytes() for _ in range(2))
    assert once == again


def test_probabilities_add_up_in_float32() -> None:
    # Logits in half precision: their sigmoid in half precision would be off by up to 2^-12.
    halves = torch.linspace(-3, 3, 16**3).reshape(1, 16, 16, 16).half().float().expand(3, -1, -1, -1)
    networks = [Stub(lambda w, k=k: (w[:, :1] / 2**k).half()) for k in range(3)]
    probability = predict(ensemble_of(*networks), halves, TOKENS, CPU)
    exact = torch.stack([(halves[0] / 2**k).half().double().sigmoid() for k in range(3)]).mean(0)
    assert probability.dtype == torch.float32
    assert float((probability - exact).abs().max()) < 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_two_thresholds_keep_the_whole_components_that_reach_the_higher_one(seed: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    rng = np.random.default_rng(seed)
    probability = rng.random((7, 6, 5)).astype(np.float32) ** 2
    inside = rng.random(probability.shape) < 0.9
    mask = to_mask(probability, high, inside, low)
    components, sizes = label_components((probability >= low) & inside)
    for k in range(1, len(sizes)):
        voxels = components == k
        assert (mask[voxels] == (probability[voxels].max() >= high)).all()
    assert mask.sum() == mask[components > 0].sum() and mask.dtype == np.uint8
    assert np.array_equal(to_mask(probability, high, inside, high), to_mask(probability, high, inside))


def test_the_mask_takes_the_threshold_in_and_stays_inside() -> None:
    probability = np.array([[[0.29, 0.3, 0.31, 0.9]]], np.float32)
    inside = np.array([[[True, True, True, False]]])
    mask = to_mask(probability, float(np.float32(0.3)), inside)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[[0, 1, 1, 0]]]


# ---- devices and memory --------------------------------------------------------------------------------------------


def test_choose_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(DeviceError, match=r"--device cuda: expected a CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == CPU


def test_memory_plans_go_from_fastest_to_safest() -> None:
    gpu = torch.device("cuda")
    assert list(memory_plans(gpu, 4)) == [
        MemoryPlan(4, gpu, gpu),
        MemoryPlan(2, gpu, gpu),
        MemoryPlan(1, gpu, gpu),
        MemoryPlan(1, gpu, CPU),
        MemoryPlan(1, CPU, CPU),
    ]
    assert list(memory_plans(CPU, 4)) == [MemoryPlan(1, CPU, CPU)]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("CUDA out of memory. Tried"),
     RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("fits", [0, 1, 2, 3, 4])
def test_memory_that_runs_out_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fits: int, error: Exception
) -> None:
    tried: list[MemoryPlan] = []

    def run(group: Any, scan: Tensor, text: Tensor, plan: MemoryPlan, *rest: Any) -> Tensor:
        tried.append(plan)
        if len(tried) <= fits:
            raise error
        return torch.full((1, *scan.shape[1:]), 0.5)

    monkeypatch.setattr(sliding_window, "_run", run)
    with caplog.at_level(logging.WARNING):
        probability = predict(ensemble_of(Stub(lambda w: w[:, :1])), image(4, 4, 4), TOKENS, torch.device("cuda"))
    assert probability.shape == (4, 4, 4)
    ways = list(memory_plans(torch.device("cuda"), 4))
    assert tried == ways[: fits + 1]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"out of memory with {a}; trying {b}" for a, b in itertools.pairwise(tried)]


def test_memory_that_runs_out_altogether() -> None:
    def logits(windows: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    stub = Stub(logits)
    with pytest.raises(DeviceError, match="expected enough memory for one window on the CPU"):
        predict(ensemble_of(stub), image(16, 16, 16), TOKENS, CPU)
    assert stub.windows == [(1, 3, 16, 16, 16)]


def test_the_batch_on_the_cpu_is_one_window() -> None:
    stub = Stub(lambda w: w[:, :1])
    predict(ensemble_of(stub), image(40, 16, 16), TOKENS, CPU, batch_size=4)
    assert {window[0] for window in stub.windows} == {1} and len(stub.windows) == 3


def test_other_errors_are_not_taken_for_memory() -> None:
    def logits(windows: Tensor) -> Tensor:
        raise RuntimeError("a shape does not fit")

    with pytest.raises(RuntimeError, match="a shape does not fit"):
        predict(ensemble_of(Stub(logits)), image(16, 16, 16), TOKENS, CPU)


SHIPPED = Path(__file__).resolve().parents[2] / "weights"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(not (SHIPPED / MANIFEST).is_file(), reason="needs trained weights: random ones decide nothing")
@pytest.mark.parametrize(("kind", "voxel"), [("3d", (1.0, 1.0, 1.0)), ("2d", (0.6, 0.6, 4.0))])
def test_the_gpu_agrees_with_the_cpu(anatomy: Any, kind: str, voxel: tuple[float, float, float]) -> None:
    scene = replace(whole_scene(anatomy, 0, voxel), pvs_centrum=5.0, pvs_diameter_mm=1.6, pvs_relative_contrast=0.9)
    case = simulate(anatomy, 0, voxel, scene=scene)
    prepared = prepare({name: Volume(case.images[k], case.affine) for k, name in enumerate(SEQUENCES)})
    weights = Weights(SHIPPED)
    ensemble, tokens = weights.ensemble(kind), weights.embed(prompt(SEQUENCES, max(voxel)))
    masks = [
        run_pipeline(prepared, ensemble, tokens, torch.device(device)) >= ensemble.settings.threshold
        for device in ("cpu", "cuda")
    ]
    assert masks[0].sum() > 100
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) >= 0.995


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_probabilities_on_the_gpu_are_those_of_the_cpu(loaded: Weights, kind: str) -> None:
    scan, tokens = image(48, 44, 9), loaded.embed(PROMPT)
    on_cpu, on_gpu = (predict(loaded.ensemble(kind), scan, tokens, torch.device(d)) for d in ("cpu", "cuda"))
    assert on_gpu.device.type == "cpu" and on_gpu.dtype == torch.float32
    assert float((on_cpu - on_gpu).abs().max()) < 0.02
