"""The exceptions and the warning of this package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from pyro_metabayes.moved import MOVED_SETTINGS

SIMILAR_ELSEWHERE = 0.8  # least similarity of a suggested name in another group: there are many names
SHAPES = "\nTrace Shapes:"  # Pyro appends the shapes of the trace to the message of an error


class UsageError(ValueError):
    """A mistake that the caller can correct.

    The message is one line: what was expected, what was given, and what to do. Commands print it without a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message.partition(SHAPES)[0]))


def printable(message: str) -> str:
    """Replace characters that cannot be printed, such as line breaks and escape characters, by "?"."""
    return "".join(sign if sign.isprintable() else "?" for sign in message)


def how_many(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun, such as "1 group" or "3 groups".

    Args:
        number: the number.
        one: the noun in the singular.
        several: the plural; "": the singular with an s.
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


class UnknownKey(UsageError):
    """Error for an unknown setting. If existing settings have a similar name, the message suggests them.

    Names are compared without their groups: train.kl_weight is suggested for guide.kl_weight. An equal name in another
    group comes first, then similar names in the same group, then similar names in other groups.

    Args:
        key: the unknown setting, such as guide.step_sizes.
        names: names of the existing settings.
        owner: name of the class or function that has these settings, such as guides.sib.Guide.
        elsewhere: full names of other settings that may be suggested too, such as train.kl_weight.
    """

    def __init__(self, key: str, names: Iterable[str], owner: str, elsewhere: Iterable[str] = ()) -> None:
        self.key, self.owner, self.names = key, owner, list(names)
        super().__init__(
            f"unknown key '{key}'; {_guess(key, self.names, elsewhere)}{owner} takes: {_listed(self.names)}"
        )


def _guess(key: str, names: Iterable[str], elsewhere: Iterable[str]) -> str:
    prefix, dot, name = key.rpartition(".")
    own = [f"{prefix}{dot}{other}" for other in names]
    others = [setting for setting in elsewhere if setting not in (key, *own)]
    guesses = _named(name, others) or _similar(name, own) or _similar(name, others, SIMILAR_ELSEWHERE)
    return f"did you mean {' or '.join(map(repr, guesses))}? " if guesses else ""


def _similar(name: str, settings: Sequence[str], cutoff: float = 0.6) -> list[str]:
    near = get_close_matches(name, map(_last, settings), 1, cutoff)
    return _named(near[0], settings) if near else []


def _named(name: str, settings: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(setting for setting in settings if _last(setting) == name))


def _last(setting: str) -> str:
    return setting.rpartition(".")[2]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no settings"


def unknown_key(key: str, names: Iterable[str], owner: str, elsewhere: Iterable[str] = ()) -> UsageError:
    """Return the error for an unknown setting. If the setting was renamed, the message gives the new name.

    The arguments are those of `UnknownKey`.
    """
    if key in MOVED_SETTINGS:
        return UsageError(f"unknown key '{key}'; it is now {MOVED_SETTINGS[key]}")
    return UnknownKey(key, names, owner, elsewhere)


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Check that the value of a setting is one of the choices, else raise a UsageError."""
    if value not in choices:
        advice = similar_choice(value, choices) or "choose one of these"
        raise UsageError(f"expected {key} to be one of {', '.join(choices)}, got '{value}'; {advice}")


def similar_choice(value: object, choices: Iterable[str]) -> str:
    """Return a question that names the choice most similar to a value; empty if none is similar."""
    near = get_close_matches(str(value), choices, 1)
    return f"did you mean '{near[0]}'?" if near else ""


class UnfamiliarTasks(UserWarning):
    """Warning that tasks differ from the training tasks of a transductive guide, for example in way or shot."""


class Interrupted(KeyboardInterrupt):
    """Interruption by a signal. The work can be resumed, and the message says how."""
