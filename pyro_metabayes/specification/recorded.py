"""Parts of a learner that record the arguments of their construction, from which they can be rebuilt."""

from __future__ import annotations

import inspect
from typing import Any, Self

from pyro_metabayes.errors import UsageError


class Recorded:
    """Base class that keeps the arguments of the constructor, as they were passed; defaults are not recorded."""

    _passed: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        part = super().__new__(cls)
        # Not by setattr: a torch module takes attributes only after its own __init__.
        object.__setattr__(part, "_passed", (args, kwargs))
        return part


def arguments_passed(part: Recorded) -> dict[str, Any]:
    """The recorded arguments by name."""
    args, kwargs = part._passed
    return inspect.signature(type(part)).bind(*args, **kwargs).arguments


def target_name(part: Recorded, key: str) -> str:
    """The dotted name of its class, as a specification has it.

    Raises:
        UsageError: the class is defined inside a function, or in a notebook or script (module `__main__`): no name
            leads to it in another process.
    """
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    if "<locals>" in name or type(part).__module__ == "__main__":
        raise UsageError(f"expected {key} of a class that a module defines, got {name}; move it to the top of a file")
    short = name.removeprefix("pyro_metabayes.")
    return short if short.startswith(("models.", "guides.")) else name


def plain(value: Any, key: str) -> Any:
    """The value with tuples as lists; refuses what a specification cannot hold, such as a tensor or a function."""
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
