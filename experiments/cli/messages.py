"""One-line messages for mistakes of users, which Hydra, OmegaConf or this package has detected."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import Container, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pyro_metabayes.errors import UsageError, printable, similar_choice, unknown_key
from pyro_metabayes.experiments.cli.arguments import command_line, this_command
from pyro_metabayes.experiments.cli.choices import FILLED_IN, named_settings
from pyro_metabayes.experiments.cli.overrides import owner_of
from pyro_metabayes.experiments.cli.sweeps import LAUNCHER

MISTAKES = (UsageError, HydraException, OmegaConfBaseException, OSError, yaml.YAMLError, UnicodeDecodeError)
# Lines of Hydra and OmegaConf that begin with these words are about their internals, and left out of messages.
NOISE = ("full_key", "object_type", "reference_type", "Config search path", "provider=", "Set the environment")
MOST_LISTED = 25  # largest number of choices that a message lists
NAME = re.compile(r"[A-Za-z_][\w.]*")  # name of a setting
COMPOSERS = {"hydra", "omegaconf", "yaml", "antlr4"}


def raised_in_composition(error: BaseException) -> bool:
    """Return whether an error of any type was raised inside Hydra, OmegaConf or their parsers."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [name.partition(".")[0] for name in modules]
    return {*[name for name in packages if name not in sys.stdlib_module_names][-1:]} <= COMPOSERS


def masks_interrupt(error: BaseException) -> bool:
    """Return whether an error was raised in Hydra or OmegaConf while they handled a KeyboardInterrupt.

    A `finally` block of OmegaConf can fail on objects that the interruption left incomplete.
    """
    return raised_in_composition(error) and KeyboardInterrupt in map(type, _contexts(error))


def _contexts(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the chain of its contexts (`__context__`), i.e. the errors raised before it."""
    while error is not None:
        yield error
        error = error.__context__


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line. Messages of Hydra and OmegaConf have several lines."""
    return printable(_message_of(error))


def _message_of(error: BaseException) -> str:
    if isinstance(error, UsageError):
        return str(error)
    if message := _missing_choice(error) or _without_value(error) or _system_error(error) or _type_error(error):
        return message
    if "Ambiguous value for argument" in str(error):
        return f"{str(error).splitlines()[0]}; to sweep over a list put -m first: {command_line('run')} -m ..."
    cause = error.__cause__ if isinstance(error, HydraException) else None
    if isinstance(unknown := cause or error, ConfigAttributeError | ConfigKeyError) and unknown.parent_node:
        names = [str(name) for name in unknown.parent_node if name not in FILLED_IN]
        return str(unknown_key(str(unknown.full_key), names, owner_of(str(unknown.full_key)), _all_names(unknown)))
    return _plain_lines(error, cause)


def _all_names(error: OmegaConfBaseException) -> list[str]:
    """Return the names of all settings of the configuration in which OmegaConf has found an unknown one."""
    assert isinstance(error.parent_node, Container)
    root: Any = OmegaConf.to_container(error.parent_node._get_root(), resolve=False)
    return named_settings(root)


def _plain_lines(error: BaseException, cause: BaseException | None) -> str:
    """Join the lines of an error and of its cause, without repetitions and without lines about internals of Hydra."""
    lines = [line.strip() for line in str(error).splitlines()]
    if cause is not None and not isinstance(cause, HydraException):
        lines += [line.strip() for line in str(cause).splitlines()]
    kept = [line for line in lines if line and not line.startswith(NOISE)]
    return " ".join(dict.fromkeys(kept))


def _missing_choice(error: BaseException) -> str:
    """Return a message if the error reports an unknown choice, such as guide=nope; '' for other errors."""
    if not (isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options):
        return ""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    return f"unknown choice {group}={name}; {_remedy(group, name, list(error.options))}"


def _remedy(group: str, name: str, options: Sequence[str]) -> str:
    """Return the remedy for an unknown choice: a suggestion, or the choices, or the command that lists them."""
    file = Path("experiments", "conf", group, f"{name}.yaml")
    if file.is_file():  # below the current folder, but not in the package that runs
        install = "pip install -e '.[dev]' -c constraints.txt"
        return f"{file} exists here, but the installed package is not this folder; run: {install}"
    if group == LAUNCHER:
        extras = "extras add others: pip install -c constraints.txt -e '.[joblib]' (or submitit, or ray)"
        return f"choose one of: {', '.join(options)}; {extras}"
    near = similar_choice(name, options)
    if not near and len(options) <= MOST_LISTED:
        return f"choose one of: {', '.join(options)}"
    return f"{near} {this_command()} --help lists all choices".lstrip()


def _without_value(error: BaseException) -> str:
    """Return a message if the error reports a setting without a value; '' for other errors."""
    if not isinstance(error, OverrideParseException) or "=" in error.override:
        return ""
    given = error.override.lstrip("+")
    return f"expected NAME=VALUE, got '{given}'; write {given if NAME.fullmatch(given) else 'NAME'}=VALUE"


def _system_error(error: BaseException) -> str:
    """Return a message if the operating system has raised the error; '' for other errors."""
    if isinstance(error, BrokenPipeError):
        return "expected a reader for the output, got a closed pipe; write the output to a file"
    if isinstance(error, OSError) and error.strerror:
        return f"expected to use {error.filename or 'the disk'}, got: {error.strerror}; fix this, or name another path"
    return ""


def _type_error(error: BaseException) -> str:
    """Return a message if the error reports a value of the wrong type; '' for other errors."""
    text = " ".join(f"{error} {error.__cause__ or ''}".split())
    key = re.search(r"full_key: (\S+)", text) or re.search(r"merging override ([^=\s]+)=", text)
    name = key[1] if key else "the setting"
    if "is not a ListConfig" in text:
        return f"expected {name} to be a list, in quotes for the shell: '{name}=[...]'"
    match = re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", text)
    return f"expected {name} to be of type {match[2].lower()}, got '{match[1]}'" if match else ""
