"""Evaluation without Pyro's validation, which is one setting for all threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import pyro

_lock = Lock()
_inside = 0  # number of blocks, in all threads, that need it off
_restore = ExitStack()


@contextmanager
def without_validation() -> Iterator[None]:
    """Inside, a diverging inner loop yields a poor score, not an exception.

    The setting returns with the end of the last of all blocks that run at the same time.
    """
    global _inside
    with _lock:
        if not _inside:
            _restore.enter_context(pyro.validation_enabled(False))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _restore.close()
