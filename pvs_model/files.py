"""Writes files atomically, on any file system and from any number of processes at the same time.

A file is written in a hidden folder with a unique name beside its destination and then renamed. Locks and ``fsync`` are
used where the file system supports them, and omitted where it does not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pvs_model.errors import PVSError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Prefix of the hidden folders in which files are written.
PART = ".part-"
#: Age in seconds below which a hidden folder may be in use by another machine, whose locks may not be visible.
ABANDONED_S = 3600.0

#: Errors of ``fsync`` that mean lost data; others mean that the file system does not support it.
_LOST = frozenset({errno.EIO, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


def write_atomically(path: Path, write: Callable[[Path], None], error: type[PVSError] = PVSError) -> None:
    """Writes a file that appears under its name only once it is complete; an older one remains until then.

    Args:
        path: Destination; its folder is created.
        write: Function that writes to the path it is given, which has the same name in another folder.
        error: Class of the error to raise.

    Raises:
        PVSError: The file cannot be written. No part of it remains.
    """
    hidden: Path | None = None
    lock: int | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        hidden = Path(tempfile.mkdtemp(prefix=PART, dir=path.parent))
        lock = _locked(hidden)
        part = hidden / path.name
        write(part)
        _synchronise(part)
        os.replace(part, path)
    except (OSError, RuntimeError) as reason:
        message = getattr(reason, "strerror", None) or "the library that writes it could not"
        raise error(f"{path}: expected to write it, got: {message}") from reason
    finally:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_text(path: Path, text: str, error: type[PVSError] = PVSError) -> None:
    """Writes text atomically in UTF-8; characters that it cannot encode are escaped."""
    write_atomically(path, lambda part: _fill(part, text.encode(errors="backslashreplace")), error)


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None, error: type[PVSError] = PVSError
) -> None:
    """Writes tensors or arrays atomically as safetensors, readable to every user.

    Args:
        path: Destination.
        tensors: Tensors of torch, or arrays of numpy, by name.
        metadata: Text by name.
        error: Class of the error to raise.

    Raises:
        PVSError: The file cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    content = {
        name: (value if isinstance(value, torch.Tensor) else torch.tensor(value)).contiguous()
        for name, value in tensors.items()
    }

    def write(part: Path) -> None:
        try:
            save_file(content, part, dict(metadata) if metadata else None)
        except SafetensorError as reason:
            raise OSError(errno.EIO, str(reason)) from reason
        part.chmod(0o644)  # safetensors makes it readable to its owner only; the container runs as another user

    write_atomically(path, write, error)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remove_abandoned(folder: Path, older_than_s: float = ABANDONED_S) -> None:
    """Removes the hidden folders that killed processes left in a folder.

    Args:
        folder: Folder to clean up.
        older_than_s: Age from which an unlocked hidden folder counts as abandoned.
    """
    for left in folder.glob(f"{PART}*"):
        try:
            old = time.time() - left.stat().st_mtime > older_than_s
        except OSError:
            continue  # its owner has just removed it
        lock = _locked(left) if old else None
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def natural_sort_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Returns a key that sorts site 2 before site 10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", text) if part
    )


def _fill(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)


def _synchronise(path: Path) -> None:
    """Flushes a file to disk if the file system supports it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _LOST:
            raise
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """Locks a folder until the process ends; None if another process holds the lock or locks are not supported."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
