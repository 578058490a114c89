"""How the C library hands memory back: large tensors that come and go many times a second."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of glibc's ``mallopt`` and the values that keep freed memory in the process.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 1 << 28))


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, instead of fetching zeroed pages again for every large tensor.

    Fetching takes up to a fifth of a training step (``benchmarks.training_step``). Only on Linux with glibc; elsewhere
    nothing happens.

    Returns:
        whether the settings were accepted.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS)
