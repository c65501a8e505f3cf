"""Arguments of the functions that users call from Python: counts, numbers, flags, functions."""

from __future__ import annotations

import math

from pyro_metabayes.errors import UsageError


def check_integers(least: int, **values: object) -> None:
    """Refuse values that are no integers, or smaller than `least`; a bool is no integer."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"expected {name} to be an integer >= {least}, got {value!r}")


def check_flags(**values: object) -> None:
    """Refuse values that are neither True nor False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UsageError(f"expected {name} to be True or False, got {value!r}")


def check_not_negative(**values: object) -> None:
    """Refuse values that are no finite numbers >= 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UsageError(f"expected {name} to be a finite number >= 0, got {value!r}")


def check_callables(name: str, values: object) -> None:
    """Refuse what is no list of functions."""
    if not isinstance(values, list | tuple) or not all(map(callable, values)):
        raise UsageError(f"expected {name} to be a list of functions, got {values!r}; pass for example [print]")


def check_instance(name: str, value: object, kind: type, advice: str) -> None:
    """Refuse an object of another class, or a class in place of its object."""
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"
        raise UsageError(f"expected {name} to be of type {kind.__name__}, got {got}; {advice}")
