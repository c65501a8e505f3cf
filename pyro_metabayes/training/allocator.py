"""Settings of the memory allocator: freed memory is reused by later tensors instead of returned to the system."""

from __future__ import annotations

import ctypes
import sys

# Constants of glibc's malloc.h. 32 MiB is the largest value that glibc accepts for M_MMAP_THRESHOLD.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_ON_HEAP, LARGEST_KEPT = 32 * 2**20, 2**31 - 1


def keep_freed_memory() -> bool:
    """Make the C library's malloc keep up to 2 GiB of freed memory; returns False where it has no such settings.

    By default glibc returns freed arrays of some MiB to the system. The next step then waits for the same pages to be
    cleared again, with one page fault per 4 KiB. This takes half the time of a forward pass of Conv-4, and a fifth of
    a training step of savi with ten samples (`docs/performance.md`). The setting holds for the whole process, so
    commands call this function; importing the package does not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP) and mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT))
