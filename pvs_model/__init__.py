"""Segmentation of enlarged perivascular spaces (PVS) in brain MRI with a graph-fusion network."""

import getpass
import os

__version__ = "0.1.0"

# Libraries ask for the name of the user when they are imported, and there is none for a uid without a passwd entry:
# docker run --user, OpenShift, many clusters.
try:
    getpass.getuser()
except (KeyError, OSError, ImportError):
    os.environ["LOGNAME"] = f"uid{os.getuid()}"
