"""A process that keeps freed memory allocates the next array without a request to the operating system.

The commands keep it, and so do the worker processes of a study.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyro_metabayes.device import keep_freed_memory

FAULTS = """
import resource, torch
from pyro_metabayes.device import keep_freed_memory
from pyro_metabayes.experiments.studies.run_grid import start_worker
torch.set_num_threads(1)
{setting}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    [torch.ones(3_000_000) for _ in range(4)]
before = faults()
for _ in range(10):
    [torch.ones(3_000_000) for _ in range(4)]
print(faults() - before)
"""


@pytest.mark.parametrize("setting", ["keep_freed_memory()", "start_worker()"])
def test_the_same_memory_serves_every_step(setting: str) -> None:
    """48 MB in arrays of 12 MB are 11,700 pages of 4 KiB; without the setting they fault again in every round."""
    if not keep_freed_memory():
        pytest.skip("this C library's malloc has no such settings")
    kept = [faults(setting)]
    while kept[-1] >= 1000:  # a system that is short of memory takes pages back, hence up to three processes
        assert len(kept) < 3, f"{kept} page faults, {faults('')} by default"
        kept.append(faults(setting))


def faults(setting: str) -> int:
    """Page faults of ten rounds in a new process. A forked process would inherit free memory."""
    command = [sys.executable, "-c", FAULTS.format(setting=setting)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)
