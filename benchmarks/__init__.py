"""Measurements: seconds and memory of the main job. Nothing here is a test."""
