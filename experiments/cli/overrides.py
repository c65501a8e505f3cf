"""Settings of the form NAME=VALUE, as on a command line, and their quotation for Hydra.

Hydra interprets commas, equals signs, brackets, quotes and #. Settings whose value is a path or free text (`LITERALS`)
are quoted before Hydra reads them. In a sweep (-m), commas separate the values of such a setting, except in the paths
`FOLDERS` and in paths that exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from pyro_metabayes.specification.parts import PARTS
from pyro_metabayes.storage.paths import user_path

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "resume")  # commas are part of such a path, even in a sweep
PATHS = (*FOLDERS, "data.path", "out")
LITERALS = (
    *PATHS,
    "data.background",
    "data.group",
    "data.label",
    "data.response",
    "data.formula",
    "data.weights",
    "data.offset",
)
QUOTED = re.compile(r"""(?s)(['"]).*\1""")
LIST = re.compile(r"\[.*,.*\]")
FUNCTION = re.compile(r"(?s)(choice|glob|shuffle|sort|tag)\(.*\)")  # functions in Hydra's grammar of sweeps


def composable(arguments: Sequence[str]) -> list[str]:
    """Return the arguments in Hydra's grammar: paths and free text in quotes, ++ before settings like guide.xi=1."""
    sweep = not {"-m", "--multirun"}.isdisjoint(arguments)
    return [allow_part_setting(argument) for argument in quote_literals(arguments, sweep)]


def allow_part_setting(argument: str) -> str:
    """Return the argument with Hydra's prefix ++ if it is a setting of the data, guide, model, ... (guide.xi=0.1).

    Hydra requires the prefix for keys that are not in the YAML. A YAML file need not list all settings: the signature
    of the constructor determines which settings exist.
    """
    open_ended = (*(f"{part}." for part in ("data", "logger", *PARTS)), "train.learning_rates", "train.kl_weight")
    return f"++{argument}" if argument.startswith(open_ended) else argument


def key_of(argument: str) -> str:
    """Return the name of the setting in an argument NAME=VALUE, without Hydra's prefixes + and ++."""
    return argument.partition("=")[0].lstrip("+")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of nested settings, such as ("train.steps", 100)."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def owner_of(key: str) -> str:
    """Return the group of a setting for a message, such as "train" for train.steps; "the command" without a group."""
    return key.rpartition(".")[0] or "the command"


def quote_literals(arguments: Sequence[str], sweep: bool) -> list[str]:
    """Put unquoted values of settings in LITERALS (paths and free text) in quotes.

    Args:
        arguments: arguments NAME=VALUE.
        sweep: whether the arguments are those of a sweep, in which commas separate several values.
    """
    return [_quoted(argument, sweep) if key_of(argument) in LITERALS else argument for argument in arguments]


def _quoted(argument: str, sweep: bool) -> str:
    name, equals, value = argument.partition("=")
    if not equals:
        return argument
    if key_of(argument) == "data.group" and LIST.fullmatch(value):
        return argument  # a list of columns; the data source reports whether it accepts several
    is_path = key_of(argument) in PATHS
    exists = is_path and user_path(value).exists()
    if not exists and (QUOTED.fullmatch(value) or (sweep and FUNCTION.fullmatch(value))):
        return argument
    one = exists or not sweep or key_of(argument) in FOLDERS
    values = [value] if one else value.split(",")
    texts = [str(user_path(text)) if is_path and text.startswith("~") else text for text in values]
    return f"{name}={','.join(QuotedString(text, Quote.single).with_quotes() for text in texts)}"


def unquoted(override: str) -> str:
    """Return an argument NAME=VALUE without the quotes of `quote_literals` and without Hydra's prefixes + and ++."""
    key = key_of(override)
    if key not in LITERALS:
        return override.lstrip("+")
    value = OverridesParser.create().parse_override(override).value()
    return f"{key}=[{','.join(map(str, value))}]" if isinstance(value, list) else f"{key}={value}"


def literal_value(override: str) -> str | list[str]:
    """Return the value of an argument NAME=VALUE of a setting in LITERALS: a list for data.group=[a,b], else a text."""
    key, _, text = override.partition("=")
    return text[1:-1].split(",") if key == "data.group" and LIST.fullmatch(text) else text
