"""Checks of the arguments of functions that users call from Python."""

from __future__ import annotations

import math

from pyro_metabayes.errors import UsageError


def check_integers(least: int, **values: object) -> None:
    """Raise a UsageError for a value that is not an integer >= `least`. A bool is not an integer here."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"expected {name} to be an integer >= {least}, got {value!r}")


def check_flags(**values: object) -> None:
    """Raise a UsageError for a value other than True and False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise UsageError(f"expected {name} to be True or False, got {value!r}")


def check_not_negative(**values: object) -> None:
    """Raise a UsageError for a value that is not a finite number >= 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UsageError(f"expected {name} to be a finite number >= 0, got {value!r}")


def check_callables(name: str, values: object) -> None:
    """Raise a UsageError if the argument called `name` is not a list or tuple of functions."""
    if not isinstance(values, list | tuple) or not all(map(callable, values)):
        raise UsageError(f"expected {name} to be a list of functions, got {values!r}; pass for example [print]")


def check_instance(name: str, value: object, kind: type, advice: str) -> None:
    """Raise a UsageError if the value is not an instance of `kind`. The message ends with the text `advice`."""
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"
        raise UsageError(f"expected {name} to be of type {kind.__name__}, got {got}; {advice}")
