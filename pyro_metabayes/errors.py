"""The one exception for a mistake that the caller can correct, and the one warning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from pyro_metabayes.moved import MOVED_SETTINGS

SHAPES = "\nTrace Shapes:"  # from here on it is Pyro's: it makes errors anew, with the shapes of the trace


class UsageError(ValueError):
    """Expected what, got what, what there is or what to do: one line, shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message.partition(SHAPES)[0]))


def printable(message: str) -> str:
    """Without what a file from elsewhere may bring in: line breaks, commands to a terminal, halves of characters."""
    return "".join(sign if sign.isprintable() else "?" for sign in message)


def unknown_key(key: str, names: Iterable[str], owner: str) -> UsageError:
    """The mistake of a setting that its owner does not have, with the nearest one that it has."""
    if key in MOVED_SETTINGS:
        return UsageError(f"unknown key '{key}'; it is now {MOVED_SETTINGS[key]}")
    names = list(names)
    near = get_close_matches(key.rpartition(".")[2], names, 1)
    guess = f"did you mean '{near[0]}'? " if near else ""
    return UsageError(f"unknown key '{key}'; {guess}{owner} takes: {', '.join(names) or 'none'}")


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a setting that is none of the choices."""
    if value not in choices:
        raise UsageError(f"expected {key} to be one of {', '.join(choices)}, got '{value}'")


class UnfamiliarTasks(UserWarning):
    """A transductive guide meets tasks unlike those that it was trained on; shown once, one line in commands."""


class Interrupted(KeyboardInterrupt):
    """Work was stopped by a signal at a point from which it can go on; the message says how."""
