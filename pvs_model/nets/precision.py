"""Which arithmetic a machine is fast in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16: 1.7 to 2.4 times as fast with them, slower without."""
    # Private in torch 2.13, and there is no public one: a version without it gets float32.
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return asked is not None and bool(asked())


class ShallowSafeConv3d(nn.Conv3d):
    """``nn.Conv3d`` that trains in float32 where the input is no deeper than its kernel reaches.

    On CPUs with bfloat16, oneDNN (torch 2.13) takes the gradient of such a kernel from memory beyond the
    input's: often NaN, sometimes just wrong, for kernels of 5 and 7 a crash. Seen for depths of 2 under
    kernels of 3, 1 to 4 under 5, 2 to 4 under 7. Without gradients nothing changes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv3d``."""
        shallow = input.device.type == "cpu" and input.shape[-3] < self.kernel_size[0]
        if shallow and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


def safe_in_bfloat16(network: nn.Module) -> None:
    """Make every 3D convolution of a network a ``ShallowSafeConv3d``; parameters and their names stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = ShallowSafeConv3d
