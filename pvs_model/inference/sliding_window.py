"""Sliding-window prediction of an ensemble of networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pvs_model.inference import openvino
from pvs_model.inference.device import MemoryPlan, with_memory_fallback
from pvs_model.inference.ensemble import Ensemble, Group
from pvs_model.inference.windows import Window, join_windows, starts, windows
from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.precision import autocast
from pvs_model.nets.slices import stack_slices
from pvs_model.types import PLANES

Progress = Callable[[int], None]

#: Sides of 2D windows are multiples of this: few different shapes, and even ones on every level of the network.
_PLANE_STEP = 16


def predict_maps(
    ensemble: Ensemble,
    image: Tensor,
    text: Tensor,
    device: torch.device,
    batch_size: int = 4,
    mirror: bool = False,
    progress: Progress | None = None,
    backend: str = "torch",
    order: tuple[int, int, int] = (0, 1, 2),
    searched: Tensor | None = None,
) -> Tensor:
    """Predicts the probability of PVS and, with networks that estimate it, the PVS fraction.

    Probabilities are averaged over the networks of each group and combined over groups by mean or maximum. The fluid
    fraction is the mean over the groups that predict it.

    Args:
        ensemble: The networks.
        image: float32 (channels, X, Y, Z), standardised, zero for missing sequences, with the slice axis last for 2D
            networks without a view. The channel of regions follows the sequences if a group uses it.
        text: Token embeddings (T, W) of the prompt.
        device: Where to run. When its memory runs out, safer plans are tried, down to the CPU.
        batch_size: Windows per batch on a GPU.
        mirror: Whether to average over mirrored windows (8 times the work in 3D, 4 times in 2D).
        progress: Callback for the number of windows done.
        backend: "torch", "openvino", or "auto" for OpenVINO on CPUs where it is installed.
        order: RAS+ axis of each of X, Y and Z; only used by groups with a view.
        searched: bool (X, Y, Z), voxels that are needed: windows without any are not computed. None for all.

    Returns:
        float32 (1 or 2, X, Y, Z) on the CPU, 0 to 1: probability and PVS fraction; 0 where no window lies.

    Raises:
        DeviceError: Memory runs out on the CPU as well, or OpenVINO was requested and cannot run the networks.
    """

    def group_mean(group: Group) -> Tensor:
        """Mean maps (1 or 2, X, Y, Z) over the networks of a group."""
        axes = _axes(group, order)
        oriented = image[: group.config.sequences + group.regions].permute(0, *(1 + axis for axis in axes))
        sides, boxes = _layout(ensemble, group, image.shape[1:], searched, axes)
        maps = with_memory_fallback(
            lambda plan: _run(group, oriented, text, plan, sides, boxes, mirror, progress, backend), device, batch_size
        )
        return maps.permute(0, *(1 + axes.index(axis) for axis in range(3)))

    maps = [group_mean(group) for group in ensemble.groups]
    if len(maps) == 1:
        return maps[0]
    probability = torch.stack([m[0] for m in maps])
    combined = probability.amax(0) if ensemble.settings.combine == "maximum" else probability.mean(0)
    pvs_fraction = [m[1] for m in maps if len(m) > 1]
    return torch.stack([combined, torch.stack(pvs_fraction).mean(0)] if pvs_fraction else [combined])


def _axes(group: Group, order: tuple[int, int, int]) -> tuple[int, ...]:
    """The image's axes in the order that a group takes: unchanged, or with the planes of its view last."""
    return tuple(order.index(axis) for axis in PLANES[group.view]) if group.view else (0, 1, 2)


def _layout(
    ensemble: Ensemble, group: Group, shape: Sequence[int], searched: Tensor | None, axes: Sequence[int]
) -> tuple[tuple[int, ...], list[Window]]:
    """Sides and places of a group's windows over an image (X, Y, Z), in the group's order of axes."""
    sides = roi_size_for(ensemble, lengths := [shape[axis] for axis in axes], group.dimensions)
    oriented = None if searched is None else searched.permute(*axes)
    return sides, windows(lengths, sides, ensemble.settings.overlap, oriented)


def _run(
    group: Group,
    image: Tensor,
    text: Tensor,
    plan: MemoryPlan,
    sides: Sequence[int],
    boxes: Sequence[Window],
    mirror: bool,
    progress: Progress | None,
    backend: str,
) -> Tensor:
    """Mean maps (outputs, X, Y, Z) of a group, float32 on the CPU."""
    tokens = text.to(plan.device)[None]
    mean = mean_probability(group.networks, plan.device, backend)
    flat = group.dimensions == 2

    def average(batch: Tensor) -> Tensor:
        """Mean maps (B, outputs, *sides) over the networks and mirror images, in float32."""
        if flat:
            batch = batch.squeeze(-1)
        spatial = range(2, batch.ndim)
        flips = [
            tuple(a for k, a in enumerate(spatial) if m >> k & 1) for m in range(2 ** len(spatial) if mirror else 1)
        ]
        total = mean(batch, tokens)
        for axes in flips[1:]:
            total += mean(batch.flip(axes), tokens).flip(axes)
        if progress is not None:
            progress(len(batch))
        total /= len(flips)
        return total.unsqueeze(-1) if flat else total

    with torch.inference_mode():
        image = image.to(plan.output_device)  # once, instead of window by window
        if flat:
            image = stack_slices(image, group.config.neighbour_slices).permute(1, 2, 3, 0)  # (channels, X, Y, Z)
        return join_windows(image, sides, boxes, average, plan.batch_size, plan.device).cpu()


def backend_name(ensemble: Ensemble, device: torch.device, backend: str) -> str:
    """The backend of an ensemble: "cuda", "openvino", "torch" or "openvino and torch"; compiled at the first call.

    Raises:
        DeviceError: OpenVINO was requested and cannot run the networks.
    """
    if device.type != "cpu":
        return device.type
    graphs = [_graph(group.networks, device, backend) for group in ensemble.groups]
    return " and ".join(sorted({"torch" if graph is None else "openvino" for graph in graphs}))


def _graph(
    networks: tuple[SegmentationNet, ...], device: torch.device, backend: str
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The networks compiled by OpenVINO; None if PyTorch runs them."""
    if device.type != "cpu" or backend == "torch":
        return None
    return openvino.compiled(networks, backend == "openvino")


def mean_probability(
    networks: tuple[SegmentationNet, ...], device: torch.device, backend: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a function from windows (B, C, *roi) and text (1, T, W) to the networks' mean maps (B, outputs, *roi).

    The maps are float32 on the device of the windows.

    Raises:
        DeviceError: OpenVINO was requested and cannot run the networks.
    """
    graph = _graph(networks, device, backend)
    if graph is not None:
        return graph
    for network in networks:
        network.to(device)

    def mean(windows: Tensor, text: Tensor) -> Tensor:
        text = text.expand(len(windows), -1, -1)
        total = torch.zeros((), device=windows.device)
        for network in networks:
            with autocast(device):
                logits = network(windows, text)
            total = total + logits.float().sigmoid()
        return total / len(networks)

    return mean


def roi_size_for(ensemble: Ensemble, shape: Sequence[int], dimensions: int | None = None) -> tuple[int, int, int]:
    """The window size for an image (X, Y, Z) and networks of ``dimensions`` (None: those of the configuration).

    In 3D a cube of the manifest's side; in 2D a plane of one to two times that side, which covers a whole slice of
    most scans, and longer slices with as few planes as possible. On held-out simulated heads, larger cubes, the whole
    brain at once and boxes fitted to it did worse in 3D; smaller planes without padding did worse in 2D.
    """
    side = ensemble.settings.roi_size
    if (dimensions or ensemble.dimensions) == 3:
        return side, side, side
    x, y = (_plane_side(length, side, ensemble.settings.overlap) for length in shape[:2])
    return x, y, 1


def _plane_side(length: int, side: int, overlap: float) -> int:
    """The shortest side of planes that cover a slice's ``length`` with as few as planes of ``2 * side`` would."""
    count = len(starts(length, 2 * side, overlap))
    shortest = math.ceil(length / (count - (count - 1) * overlap))
    return max(side, -(-shortest // _PLANE_STEP) * _PLANE_STEP)


def count_windows(
    ensemble: Ensemble, shape: Sequence[int], order: tuple[int, int, int] = (0, 1, 2), searched: Tensor | None = None
) -> int:
    """Number of windows that ``predict_maps`` runs for an image of this shape, for a progress bar."""
    return sum(len(_layout(ensemble, group, shape, searched, _axes(group, order))[1]) for group in ensemble.groups)
