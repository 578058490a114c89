"""Precision of the arithmetic in training and inference, and support for bfloat16 on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PRECISIONS = ("auto", "bfloat16", "float32")


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, which make networks 1.7 to 2.4 times as fast.

    Without them bfloat16 is slower than float32.
    """
    # Private in torch 2.13, without a public equivalent. Versions that lack it use float32.
    is_supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return is_supported is not None and bool(is_supported())


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """Autocast context of training and inference on a device.

    Args:
        device: Device of the network.
        precision: "bfloat16", "float32", or "auto": bfloat16 on GPUs and CPUs with instructions for it, else float32 on
            CPUs and, on GPUs, float16 without gradients, many of which it would round to 0, and bfloat16 with them.

    Raises:
        ValueError: For another precision.

    Example:
        >>> with autocast(torch.device("cpu"), "bfloat16"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    dtype, enabled = torch.bfloat16, precision == "bfloat16"
    if precision == "auto" and device.type == "cuda":
        enabled = True
        if not torch.is_grad_enabled() and torch.cuda.get_device_capability(device)[0] < 8:
            dtype = torch.float16
    elif precision == "auto":
        enabled = cpu_has_bfloat16()
    return torch.autocast(device.type, dtype, enabled=enabled)


class Bf16SafeConv3d(nn.Conv3d):
    """``nn.Conv3d`` that trains in float32 where the depth of the input is below the kernel size.

    On CPUs with bfloat16, oneDNN (torch 2.13) computes the gradient of such a kernel from memory outside the
    input: often NaN, sometimes wrong numbers, with kernels of 5 and 7 a crash. Observed for depths of 2 with
    kernels of 3, 1 to 4 with 5, 2 to 4 with 7. Inference is not affected.
    """

    def forward(self, input: Tensor) -> Tensor:
        """See ``nn.Conv3d``."""
        shallow = input.device.type == "cpu" and input.shape[-3] < self.kernel_size[0]
        if shallow and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


def make_safe_in_bfloat16(network: nn.Module) -> None:
    """Turns every 3D convolution of a network into a ``Bf16SafeConv3d``; parameters and their names stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = Bf16SafeConv3d
