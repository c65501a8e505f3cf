"""The base class of parts of a learner, which records constructor arguments so that parts can be rebuilt."""

from __future__ import annotations

import inspect
from typing import Any, Self

from pyro_metabayes.errors import UsageError


class Recorded:
    """Base class that records the arguments passed to the constructor, without defaults."""

    _passed: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        part = super().__new__(cls)
        # object.__setattr__, since a torch module accepts attributes only after its own __init__.
        object.__setattr__(part, "_passed", (args, kwargs))
        return part


def arguments_passed(part: Recorded) -> dict[str, Any]:
    """The recorded arguments by name."""
    args, kwargs = part._passed
    return inspect.signature(type(part)).bind(*args, **kwargs).arguments


def target_name(part: Recorded, key: str) -> str:
    """The dotted name of the class of a part, for a specification.

    Raises:
        UsageError: the class is defined inside a function, or in a notebook or script (module `__main__`), so that
            another process cannot import it.
    """
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    if "<locals>" in name or type(part).__module__ == "__main__":
        raise UsageError(f"expected {key} of a class at the top level of a module, got {name}; move it to such a place")
    short = name.removeprefix("pyro_metabayes.")
    return short if short.startswith(("models.", "guides.")) else name


def plain(value: Any, key: str) -> Any:
    """The value with tuples as lists; a value that is not plain, such as a tensor, raises a UsageError."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, key) for item in value]
    if isinstance(value, dict) and all(type(name) is str for name in value):
        return {name: plain(item, key) for name, item in value.items()}
    raise UsageError(
        f"expected {key} to be a plain value (number, text, list), which can be saved, got {type(value).__name__}; "
        "pass plain values to the constructor"
    )
