"""Settings of the C library's memory allocator for training."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of glibc's ``mallopt`` and the values that keep freed memory in the process.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 1 << 28))


def keep_freed_memory() -> bool:
    """Keeps freed memory in this process instead of requesting zeroed pages again for every large tensor.

    Requesting pages takes up to a fifth of a training step (``benchmarks.training_step``). This works on Linux with
    glibc only; elsewhere nothing happens.

    Returns:
        Whether the settings were accepted.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS)
