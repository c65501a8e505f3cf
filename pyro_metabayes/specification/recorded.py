"""The base class of the parts of a learner. It records constructor arguments, from which parts are rebuilt."""

from __future__ import annotations

import inspect
from typing import Any, Self

from pyro_metabayes.errors import UsageError


class Recorded:
    """Base class that records the arguments passed to the constructor of an object. Defaults are not recorded."""

    _passed: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        part = super().__new__(cls)
        # object.__setattr__, since a torch module accepts attributes only after its own __init__.
        object.__setattr__(part, "_passed", (args, kwargs))
        return part


def arguments_passed(part: Recorded) -> dict[str, Any]:
    """Return {name: value} of the arguments that were passed to the constructor of a part."""
    args, kwargs = part._passed
    return inspect.signature(type(part)).bind(*args, **kwargs).arguments


def target_name(part: Recorded, key: str) -> str:
    """Return the dotted name of the class of a part, by which a specification refers to the class.

    Args:
        part: the part.
        key: name of the part, for the message.

    Raises:
        UsageError: another process cannot import the class, since it is defined inside a function, or in a notebook or
            script (module `__main__`).
    """
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    if "<locals>" in name or type(part).__module__ == "__main__":
        raise UsageError(
            f"expected the class of {key} at the top level of a module that can be imported, got {name}; move the "
            "class to such a module"
        )
    short = name.removeprefix("pyro_metabayes.")
    return short if short.startswith(("models.", "guides.")) else name


def plain(value: Any, key: str) -> Any:
    """Return the value with tuples as lists. Values other than numbers, text, lists and dicts raise a UsageError."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, key) for item in value]
    if isinstance(value, dict) and all(type(name) is str for name in value):
        return {name: plain(item, key) for name, item in value.items()}
    raise UsageError(
        f"expected {key} to be a plain value (number, text, list) that can be saved, got an object of type "
        f"{type(value).__name__}; pass plain values to the constructor"
    )
