"""Converted OpenVINO graphs on disk, so that later runs on a machine need not convert and check them again."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pvs_model import __version__
from pvs_model.errors import PVSError
from pvs_model.files import sha256_of, write_atomically, write_text
from pvs_model.nets.base import SegmentationNet

log = logging.getLogger(__name__)


def cached_graph(core: Any, networks: Sequence[SegmentationNet], terms: int, convert: Callable[[], Any]) -> Any:
    """The graph of several networks, from the cache or else converted and stored there.

    A damaged graph is converted anew; where the folder cannot be used, each time.

    Args:
        core: ``openvino.Core``.
        networks: The networks, whose parameters identify the graph.
        terms: Parts into which the image is split.
        convert: Makes and checks the graph.
    """
    try:
        path = cache_folder() / f"{_key(core, networks, terms)}.xml"
        if _is_intact(path):
            return core.read_model(path)
    except (OSError, RuntimeError) as error:  # no home, or a file that cannot be read
        log.debug("no cached graph: %s", error)
        return convert()
    graph = convert()
    try:
        write_atomically(path, lambda part: _write(graph, part, path))
        write_text(path.with_suffix(".sha256"), _checksum(path))
        return core.read_model(path)  # a graph that was read differs in the last bits: this run as later ones
    except (PVSError, OSError, RuntimeError) as error:
        log.debug("%s", error)
        return graph


def cache_folder() -> Path:
    """``pvs-model`` in the user's cache folder: in ``$XDG_CACHE_HOME``, or else in ``~/.cache``.

    Raises:
        RuntimeError: The user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvs-model"


def _write(graph: Any, part: Path, path: Path) -> None:
    """Writes a graph's parameters under their name and its structure, which makes it complete, to ``part``."""
    import openvino as ov

    ov.save_model(graph, part, compress_to_fp16=False)
    os.replace(part.with_suffix(".bin"), path.with_suffix(".bin"))


def _is_intact(path: Path) -> bool:
    """Whether a stored graph is as it was written: altered parameters would load, and give a wrong mask."""
    try:
        return path.with_suffix(".sha256").read_text() == _checksum(path)
    except (OSError, ValueError):  # incomplete, or not text
        return False


def _checksum(path: Path) -> str:
    """SHA-256 of the two files of a graph, structure and parameters."""
    return f"{sha256_of(path)} {sha256_of(path.with_suffix('.bin'))}"


def _key(core: Any, networks: Sequence[SegmentationNet], terms: int) -> str:
    """A digest of what a graph and its check depend on: parameters, versions and the processor."""
    import openvino as ov

    device = core.get_property("CPU", "FULL_DEVICE_NAME")
    digest = hashlib.sha256(f"{__version__} {ov.__version__} {device} {terms}".encode())
    for network in networks:
        digest.update(f"{network.config.to_json()} {network.mirrored}".encode())
        for name, values in network.state_dict().items():
            digest.update(name.encode())
            digest.update(values.cpu().contiguous().numpy())
    return digest.hexdigest()
