"""Permission to download data.

Downloads raise an error except inside the context manager `allowed()`, which only `experiments.prepare` uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pyro_metabayes.errors import UsageError

_allowed = ContextVar("downloads_allowed", default=False)


@contextmanager
def allowed() -> Iterator[None]:
    """Context manager that permits downloads of data sets that are not in the cache."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


def refuse_unless_allowed(what: str, settings: str, instead: str) -> None:
    """Raise a UsageError unless downloads are allowed.

    Args:
        what: name of the data set or of the weights.
        settings: settings with which `experiments.prepare` downloads `what`, such as data=cifar_fs.
        instead: the alternative to a download, for the message.
    """
    if not _allowed.get():
        raise UsageError(
            f"expected {what} in the cache, not found; run python -m experiments.prepare {settings}, which downloads, "
            f"or {instead}"
        )
