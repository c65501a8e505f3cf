"""Encode a set once: within one evaluation of a loss, model and guide share what a prior made of the support set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from pyro_metabayes.episodes import Observed

Result = TypeVar("Result")
_memory: ContextVar[dict[Any, Any] | None] = ContextVar("memory", default=None)


@contextmanager
def once() -> Iterator[None]:
    """Inside, a `remembered` method answers the same question about the same support set once.

    Parameters must not change inside, and a graph is kept no longer than the block: hence no lasting cache.
    """
    token = _memory.set({})
    try:
        yield
    finally:
        _memory.reset(token)


def remembered(method: Callable[..., Result]) -> Callable[..., Result]:
    """For a method of a module that reads of `observed` only the support set: method(self, observed, *settings)."""

    @wraps(method)
    def asked(self: Any, observed: Observed, *settings: Any) -> Result:
        memory = _memory.get()
        if memory is None:
            return method(self, observed, *settings)
        support = observed.support_x, observed.support_y, observed.support_mask
        key = (self, *map(id, support), *settings)
        if key not in memory:
            memory[key] = method(self, observed, *settings), support  # kept, so that no other tensor takes its id
        return memory[key][0]

    return asked
