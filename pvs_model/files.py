"""Writes a file so that nobody ever sees half of it, on any file system and from any number of processes at once.

A file is filled in a hidden folder of a unique name beside its place and then renamed. Nothing here needs more than
that: locks and ``fsync`` are used where the file system has them, and done without where it has not.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pvs_model.errors import PVSError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Beginning of the names of the hidden folders in which files are filled.
PART = ".part-"
#: A hidden folder that is younger than this may be in use on a machine whose locks cannot be seen here.
ABANDONED_S = 3600.0

#: What ``fsync`` says where what was written is lost; anything else says that the file system has no ``fsync``.
_LOST = frozenset({errno.EIO, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


def write_atomically(path: Path, write: Callable[[Path], None], error: type[PVSError] = PVSError) -> None:
    """Puts a file in its place in one step, once it is complete; an older file of that name stays until then.

    Args:
        path: the file; its folder is made.
        write: fills the file that it is given, which bears the same name in another folder.
        error: class of the error that is raised.

    Raises:
        PVSError: it cannot be written. Nothing of it is left behind.
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
        said = getattr(reason, "strerror", None) or "the library that writes it could not"
        raise error(f"{path}: expected to write it, found: {said}") from reason
    finally:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_text(path: Path, text: str, error: type[PVSError] = PVSError) -> None:
    """Writes text in UTF-8 as ``write_atomically`` does; characters that UTF-8 lacks are spelt."""
    write_atomically(path, lambda part: _fill(part, text.encode(errors="backslashreplace")), error)


def remove_abandoned(folder: Path, older_than_s: float = ABANDONED_S) -> None:
    """Removes the hidden folders that runs which were killed have left in a folder.

    Args:
        folder: where to look.
        older_than_s: age from which one counts as abandoned, unless it is locked.
    """
    for left in folder.glob(f"{PART}*"):
        try:
            old = time.time() - left.stat().st_mtime > older_than_s
        except OSError:
            continue  # its owner was quicker
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
    """Has the file system write a file to its disk, where it can."""
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
    """A lock on a folder that ends with its process; None where it is another's, or where there are no locks."""
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
