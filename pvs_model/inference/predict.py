"""Sliding windows over a volume, the whole ensemble on each, and what to do when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvs_model.errors import DeviceError
from pvs_model.inference import openvino
from pvs_model.inference.ensemble import Ensemble, Group
from pvs_model.nets.model import SegmentationNet
from pvs_model.nets.precision import cpu_has_bfloat16
from pvs_model.nets.slices import stack_slices

log = logging.getLogger(__name__)

Progress = Callable[[int], None]

#: Sides of planes are multiples of this: few different shapes, and even ones on every level of the network.
_STEP = 16

#: Order of RAS+ axes that puts planes of a view last.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


@dataclass(frozen=True)
class Attempt:
    """One way of running: windows at a time, where the network runs, where probabilities add up."""

    batch: int
    device: torch.device
    accumulate: torch.device

    def __str__(self) -> str:
        return f"{self.batch} windows at a time on {self.device.type}, adding up on {self.accumulate.type}"


def attempts(device: torch.device, batch: int) -> Iterator[Attempt]:
    """From fastest to safest: halve the batch, then add up on the CPU, then run on the CPU altogether."""
    if device.type != "cpu":
        size = batch
        while size >= 1:
            yield Attempt(size, device, device)
            size //= 2
        yield Attempt(1, device, torch.device("cpu"))
    yield Attempt(1, torch.device("cpu"), torch.device("cpu"))


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA where it is there and works.

    Raises:
        DeviceError: when ``cuda`` is asked for and no CUDA device can be used.
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if name == "cuda":
        raise DeviceError(
            "--device cuda: expected a CUDA device, found none that this PyTorch build and driver can use"
        )
    return torch.device("cpu")


def autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """bfloat16 where GPU or CPU have it in hardware, else float16 on GPUs and float32 on CPUs."""
    if device.type != "cuda":
        return torch.autocast("cpu", torch.bfloat16) if cpu_has_bfloat16() else nullcontext()
    modern = torch.cuda.get_device_capability(device)[0] >= 8
    return torch.autocast("cuda", torch.bfloat16 if modern else torch.float16)


def predict(ensemble: Ensemble, image: Tensor, text: Tensor, device: torch.device, **options: Any) -> Tensor:
    """Probability of PVS (X, Y, Z), the first map of ``predict_maps``, which explains the arguments."""
    return predict_maps(ensemble, image, text, device, **options)[0]


def predict_maps(
    ensemble: Ensemble,
    image: Tensor,
    text: Tensor,
    device: torch.device,
    batch: int = 4,
    mirror: bool = False,
    progress: Progress | None = None,
    backend: str = "torch",
    order: tuple[int, int, int] = (0, 1, 2),
) -> Tensor:
    """Probability of PVS: the mean over the networks of each group, then the mean or maximum over groups.

    Where a group's networks predict the fluid fraction, too, its mean over these groups is the second map.

    Args:
        ensemble: the networks.
        image: (channels, X, Y, Z) float32, standardised, zero where a sequence is missing; for 2D networks without
            a view slices lie along the last axis. After the sequences there is the channel of regions, where a
            group asks for it.
        text: (T, W) token embeddings of the prompt.
        device: where to run; when its memory runs out, safer ways are tried, down to the CPU.
        batch: windows at a time on a GPU.
        mirror: average over mirror images along each axis of the window too (8 or 4 times the work).
        progress: called with the number of windows done.
        backend: what runs the networks on a CPU: "torch", "openvino", or "auto" for OpenVINO where it is installed.
        order: which axis of the head, in RAS+, each of X, Y and Z is; only groups with a view ask.

    Returns:
        (1 or 2, X, Y, Z) float32 on the CPU, 0 to 1: the probability, and the fluid fraction.

    Raises:
        DeviceError: when memory runs out on the CPU as well, or OpenVINO was asked for and cannot run the networks.
    """

    def mean_of(group: Group) -> Tensor:
        """Mean maps (1 or 2, X, Y, Z) over the networks of a group."""
        axes = _axes(group, order)
        seen = image[: group.config.sequences + group.regions].permute(0, *(1 + axis for axis in axes))
        ways = list(attempts(device, batch))
        for attempt, safer in zip(ways, [*ways[1:], None], strict=True):
            try:
                maps = _run(ensemble, group, seen, text, attempt, mirror, progress, backend)
                return maps.permute(0, *(1 + axes.index(axis) for axis in range(3)))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if attempt.device.type != "cpu":
                    torch.cuda.empty_cache()
                if safer is not None:
                    log.warning("out of memory with %s; trying %s", attempt, safer)
        raise DeviceError("expected enough memory for one window on the CPU, found that it ran out")

    maps = [mean_of(group) for group in ensemble.groups]
    if len(maps) == 1:
        return maps[0]
    probability = torch.stack([m[0] for m in maps])
    combined = probability.amax(0) if ensemble.combine == "maximum" else probability.mean(0)
    fluid = [m[1] for m in maps if len(m) > 1]
    return torch.stack([combined, torch.stack(fluid).mean(0)] if fluid else [combined])


def device_lost(error: BaseException) -> bool:
    """Whether an error is the GPU's own (unplugged, reset, a fault in its memory), not one of ours or of memory."""
    if _out_of_memory(error):
        return False
    kind = getattr(torch, "AcceleratorError", None)
    text = str(error).lower()
    words = ("cuda error", "cudnn error", "cublas error", "cublas_status", "cudnn_status", "no cuda-capable device")
    return (kind is not None and isinstance(error, kind)) or any(word in text for word in words)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "cublas_status_alloc_failed" in text


def _axes(group: Group, order: tuple[int, int, int]) -> tuple[int, ...]:
    """The image's axes as a group takes them: as they are, or with the planes of its view last."""
    return tuple(order.index(axis) for axis in PLANES[group.view]) if group.view else (0, 1, 2)


def _run(
    ensemble: Ensemble,
    group: Group,
    image: Tensor,
    text: Tensor,
    attempt: Attempt,
    mirror: bool,
    progress: Progress | None,
    backend: str,
) -> Tensor:
    # MONAI takes seconds to import: not before the first image has been read.
    from monai.inferers import SliceInferer, SlidingWindowInferer

    tokens = text.to(attempt.device)[None]
    mean = mean_probability(group.networks, attempt.device, backend)

    def average(windows: Tensor) -> Tensor:
        """Mean maps (B, outputs, *window) over the networks and mirror images, in float32."""
        spatial = range(2, windows.ndim)
        flips = [
            tuple(a for k, a in enumerate(spatial) if m >> k & 1) for m in range(2 ** len(spatial) if mirror else 1)
        ]
        total = mean(windows, tokens)
        for axes in flips[1:]:
            total += mean(windows.flip(axes), tokens).flip(axes)
        if progress is not None:
            progress(len(windows))
        return total / len(flips)

    shared = {
        "sw_batch_size": attempt.batch,
        "overlap": ensemble.overlap,
        "mode": "gaussian",
        "sw_device": attempt.device,
        "device": attempt.accumulate,
    }
    window = window_of(ensemble, image.shape[1:], group.dimensions)
    with torch.inference_mode():
        image = image.to(attempt.accumulate)  # once, so that no window makes the way to the GPU by itself
        if group.dimensions == 3:
            inferer = SlidingWindowInferer(roi_size=window, **shared)
            probability = inferer(image[None], average)
        else:
            neighbours = group.config.neighbour_slices
            stacked = stack_slices(image, neighbours).permute(1, 2, 3, 0)[None]  # (1, channels, X, Y, Z)
            probability = SliceInferer(roi_size=window, spatial_dim=2, **shared)(stacked, average)
    assert isinstance(probability, Tensor)
    return probability[0].float().cpu()


def computed_by(ensemble: Ensemble, device: torch.device, backend: str) -> str:
    """What runs an ensemble: "cuda", "openvino", "torch" on a CPU, or both of these; made ready at the first call.

    Raises:
        DeviceError: when OpenVINO was asked for and cannot run the networks.
    """
    if device.type != "cpu":
        return device.type
    graphs = [_graph(group.networks, device, backend) for group in ensemble.groups]
    return " and ".join(sorted({"torch" if graph is None else "openvino" for graph in graphs}))


def _graph(
    networks: tuple[SegmentationNet, ...], device: torch.device, backend: str
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The networks as OpenVINO runs them; None where PyTorch does."""
    if device.type != "cpu" or backend == "torch":
        return None
    return openvino.compiled(networks, backend == "openvino")


def mean_probability(
    networks: tuple[SegmentationNet, ...], device: torch.device, backend: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """Networks as a function: windows (B, C, *window), words (1, T, W) -> mean of their maps (B, outputs, *window).

    Float32, on the windows' device.

    Raises:
        DeviceError: when OpenVINO was asked for and cannot run the networks.
    """
    graph = _graph(networks, device, backend)
    if graph is not None:
        return graph
    for network in networks:
        network.to(device)

    def mean(windows: Tensor, words: Tensor) -> Tensor:
        words = words.expand(len(windows), -1, -1)
        total = torch.zeros((), device=windows.device)
        for network in networks:
            with autocast(device):
                logits = network(windows, words)
            total = total + logits.float().sigmoid()
        return total / len(networks)

    return mean


def window_of(ensemble: Ensemble, shape: Sequence[int], dimensions: int | None = None) -> tuple[int, ...]:
    """Sides of the windows for an image (X, Y, Z) and networks of so many dimensions (None: those of the kind).

    In 3D a cube of the manifest's side; in 2D a plane from that side up to twice as long: one for a whole slice of
    nearly every scan. On held-out simulated heads larger cubes, the whole brain at once, and boxes that fit it did
    worse in 3D, planes of 256 in 2D, and of planes below 256 those without padding.
    """
    side = ensemble.window
    if (dimensions or ensemble.dimensions) == 3:
        return (side,) * 3
    return tuple(min(max(side, -(-length // _STEP) * _STEP), 2 * side) for length in shape[:2])


def count_windows(
    ensemble: Ensemble, shape: tuple[int, int, int], order: tuple[int, int, int] = (0, 1, 2)
) -> int:
    """How many windows ``predict`` runs for an image of this shape and order of axes (for a progress bar)."""
    total = 0
    for group in ensemble.groups:
        sides = [shape[axis] for axis in _axes(group, order)]
        count = 1 if group.dimensions == 3 else sides[2]
        for length, side in zip(sides, window_of(ensemble, sides, group.dimensions), strict=False):
            step = max(1, int(side * (1 - ensemble.overlap)))
            count *= max(1, -(-max(0, length - side) // step) + 1)
        total += count
    return total
