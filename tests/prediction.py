"""The probability map of a sliding window alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pvs_model.inference.sliding_window import predict_maps


def predict(*arguments: Any, **options: Any) -> Tensor:
    """The probability of PVS (X, Y, Z): the first map of ``predict_maps``."""
    return predict_maps(*arguments, **options)[0]
