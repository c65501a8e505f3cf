"""`python -m benchmarks.counted FILE ARGUMENTS`: run experiments.run ARGUMENTS, and write its memory in use to FILE.

The kernel reports more memory than is in use, since freed memory is not always returned to the kernel. Only the memory
in use distinguishes a leak from fragmentation. FILE has one line: the bytes allocated by malloc (glibc 2.33 and later)
and the number of blocks of Python's allocator.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
import threading
import time

from benchmarks.watch import EVERY

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class Mallinfo2(ctypes.Structure):
    """The result of mallinfo2 of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


def main() -> None:
    path = sys.argv.pop(1)
    threading.Thread(target=_count, args=[path], daemon=True).start()
    runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)


def _count(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    while True:
        os.pwrite(file, "{:20d} {:20d}\n".format(*memory_in_use()).encode(), 0)
        time.sleep(EVERY)


def memory_in_use() -> tuple[int, int]:
    """Return the bytes that malloc has allocated and not freed, and the number of blocks of Python's allocator."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    malloc = mallinfo2()
    return malloc.uordblks + malloc.hblkhd, sys.getallocatedblocks()


if __name__ == "__main__":
    main()
