"""Memoisation of support-set encodings, which model and guide share within one evaluation of the loss."""

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
def memoise() -> Iterator[None]:
    """Context manager: evaluate methods marked `support_encoding` only once per support set and settings.

    Parameters must not change inside the block. The results and their autograd graphs are stored until the end of the
    block. Nested blocks share results.
    """
    outer = _memory.get()
    token = _memory.set({} if outer is None else outer)
    try:
        yield
    finally:
        _memory.reset(token)


def support_encoding(method: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator: mark a method as a support-set encoding, whose result `memoise` stores.

    Args:
        method: method(self, observed, *settings) of a module. It must use only the support set of `observed`.
    """

    @wraps(method)
    def encode(self: Any, observed: Observed, *settings: Any) -> Result:
        memory = _memory.get()
        if memory is None:
            return method(self, observed, *settings)
        support = observed.support_x, observed.support_y, observed.support_mask
        key = (self, *map(id, support), *settings)
        if key not in memory:
            # The support tensors are stored too, so that their ids are not reused.
            memory[key] = method(self, observed, *settings), support
        return memory[key][0]

    return encode
