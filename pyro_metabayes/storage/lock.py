"""A lock on the folder of a run. Only one process can use the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_metabayes.errors import UsageError

if TYPE_CHECKING:  # imported with the first lock
    from filelock import FileLock

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # error codes of file systems without locks


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Context manager that creates a folder and its missing parents.

    At the end, created folders that are still empty are removed.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"expected to create the folder {folder}, got: {error.strerror}; pass another folder"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def alone_in(folder: Path, advice: str) -> Iterator[None]:
    """Context manager that locks a folder for this process, and removes unfinished files of killed processes.

    The operating system releases the lock when the process ends, even if it is killed. A remaining lock file has no
    effect.

    Args:
        folder: an existing folder.
        advice: end of the error message, which says how to choose another folder.

    Raises:
        UsageError: another process uses the folder, or the folder is not writable.
    """
    from filelock import FileLock

    path = folder / NAME
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    _acquire(lock, folder, advice)
    try:
        with contextlib.suppress(OSError):  # on a full disk the file stays empty
            path.write_text(f"process {os.getpid()} on {platform.node()}")
        for unfinished in folder.glob(".*.tmp"):  # temporary files of write_atomically
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # before the release; later the file may belong to another process
            path.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, folder: Path, advice: str) -> None:
    from filelock import Timeout

    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"expected a folder that no other process uses, got {folder}, in use by {_holder(folder)}; wait until the "
            f"other process has ended, or {advice}"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UsageError(
                f"expected to write into {folder}, got: {error.strerror}; free space or change the folder"
            ) from None
        print(
            f"note: {folder} cannot be locked ({error.strerror}): do not start a second run in this folder",
            file=sys.stderr,
        )


def _holder(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / NAME).read_bytes()[:200].decode(errors="replace") or "another process"
    return "another process"
