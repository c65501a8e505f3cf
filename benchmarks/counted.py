"""`python -m benchmarks.counted FILE ARGUMENTS`: experiments.run, and in FILE, all the while, what memory is in use.

What the kernel counts against a process is more: room that was freed in between is not handed back. Only what is in
use tells a leak from holes. FILE holds one line, the bytes that malloc has given out (glibc 2.33 and later) and the
number of Python's own blocks.
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
    """What glibc's mallinfo2 returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


def main() -> None:
    path = sys.argv.pop(1)
    threading.Thread(target=_count, args=[path], daemon=True).start()
    runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)


def _count(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    while True:
        os.pwrite(file, "{:20d} {:20d}\n".format(*in_use()).encode(), 0)
        time.sleep(EVERY)


def in_use() -> tuple[int, int]:
    """Bytes that malloc has given out and not got back, of the heap and mapped; blocks of Python's own allocator."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    malloc = mallinfo2()
    return malloc.uordblks + malloc.hblkhd, sys.getallocatedblocks()


if __name__ == "__main__":
    main()
