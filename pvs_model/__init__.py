"""Segmentation of enlarged perivascular spaces (PVS) in brain MRI with a graph-fusion network."""

__version__ = "0.1.0"
