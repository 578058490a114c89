"""The OpenVINO path answers as PyTorch in float32 does, or is not taken."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pvs_model.config import NetworkConfig
from pvs_model.errors import DeviceError
from pvs_model.inference import openvino, sliding_window
from pvs_model.inference.ensemble import Ensemble, Group
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.inference.sliding_window import backend_name, mean_probability
from pvs_model.inference.weights import Weights
from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.model import build
from pvs_model.nets.text import prompt
from pvs_model.nets.zoo import MODELS
from pvs_model.pipeline import predict_probability as run_pipeline
from pvs_model.preprocessing.prepare import prepare
from pvs_model.simulation.subject import simulate, whole_scene
from pvs_model.types import SEQUENCES, Volume
from tests import processes
from tests.prediction import predict

pytestmark = pytest.mark.openvino
SETTINGS = EnsembleSettings(0.5, 16, 0.25, (0.4, 1.3), (0.4, 2.5))
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
needs_openvino = pytest.mark.skipif(not openvino.is_installed(), reason="needs the package openvino")


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    openvino.compiled.cache_clear()
    yield
    openvino.compiled.cache_clear()


def networks_of(*configs: NetworkConfig) -> tuple[SegmentationNet, ...]:
    torch.manual_seed(5)
    return tuple(build(config).eval() for config in configs)


def exact(networks: tuple[SegmentationNet, ...], windows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return sum(n(windows, words.expand(len(windows), -1, -1)).sigmoid() for n in networks) / len(networks)  # type: ignore[return-value]


@needs_openvino
@pytest.mark.parametrize(("kind", "members"), [("3d", 2), ("2d", 1)])
def test_in_float32_it_is_pytorchs_answer(
    tiny: dict[str, NetworkConfig], kind: str, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "cpu_has_bfloat16", lambda: False)
    config = tiny[kind]
    networks = networks_of(*[config] * members)
    networks[-1].mirrored = tuple(range(members))  # of two networks of one architecture, only the second
    graph = openvino.compiled(networks, required=True)
    assert graph is not None and openvino.compiled(networks, required=True) is graph
    words = torch.randn(1, 7, config.text_width)
    for batch, side in ((2, 32), (1, 24), (1, 27)):  # several shapes, one padded, and several windows at a time
        windows = torch.randn(batch, config.in_channels, *[side] * config.dimensions)
        probability = graph(windows, words)
        assert probability.dtype == torch.float32
        torch.testing.assert_close(probability, exact(networks, windows, words), rtol=0, atol=1e-3)


@needs_openvino
def test_a_converted_graph_is_read_again_and_belongs_to_its_weights(
    tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    networks, windows, words = networks_of(tiny["3d"]), torch.randn(1, 3, 16, 16, 16), torch.randn(1, 5, 384)
    first = openvino.CompiledEnsemble(networks)(windows, words)
    (stored,) = (tmp_path / "cache").rglob("*.xml")
    convert = openvino._graphs
    monkeypatch.setattr(openvino, "_graphs", lambda *_: pytest.fail("converted again"))
    assert torch.equal(openvino.CompiledEnsemble(networks)(windows, words), first)
    monkeypatch.setattr(openvino, "_graphs", convert)
    parameters = stored.with_suffix(".bin")
    for damage in (
        lambda: stored.write_text("<net"),
        lambda: stored.with_suffix(".sha256").write_bytes(b"\xff"),
        lambda: parameters.unlink(),
        lambda: parameters.write_bytes(bytes(len(parameters.read_bytes()))),  # it would load, with other parameters
        lambda: monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none"),  # a folder that cannot be written
    ):
        damage()
        again = openvino.CompiledEnsemble(networks)(windows, words)
        torch.testing.assert_close(again, first, rtol=0, atol=0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with torch.no_grad():
        networks[0].heads[0].logit.bias.add_(3)
    assert float(openvino.CompiledEnsemble(networks)(windows, words).mean()) > 2 * float(first.mean())


@needs_openvino
def test_networks_of_several_architectures_in_one_ensemble(
    tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "cpu_has_bfloat16", lambda: False)
    peer = replace(MODELS["dynunet-3d"].config, widths=(8, 8, 16))  # it never looks at the text
    bare = replace(tiny["3d"], graph=False, cross_attention=False, fusion=False)
    networks = networks_of(peer, tiny["3d"], bare)
    graph = openvino.compiled(networks, required=True)
    assert graph is not None
    windows, words = torch.randn(1, 3, 32, 16, 16), torch.randn(1, 5, 384)
    torch.testing.assert_close(graph(windows, words), exact(networks, windows, words), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_the_parts_of_an_image_give_the_stems_answer(tiny: dict[str, NetworkConfig], kind: str) -> None:
    # Each part holds 8 bits: products of rounded parts alone, as bfloat16 has them, leave 16 bits of the answer.
    (network,) = networks_of(tiny[kind])
    stem, wide = network.stem(), openvino._split_stem(network).stem()
    assert stem is not None and wide is not None and stem.in_channels == tiny[kind].in_channels
    image = 3 * torch.randn(1, tiny[kind].in_channels, *[16] * tiny[kind].dimensions)
    parts = openvino._split_image(image, openvino.SPLIT_TERMS)
    with torch.no_grad():
        wide.weight.copy_(wide.weight.bfloat16().float())
        actual, expected = wide(parts.bfloat16().float()), stem(image)
        stem.weight.copy_(stem.weight.bfloat16().float())
        coarse = stem(image.bfloat16().float())
    assert (actual - expected).abs().max() < 0.05 * (coarse - expected).abs().max()
    assert torch.equal(openvino._split_image(image, 1), image)


@needs_openvino
@pytest.mark.parametrize(("kind", "voxel"), [("3d", (1.0, 1.0, 1.0)), ("2d", (0.6, 0.6, 4.0))])
def test_the_shipped_networks_mark_the_same_voxels(
    anatomy: Any, kind: str, voxel: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = replace(whole_scene(anatomy, 0, voxel), pvs_centrum=5.0, pvs_diameter_mm=1.6, pvs_relative_contrast=0.9)
    case = simulate(anatomy, 0, voxel, scene=scene)
    prepared = prepare({name: Volume(case.images[k], case.affine) for k, name in enumerate(SEQUENCES)})
    weights = Weights(ROOT / "weights")
    text = weights.embed(prompt(SEQUENCES, max(voxel)))
    released = weights.ensemble(kind)
    ensemble = replace(released, groups=(Group(released.networks[:1]),)).with_settings(roi_size=64)  # the head is small
    fast = run_pipeline(prepared, ensemble, text, CPU, backend="openvino") >= ensemble.settings.threshold
    monkeypatch.setattr(sliding_window, "autocast", lambda device: nullcontext())
    exact = run_pipeline(prepared, ensemble, text, CPU) >= ensemble.settings.threshold
    assert exact.sum() > 100
    assert 2 * (fast & exact).sum() / (fast.sum() + exact.sum()) >= 0.995


@needs_openvino
def test_a_graph_that_answers_otherwise_is_not_used(
    tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino, "_MAX_ERROR", 0.0)
    networks = networks_of(tiny["3d"])
    ensemble = Ensemble("3d", (Group(networks),), SETTINGS)
    image, text = torch.randn(3, 16, 16, 16), torch.randn(4, 384)
    with caplog.at_level(logging.WARNING):
        probability = predict(ensemble, image, text, CPU, backend="auto")
    assert "using PyTorch" in caplog.text and "differ from PyTorch's by" in caplog.text
    torch.testing.assert_close(probability, predict(ensemble, image, text, CPU))
    with pytest.raises(DeviceError, match="--backend openvino: expected it to run these networks, got: its prob"):
        predict(ensemble, image, text, CPU, backend="openvino")


def test_without_the_package(tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    networks = networks_of(tiny["3d"])
    assert openvino.compiled(networks) is None
    windows, words = torch.randn(1, 3, 16, 16, 16), torch.randn(1, 4, 384)
    with torch.inference_mode():
        probability = mean_probability(networks, CPU, "auto")(windows, words)
    torch.testing.assert_close(probability, exact(networks, windows, words), rtol=0, atol=0.05)
    with pytest.raises(DeviceError, match=r"expected the package openvino, got none \(pip install openvino\)"):
        mean_probability(networks, CPU, "openvino")


@needs_openvino
def test_nothing_is_reported_to_anybody() -> None:
    # openvino's convert_model would send what it does to its makers.
    code = (
        "import sys, torch\n"
        "sys.addaudithook(lambda event, args: sys.exit(7) if event.startswith(('socket.', 'subprocess.')) else None)\n"
        "from pvs_model.config import NetworkConfig\n"
        "from pvs_model.inference.openvino import compiled\n"
        "from pvs_model.nets.model import build\n"
        "assert 'openvino' not in sys.modules\n"
        "network = build(NetworkConfig(dimensions=2, widths=(4, 8, 8, 8))).eval()\n"
        "compiled((network,), required=True)(torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 384))\n"
        "assert 'openvino' in sys.modules\n"
    )
    ran = processes.run([], code)
    assert ran.returncode == 0, ran.stderr


@needs_openvino
@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_windows_of_any_side_are_padded_as_pytorch_does(
    tiny: dict[str, NetworkConfig], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "cpu_has_bfloat16", lambda: False)
    peer = replace(MODELS[f"dynunet-{kind}"].config, widths=(8, 8, 16, 16, 16))  # sides of 16 n, from 32 on
    for config in (tiny[kind], peer):
        networks = networks_of(config)
        graph = openvino.compiled(networks, required=True)
        assert graph is not None
        for sides in ((24, 40, 17), (8, 32, 24)):
            windows = torch.randn(1, config.in_channels, *sides[: config.dimensions])
            words = torch.randn(1, 4, config.text_width)
            probability = graph(windows, words)
            assert probability.shape == (1, 1, *windows.shape[2:])
            torch.testing.assert_close(probability, exact(networks, windows, words), rtol=0, atol=1e-3)


@needs_openvino
def test_networks_whose_graph_holds_for_one_size_are_pytorchs(
    tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    networks = networks_of(tiny["3d"], tiny["3d"])
    networks[1].supports_dynamic_shape = False
    plain = networks_of(tiny["3d"])
    ensemble = Ensemble(
        "3d", (Group(networks, "a"), Group(plain, "b")), EnsembleSettings(0.5, 16, 0.25, (0.4, 1.3), (0.4, 2.5))
    )
    monkeypatch.setattr(openvino, "_graphs", lambda *_: pytest.fail("it was traced"))
    with caplog.at_level(logging.WARNING):
        assert openvino.compiled(networks) is None
    assert not caplog.messages
    monkeypatch.undo()
    assert backend_name(ensemble, CPU, "auto") == "openvino and torch" and not caplog.messages
    assert backend_name(ensemble, CPU, "torch") == "torch"
    with pytest.raises(DeviceError, match="expected networks whose graph is valid for every size, got graph_fusion$"):
        backend_name(ensemble, CPU, "openvino")


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_regions_are_split_like_the_sequences(tiny: dict[str, NetworkConfig], kind: str) -> None:
    config = replace(tiny[kind], regions=True)
    (network,) = networks_of(config)
    windows, words = torch.randn(1, config.in_channels, *[16] * config.dimensions), torch.randn(1, 4, config.text_width)
    with torch.inference_mode():
        image = openvino._split_image(windows, openvino.SPLIT_TERMS)
        probability = openvino._Probability(network, openvino.SPLIT_TERMS)(image, words)
    torch.testing.assert_close(probability, exact((network,), windows, words), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_short_prompts_mean_the_same_in_openvino(kind: str) -> None:
    """Of four words, as many as there are heads, OpenVINO made probabilities that were wrong by 0.3 to 0.5."""
    weights = Weights(ROOT / "weights")
    networks = weights.ensemble(kind).networks[:1]
    graph = openvino.CompiledEnsemble(networks)
    config = networks[0].config
    torch.manual_seed(0)
    windows = torch.randn(1, config.in_channels, *[32] * config.dimensions)
    words = weights.embed(prompt(SEQUENCES, 1.0))
    for count in (1, 2, 4, 5, 8):
        said = words[None, :count]
        with torch.inference_mode():
            expected = networks[0](windows, said).sigmoid()
        error = openvino.relative_error(graph(windows, said), expected)
        assert error < openvino._MAX_ERROR  # bfloat16: up to 0.09
        other = networks[0](windows, torch.randn_like(said)).sigmoid()
        assert openvino.relative_error(other, expected) > 3 * error, "another prompt is another answer"
