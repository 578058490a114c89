"""Weights and device of a run, chosen on first use and replaced by the CPU if the GPU fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pvs_model.errors import DeviceError, first_line
from pvs_model.inference.weights import Weights, check_folder

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

T = TypeVar("T")


class Runtime:
    """Holds the weights and the device of a run; threads may share it.

    Args:
        folder: Weights folder.
        device_name: "auto", "cuda" or "cpu".

    Raises:
        WeightsError: The manifest is missing.
        DeviceError: The requested device is not available.
    """

    def __init__(self, folder: Path, device_name: str = "auto") -> None:
        self.folder = folder
        self.device_name = device_name
        self._weights: Weights | None = None
        self._device: torch.device | None = None
        self._lock = threading.RLock()
        check_folder(folder)  # without the seconds that importing torch takes
        if device_name == "cuda":
            _ = self.device

    @property
    def weights(self) -> Weights:
        """The networks and text embeddings."""
        with self._lock:
            if self._weights is None:
                self._weights = Weights(self.folder)
            return self._weights

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        with self._lock:
            if self._device is None:
                from pvs_model.inference.device import choose_device

                self._device = choose_device(self.device_name)
            return self._device

    def run(self, name: str, function: Callable[[torch.device], T]) -> T:
        """The result of a function of the device. If the GPU fails, it and all later calls run on the CPU.

        Args:
            name: Name of the case, for the log.
            function: What to run.

        Raises:
            DeviceError: The GPU failed, and nothing but a GPU was requested.
        """
        device = self.device
        try:
            return function(device)
        except RuntimeError as error:
            from pvs_model.inference.device import choose_device, device_lost

            if device.type == "cpu" or not device_lost(error):
                raise
            if self.device_name == "cuda":
                raise DeviceError(f"--device cuda: expected a working GPU, got: {first_line(error)}") from error
            with self._lock:
                if self._device is device:  # else another thread has already changed to the CPU
                    log.warning("%s: the GPU failed (%s): continuing on the CPU", name, first_line(error))
                    self._device, self._weights = choose_device("cpu"), None  # what was on the GPU is lost
        return function(self.device)
