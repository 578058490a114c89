"""Measurements of accuracy, speed and memory, run by hand from a checkout."""
