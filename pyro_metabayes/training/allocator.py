"""The memory that tensors leave behind: kept for the next ones, not handed back to the system."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h. The first is the most it takes for arrays that come from the heap: 32 MiB.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_ON_HEAP, LARGEST_KEPT = 32 * 2**20, 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library's malloc to keep up to 2 GiB of freed memory; false where it has no such settings.

    A step frees what it allocated. By default glibc hands arrays of some MiB back to the system, and the next step
    waits for the same pages to be cleared again, one fault per 4 KiB: half the time of a forward pass of Conv-4, a
    fifth of a training step of savi with ten samples (`docs/performance.md`). For the process as a whole: a command's
    choice, not that of a library which is imported.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP) and mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT))
