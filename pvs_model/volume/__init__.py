"""Volumes: reading and writing them, moving between grids, and their intensities."""
