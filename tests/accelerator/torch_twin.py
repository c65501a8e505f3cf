"""The device module torch.twin. `import torch` calls `register` through the entry point group torch.backends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Generator, Tensor

default_generators: tuple[Generator, ...] = ()


def register() -> None:
    global default_generators
    torch.ops.load_library(Path(__file__).with_name("libtwin.so"))
    torch.utils.rename_privateuse1_backend("twin")
    torch._register_device_module("twin", sys.modules[__name__])
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    # A backward pass in a thread per device sums second derivatives in another order than the CPU does.
    torch.autograd.set_multithreading_enabled(False)
    default_generators = (torch.ops.twin.default_generator(),)


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def device_count() -> int:
    return 1


def current_device() -> int:
    return 0


def set_device(device: object) -> None:
    """The only device is always the current one."""


@contextlib.contextmanager
def device(device: object) -> Iterator[None]:
    """Context of the current device, which is the only one."""
    yield


def synchronize(device: object = None) -> None:
    """Kernels are synchronous."""


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16]


def manual_seed(seed: int) -> None:
    default_generators[0].manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    manual_seed(seed)


def get_rng_state(device: object = None) -> Tensor:
    return default_generators[0].get_state()


def set_rng_state(state: Tensor, device: object = None) -> None:
    default_generators[0].set_state(state)


def _is_in_bad_fork() -> bool:
    return False
