"""Downloads raise outside `allowed()`, which only `experiments.prepare` enters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pyro_metabayes.errors import UsageError

_allowed = ContextVar("downloads_allowed", default=False)


@contextmanager
def allowed() -> Iterator[None]:
    """Context manager: a data set that is not in the cache may be downloaded."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


def refuse_unless_allowed(what: str, data: str, instead: str) -> None:
    """Raise unless downloads are allowed; `instead` names the alternative."""
    if not _allowed.get():
        raise UsageError(
            f"expected {what} in the cache, got none, and a run downloads nothing: fetch it with python -m "
            f"experiments.prepare data={data}, or {instead}"
        )
