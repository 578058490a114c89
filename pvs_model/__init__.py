"""Segmentation of enlarged perivascular spaces (PVS) in brain MRI with a graph-fusion network.

``segment`` segments a case or a folder of cases, ``load_ensemble`` loads the networks. They are imported on first use,
so that ``import pvs_model`` takes no time.
"""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pvs_model.api import load_ensemble, segment

__version__ = "0.1.0"
__all__ = ["__version__", "load_ensemble", "segment"]

# Libraries ask for the name of the user on import; a uid without a passwd entry has none (docker run --user, OpenShift,
# many clusters).
try:
    getpass.getuser()
except (KeyError, OSError, ImportError):
    os.environ["LOGNAME"] = f"uid{os.getuid()}"


def __getattr__(name: str) -> Any:
    if name not in ("load_ensemble", "segment"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pvs_model import api

    return getattr(api, name)
