"""One process at a time in the folder of a run."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from pyro_metabayes.errors import UsageError

with contextlib.suppress(ImportError):  # Windows has none: there nothing is locked
    import fcntl

NAME = ".lock"
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuse a folder in which another process works; what killed ones have left half-written there is removed.

    The kernel holds the lock, and lets go of it however a process ends: a file that stays behind locks nobody out.
    """
    handle = _locked(folder)
    try:
        for unfinished in folder.glob(".*.tmp"):  # of write_atomically
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / NAME).unlink(missing_ok=True)
        os.close(handle)


def _locked(folder: Path) -> int:
    path = folder / NAME
    while True:
        try:
            handle = os.open(path, FLAGS, 0o644)
        except OSError as error:
            raise UsageError(f"expected to write into {folder}, got: {error.strerror}; free or change it") from None
        _lock(handle, folder)
        if _is_still(handle, path):
            with contextlib.suppress(OSError):  # on a full disk it stays empty
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
            return handle
        os.close(handle)  # who held it has removed it meanwhile: a later comer may have made another


def _lock(handle: int, folder: Path) -> None:
    if "fcntl" not in globals():
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 200).decode(errors="replace") or "another process"
        os.close(handle)
        raise UsageError(
            f"expected {folder} for this run alone, got one that {holder} works in; wait for it, or name another "
            "folder: hydra.run.dir=DIR (of a sweep hydra.sweep.dir=DIR)"
        ) from None
    except OSError as error:
        note = f"note: {folder} cannot be locked ({error.strerror}): start no second run in it"
        print(note, file=sys.stderr)


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
