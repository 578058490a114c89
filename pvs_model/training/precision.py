"""The arithmetic that a network is trained in."""

from __future__ import annotations

import torch

from pvs_model.nets.precision import cpu_has_bfloat16
from pvs_model.training.settings import PRECISIONS


def precision(device: torch.device, wanted: str = "auto") -> torch.autocast:
    """Autocast for a device.

    Args:
        device: where the network is.
        wanted: "bfloat16", "float32", or "auto": bfloat16 on a GPU and on a CPU with instructions for it
            (1.7 times as fast there, slower elsewhere), float32 on others.

    Raises:
        ValueError: for another ``wanted``.
    """
    if wanted not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {wanted!r}")
    fast = wanted == "bfloat16" or (wanted == "auto" and (device.type == "cuda" or cpu_has_bfloat16()))
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)
