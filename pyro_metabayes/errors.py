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


class UnknownKey(UsageError):
    """A setting that its owner does not have, with the nearest one that there is.

    Args:
        key: the setting, such as guide.step_sizes.
        names: the settings that the owner has.
        owner: what the setting was meant for.
        elsewhere: full names of settings of others.
    """

    def __init__(self, key: str, names: Iterable[str], owner: str, elsewhere: Iterable[str] = ()) -> None:
        self.key, self.owner, names = key, owner, list(names)
        super().__init__(f"unknown key '{key}'; {_guess(key, names, elsewhere)}{owner} takes: {_listed(names)}")


def _guess(key: str, names: Iterable[str], elsewhere: Iterable[str]) -> str:
    prefix, dot, name = key.rpartition(".")
    settings = [*(f"{prefix}{dot}{other}" for other in names), *elsewhere]
    near = get_close_matches(name, [_last(setting) for setting in settings], 1)
    guesses = [f"'{setting}'" for setting in settings if _last(setting) in near]
    return f"did you mean {' or '.join(guesses)}? " if guesses else ""


def _last(setting: str) -> str:
    return setting.rpartition(".")[2]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def unknown_key(key: str, names: Iterable[str], owner: str, elsewhere: Iterable[str] = ()) -> UsageError:
    """The mistake of a setting that its owner does not have; a setting that has moved is named."""
    if key in MOVED_SETTINGS:
        return UsageError(f"unknown key '{key}'; it is now {MOVED_SETTINGS[key]}")
    return UnknownKey(key, names, owner, elsewhere)


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a setting that is none of the choices."""
    if value not in choices:
        raise UsageError(f"expected {key} to be one of {', '.join(choices)}, got '{value}'")


class UnfamiliarTasks(UserWarning):
    """A transductive guide meets tasks unlike those that it was trained on; shown once, one line in commands."""


class Interrupted(KeyboardInterrupt):
    """Work was stopped by a signal at a point from which it can go on; the message says how."""
