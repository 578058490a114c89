"""Packages of the wheel: those of ``pvs_model``, and the folder ``weights`` as ``pvs_model.weights``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pvs_model", "pvs_model.*"]), "pvs_model.weights"],
    package_dir={"pvs_model.weights": "weights"},
)
