"""Prints warnings of this package in one line, and hides warnings of torch about torch.jit."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro_metabayes.errors import UnfamiliarTasks

TORCH_JIT = "`torch.jit"  # first characters of torch's warnings about torch.jit


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Context manager that prints each `UnfamiliarTasks` warning once, in one line on stderr, without source code.

    This warning says that tasks at test time differ from the training tasks. Warnings about torch.jit are not printed,
    because users cannot avoid them: torch itself calls torch.jit in forward-mode derivatives, and Pyro does in NUTS.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("default", UnfamiliarTasks)
        for category in (DeprecationWarning, FutureWarning):  # before torch 2.14, and since torch 2.14
            warnings.filterwarnings("ignore", TORCH_JIT, category)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if issubclass(category, UnfamiliarTasks):
                print(f"warning: {message}", file=sys.stderr)
            else:
                others(message, category, *place, **options)

        warnings.showwarning = show
        yield
