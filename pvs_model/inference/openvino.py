"""A group of networks as one OpenVINO graph: the fast path on CPUs, taken where the package ``openvino`` is installed.

The networks are traced once per architecture, their weights put in, and their graphs joined into one whose answer is
the mean probability, so that only one network's features are in memory at a time. ``openvino``'s own
``convert_model`` is not used: it asks for a package that reports its use over the network.
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

from pvs_model.errors import DeviceError
from pvs_model.nets.model import SegmentationNet, cropped
from pvs_model.nets.precision import cpu_has_bfloat16

log = logging.getLogger(__name__)

#: Parts in which a stem reads the image where the rest is bfloat16.
PARTS = 3
#: Compiled graphs kept, one per shape of window.
_SHAPES_KEPT = 3
#: Side of the window that a new graph is tried on, and how far its probabilities may lie from PyTorch's in float32
#: there: bfloat16's own error on noise, the hardest input, is 0.05; a wrong operator makes it 0.3 and more.
_TRIAL, _FAR = 32, 0.15


class _Probability(nn.Module):
    """Sigmoid of a network's logits, for an image as it is or in parts (``_in_parts``)."""

    def __init__(self, network: SegmentationNet, parts: int) -> None:
        super().__init__()
        self.network = network if parts == 1 else _reading_parts(network)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, parts * C, *window) and (B, T, W) to (B, outputs, *window), 0 to 1."""
        probability: Tensor = self.network(image, text).sigmoid()
        return probability


def _reading_parts(network: SegmentationNet) -> SegmentationNet:
    """A copy of a network whose stem takes the image as ``_in_parts`` gives it.

    With w = h + l, rounded to bfloat16 and the rest: h rounded + h rest + l rounded, added up in float32.
    """
    network = copy.deepcopy(network)
    channels = network.config.sequences + network.config.regions
    network.config = replace(network.config, sequences=PARTS * channels, regions=False)
    stem = network.stem()
    if stem is None:
        raise RuntimeError(f"{type(network).__name__} has no stem to widen")
    weight = stem.weight.detach()
    rounded = weight.bfloat16().float()
    stem.weight = nn.Parameter(torch.cat([rounded, rounded, weight - rounded], dim=1))
    stem.in_channels *= PARTS
    return network


def _in_parts(image: Tensor, parts: int) -> Tensor:
    """The image in bfloat16, what that rounding left, and the first again, as channels; as it is for one part.

    Rounding the image and the stem's weights is half of what bfloat16 does to probabilities near a threshold, and the
    stem is a few per cent of the work.
    """
    if parts == 1:
        return image
    rounded = image.bfloat16().float()
    return torch.cat([rounded, image - rounded, rounded], dim=1)


def is_installed() -> bool:
    """Whether the package ``openvino`` is there."""
    return find_spec("openvino") is not None


@lru_cache(maxsize=8)  # groups of a "3d" and a "2d" ensemble
def compiled(networks: tuple[SegmentationNet, ...], wanted: bool = False) -> CompiledEnsemble | None:
    """The networks as a graph, kept for the next case; None, with a warning, where that does not work.

    Networks that work out sizes in Python are not tried: a graph traced from them is wrong at other sizes.

    Args:
        networks: in eval mode, on the CPU.
        wanted: whether the user asked for it: then not having it is an error.

    Raises:
        DeviceError: when it was asked for and cannot be had.
    """
    if not is_installed():
        if wanted:
            raise DeviceError("--backend openvino: expected the package openvino, found none (pip install openvino)")
        return None
    fixed = sorted({network.config.architecture for network in networks if not network.any_size})
    if fixed:
        if wanted:
            raise DeviceError(
                f"--backend openvino: expected networks whose graph holds for every size, found {', '.join(fixed)}"
            )
        return None
    try:
        return CompiledEnsemble(networks)
    except Exception as error:  # whatever a converter may say: PyTorch runs everything
        told = " ".join(str(error).split())[:300]
        if wanted:
            raise DeviceError(f"--backend openvino: expected it to run these networks, found: {told}") from error
        log.warning("OpenVINO cannot run these networks (%s): PyTorch does", told)
        return None


class CompiledEnsemble:
    """Mean probability of networks, called like a function.

    Windows are padded with zeros to sides that all of the networks can halve, as ``SegmentationNet.forward`` does for
    one: a trace has no padding in it.

    Raises:
        RuntimeError: when a network cannot be converted, or its graph answers otherwise than PyTorch.
    """

    def __init__(self, networks: Iterable[SegmentationNet]) -> None:
        networks = list(networks)
        fast = cpu_has_bfloat16()
        self.parts = PARTS if fast and all(network.stem() is not None for network in networks) else 1
        self.multiple = math.lcm(*(network.multiple for network in networks))
        self.least = max(network.least for network in networks)
        self.heads = max(network.config.heads for network in networks)
        self.graph = _joined(_graphs(networks, self.parts))
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, windows: Tensor, words: Tensor) -> Tensor:
        """Windows (B, C, *window), float32, and words (1, T, W) to the mean maps (B, outputs, *window), float32."""
        sides = windows.shape[2:]
        short = [_rounded(max(side, self.least), self.multiple) - side for side in sides]
        if any(short):
            windows = nn.functional.pad(windows, [n for extra in reversed(short) for n in (0, extra)])
        windows = _in_parts(windows, self.parts)
        words = _more_than(words, self.heads)
        shape = (*windows.shape[1:], *words.shape[1:])
        if shape not in self._requests:
            self._requests[shape] = _request(self.graph, tuple(windows.shape[1:]), tuple(words.shape[1:]))
            if len(self._requests) > _SHAPES_KEPT:
                self._requests.popitem(last=False)
        self._requests.move_to_end(shape)
        answers = [_run(self._requests[shape], window, words) for window in windows.split(1)]
        return cropped(torch.cat(answers), sides)


def _more_than(words: Tensor, count: int) -> Tensor:
    """Words (1, T, W), said as often as makes them more than ``count``: the same to attention, which averages.

    OpenVINO's attention is wrong in bfloat16 for as many words as heads (2026.4: by up to 0.5 in the probability).
    """
    return words.repeat(1, count // words.shape[1] + 1, 1)


def _graphs(networks: list[SegmentationNet], parts: int) -> list[Any]:
    """One graph per network, the first of each architecture checked against PyTorch; all take the image in parts."""
    import openvino as ov
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    front = FrontEndManager().load_by_framework("pytorch")
    traces: dict[Any, Any] = {}
    graphs = []
    for network in networks:
        config = network.config
        channels = parts * config.in_channels
        image = torch.zeros(1, channels, *[_least(network, 16)] * config.dimensions)
        text = torch.zeros(1, 4, config.text_width)
        module = _Probability(network.cpu(), parts).eval()
        first = config not in traces
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks of shapes are not part of the trace, and need not be
            if first:
                traces[config] = torch.jit.trace(module, (image, text), check_trace=False)
            trace = copy.deepcopy(traces[config])  # the graph keeps the trace's own memory
            trace.load_state_dict(module.state_dict())
            decoder = TorchScriptPythonDecoder(torch.jit.freeze(trace.eval()), example_input=(image, text))
            model = front.load(decoder)
            shapes = [[1, channels, *[-1] * config.dimensions], [1, -1, config.text_width]]
            for place, shape in zip(model.get_inputs(), shapes, strict=True):
                model.set_element_type(place, ov.Type.f32)
                model.set_partial_shape(place, ov.PartialShape(shape))
            graph = front.convert(model)
        if first:
            _check(graph, network, parts)
            graph.reshape(dict(enumerate(shapes)))  # of any size again: others in the ensemble may be tried on another
        graphs.append(graph)
    return graphs


def _rounded(side: int, multiple: int) -> int:
    """Up to a multiple."""
    return -(-side // multiple) * multiple


def _least(network: SegmentationNet, side: int) -> int:
    """A side from ``side`` on that the network takes without padding, with two voxels on the lowest level."""
    return _rounded(max(side, network.least, 2 * network.multiple), network.multiple)


def _check(graph: Any, network: SegmentationNet, parts: int) -> None:
    """Compare a graph with PyTorch in float32 on noise: in a cube as it will be run, and in a box in float32, too.

    What a trace got wrong about sizes shows in any precision; and bfloat16 on noise is near its limit already.
    """
    config = network.config
    random = torch.Generator().manual_seed(1)
    cube = [_least(network, _TRIAL)] * 3
    box = [_least(network, 16) + k * network.multiple for k in range(3)]
    for sides, tokens, exact in ((cube, 11, False), (box, 7, True)):
        image = torch.randn(1, config.in_channels, *sides[: config.dimensions], generator=random)
        text = torch.randn(1, tokens, config.text_width, generator=random)
        with torch.inference_mode():
            expected = network.eval()(image, text).sigmoid()
        image = _in_parts(image, parts)
        found = _run(_request(graph, tuple(image.shape[1:]), tuple(text.shape[1:]), exact), image, text)
        worst = float((found - expected).abs().max())
        if not worst < _FAR:  # NaN is not
            raise RuntimeError(f"its probabilities differ from PyTorch's by up to {worst:.2g} on a trial window")


def _joined(graphs: list[Any]) -> Any:
    """The graphs with one image, one text, and the mean of their answers."""
    import openvino as ov
    from openvino import opset15 as ops

    inputs = graphs[0].get_parameters()
    answers = []
    for graph in graphs:
        for own, shared in zip(graph.get_parameters(), inputs, strict=True):
            if graph is not graphs[0]:
                for target in own.output(0).get_target_inputs():
                    target.replace_source_output(shared.output(0))
        answers.append(graph.get_results()[0].input_value(0))
    total = answers[0]
    for answer in answers[1:]:
        total = ops.add(total, answer).output(0)
    if len(answers) > 1:
        total = ops.multiply(total, ops.constant(np.float32(1 / len(answers)))).output(0)
    return ov.Model([ops.result(total)], inputs, "ensemble")


def _request(graph: Any, window: tuple[int, ...], words: tuple[int, ...], exact: bool = False) -> Any:
    """A graph compiled for one shape of window, ready to run on as many cores as PyTorch would use.

    ``exact``: in float32 everywhere.
    """
    graph.reshape({0: [1, *window], 1: [1, *words]})
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


def _run(request: Any, window: Tensor, words: Tensor) -> Tensor:
    arrays = {0: np.ascontiguousarray(window.numpy()), 1: np.ascontiguousarray(words.numpy())}
    return torch.from_numpy(next(iter(request.infer(arrays, share_inputs=True).values())).copy())
