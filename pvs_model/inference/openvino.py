"""Compiles a group of networks to one OpenVINO graph: the fast path on CPUs where ``openvino`` is installed.

The networks are traced once per architecture and mirror image, filled with each network's weights, and joined into one
graph whose output is the mean probability, so that only one network's features are in memory at a time. The result is
kept in the user's cache folder (``graph_cache``). ``convert_model`` is not used, because it needs a package that sends
usage data.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pvs_model.errors import DeviceError, one_line
from pvs_model.inference.graph_cache import cached_graph
from pvs_model.nets.base import SegmentationNet, crop
from pvs_model.nets.precision import cpu_has_bfloat16

log = logging.getLogger(__name__)

#: Terms into which the image is split for the first convolution when the rest runs in bfloat16.
SPLIT_TERMS = 3
#: Number of compiled graphs that are cached, one per window shape.
_CACHED_SHAPES = 3
#: Side of the window of noise on which a new graph is compared with PyTorch in float32, and the largest accepted
#: ``relative_error`` of its probabilities: bfloat16 itself has up to 0.09, a graph that ignores the prompt 0.4 to 0.8.
_CHECK_SIDE, _MAX_ERROR = 32, 0.2


class _Probability(nn.Module):
    """Sigmoid of a network's logits, for an image that is split into terms (``_split_image``) or not."""

    def __init__(self, network: SegmentationNet, terms: int) -> None:
        super().__init__()
        self.network = network if terms == 1 else _split_stem(network)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, terms * C, *window) and (B, T, W) to (B, outputs, *window), 0 to 1."""
        probability: Tensor = self.network(image, text).sigmoid()
        return probability


def _split_stem(network: SegmentationNet) -> SegmentationNet:
    """A copy of a network whose first convolution takes the terms of ``_split_image``.

    With w = h + l and x = a + b, each rounded to bfloat16 and its remainder: h a + h b + l a, summed in float32.
    """
    network = copy.deepcopy(network)
    channels = network.config.sequences + network.config.regions
    network.config = replace(network.config, sequences=SPLIT_TERMS * channels, regions=False)
    stem = network.stem()
    if stem is None:
        raise RuntimeError(f"{type(network).__name__} has no first convolution to widen")
    weight = stem.weight.detach()
    rounded = weight.bfloat16().float()
    stem.weight = nn.Parameter(torch.cat([rounded, rounded, weight - rounded], dim=1))
    stem.in_channels *= SPLIT_TERMS
    return network


def _split_image(image: Tensor, terms: int) -> Tensor:
    """The image rounded to bfloat16, the remainder, and the first again, as channels; unchanged for one term.

    Rounding the image and the weights of the first convolution causes half of the changes of probabilities by
    bfloat16, and that convolution is a few per cent of the work.
    """
    if terms == 1:
        return image
    rounded = image.bfloat16().float()
    return torch.cat([rounded, image - rounded, rounded], dim=1)


def is_installed() -> bool:
    """Whether the package ``openvino`` is installed."""
    return find_spec("openvino") is not None


@lru_cache(maxsize=8)  # groups of a "3d" and a "2d" ensemble
def compiled(networks: tuple[SegmentationNet, ...], required: bool = False) -> CompiledEnsemble | None:
    """Compiles the networks and caches the graph for the next case.

    Networks that compute sizes in Python are excluded: a graph traced from them is wrong at other sizes.

    Args:
        networks: Networks in eval mode on the CPU.
        required: Whether the user requested OpenVINO, so that it is an error if it cannot be used.

    Returns:
        The graph; None, with a warning, if the networks cannot be compiled.

    Raises:
        DeviceError: OpenVINO is required and cannot be used.
    """
    if not is_installed():
        if required:
            raise DeviceError("--backend openvino: expected the package openvino, got none (pip install openvino)")
        return None
    fixed = sorted({network.config.architecture for network in networks if not network.supports_dynamic_shape})
    if fixed:
        if required:
            raise DeviceError(
                f"--backend openvino: expected networks whose graph is valid for every size, got {', '.join(fixed)}"
            )
        return None
    try:
        return CompiledEnsemble(networks)
    except Exception as error:  # of any kind, from the converter: PyTorch runs all networks
        reason = one_line(error)[:300]
        if required:
            raise DeviceError(f"--backend openvino: expected it to run these networks, got: {reason}") from error
        log.warning("OpenVINO cannot run these networks (%s): using PyTorch", reason)
        return None


class CompiledEnsemble:
    """A callable that returns the mean probability of several networks.

    Windows are padded with zeros to sides that all networks can halve, as ``SegmentationNet.forward`` does for one: a
    trace contains no padding.

    Raises:
        RuntimeError: A network cannot be converted, or its graph differs from PyTorch.
    """

    def __init__(self, networks: Iterable[SegmentationNet]) -> None:
        networks = list(networks)
        splits = cpu_has_bfloat16() and all(network.stem() is not None for network in networks)
        self.terms = SPLIT_TERMS if splits else 1
        self.size_divisor = math.lcm(*(network.size_divisor for network in networks))
        self.min_size = max(network.min_size for network in networks)
        self.heads = max(network.config.heads for network in networks)
        self.graph = cached_graph(_core(), networks, self.terms, lambda: _joined(_graphs(networks, self.terms)))
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, windows: Tensor, text: Tensor) -> Tensor:
        """Maps windows (B, C, *window) and token embeddings (1, T, W) to mean maps (B, outputs, *window), float32."""
        sides = windows.shape[2:]
        short = [_round_up(max(side, self.min_size), self.size_divisor) - side for side in sides]
        if any(short):
            windows = nn.functional.pad(windows, [n for extra in reversed(short) for n in (0, extra)])
        windows = _split_image(windows, self.terms)
        text = _repeat_beyond(text, self.heads)
        shape = (*windows.shape[1:], *text.shape[1:])
        if shape not in self._requests:
            self._requests[shape] = _request(self.graph, tuple(windows.shape[1:]), tuple(text.shape[1:]))
            if len(self._requests) > _CACHED_SHAPES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(shape)
        maps = [_run(self._requests[shape], window, text) for window in windows.split(1)]
        return crop(torch.cat(maps), sides)


def _repeat_beyond(text: Tensor, count: int) -> Tensor:
    """Token embeddings (1, T, W) repeated to more than ``count`` tokens, which changes no attention-weighted mean.

    OpenVINO's attention is wrong in bfloat16 for as many tokens as heads (2026.4: by up to 0.5 in the probability).
    """
    return text.repeat(1, count // text.shape[1] + 1, 1)


def _graphs(networks: list[SegmentationNet], terms: int) -> list[Any]:
    """One graph per network, the first of each architecture and mirror image checked against PyTorch."""
    import openvino as ov
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    front = FrontEndManager().load_by_framework("pytorch")
    traces: dict[Any, Any] = {}
    graphs = []
    for network in networks:
        config, kind = network.config, (network.config, network.mirrored)
        channels = terms * config.in_channels
        image = torch.zeros(1, channels, *[_min_side(network, 16)] * config.dimensions)
        text = torch.zeros(1, 4, config.text_width)
        module = _Probability(network.cpu(), terms).eval()
        first = kind not in traces
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks of shapes are not part of the trace
            if first:
                traces[kind] = torch.jit.trace(module, (image, text), check_trace=False)
            trace = copy.deepcopy(traces[kind])  # the graph shares the memory of the trace
            trace.load_state_dict(module.state_dict())
            decoder = TorchScriptPythonDecoder(torch.jit.freeze(trace.eval()), example_input=(image, text))
            model = front.load(decoder)
            shapes = [[1, channels, *[-1] * config.dimensions], [1, -1, config.text_width]]
            for place, shape in zip(model.get_inputs(), shapes, strict=True):
                model.set_element_type(place, ov.Type.f32)
                model.set_partial_shape(place, ov.PartialShape(shape))
            graph = front.convert(model)
        if first:
            _check(graph, network, terms)
            graph.reshape(dict(enumerate(shapes)))  # of any size again, since _check fixed it
        graphs.append(graph)
    return graphs


def _round_up(side: int, multiple: int) -> int:
    """The next multiple."""
    return -(-side // multiple) * multiple


def _min_side(network: SegmentationNet, side: int) -> int:
    """The smallest side of at least ``side`` without padding, and with two voxels on the lowest level."""
    return _round_up(max(side, network.min_size, 2 * network.size_divisor), network.size_divisor)


def _check(graph: Any, network: SegmentationNet, terms: int) -> None:
    """Compares a graph with PyTorch in float32 on noise: a cube in the precision of inference, a box in float32.

    Errors of a trace in other sizes show in any precision, and bfloat16 on noise is close to the limit already.

    Raises:
        RuntimeError: They differ.
    """
    config = network.config
    random = torch.Generator().manual_seed(1)
    cube = [_min_side(network, _CHECK_SIDE)] * 3
    box = [_min_side(network, 16) + k * network.size_divisor for k in range(3)]
    for sides, tokens, exact in ((cube, 11, False), (box, 7, True)):
        image = torch.randn(1, config.in_channels, *sides[: config.dimensions], generator=random)
        text = torch.randn(1, tokens, config.text_width, generator=random)
        with torch.inference_mode():
            expected = network.eval()(image, text).sigmoid()
        image = _split_image(image, terms)
        actual = _run(_request(graph, tuple(image.shape[1:]), tuple(text.shape[1:]), exact), image, text)
        error = relative_error(actual, expected)
        if not error < _MAX_ERROR:  # also for NaN
            raise RuntimeError(f"its probabilities differ from PyTorch's by {error:.0%} on a test window")


@torch.no_grad()
def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to that of what is expected.

    The largest difference would depend on single voxels, and be small wherever all probabilities are.
    """
    return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp_min(1e-12))


def _joined(graphs: list[Any]) -> Any:
    """One graph with a common image and text, and the mean of the outputs."""
    import openvino as ov
    from openvino import opset15 as ops

    inputs = graphs[0].get_parameters()
    outputs = []
    for graph in graphs:
        for own, shared in zip(graph.get_parameters(), inputs, strict=True):
            if graph is not graphs[0]:
                for target in own.output(0).get_target_inputs():
                    target.replace_source_output(shared.output(0))
        outputs.append(graph.get_results()[0].input_value(0))
    total = outputs[0]
    for output in outputs[1:]:
        total = ops.add(total, output).output(0)
    if len(outputs) > 1:
        total = ops.multiply(total, ops.constant(np.float32(1 / len(outputs)))).output(0)
    return ov.Model([ops.result(total)], inputs, "ensemble")


def _request(graph: Any, window: tuple[int, ...], text: tuple[int, ...], exact: bool = False) -> Any:
    """An inference request for one window shape, on as many cores as PyTorch uses; in float32 if ``exact``."""
    graph.reshape({0: [1, *window], 1: [1, *text]})
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if cpu_has_bfloat16() and not exact else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # several processes on one machine would share the first cores
    }
    return _core().compile_model(graph, "CPU", settings).create_infer_request()


@lru_cache(maxsize=1)
def _core() -> Any:
    import openvino as ov

    return ov.Core()


def _run(request: Any, window: Tensor, text: Tensor) -> Tensor:
    arrays = {0: np.ascontiguousarray(window.numpy()), 1: np.ascontiguousarray(text.numpy())}
    return torch.from_numpy(next(iter(request.infer(arrays, share_inputs=True).values())).copy())
