"""What is said of a mistake: one line, whichever of Hydra, OmegaConf and ourselves found it."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from difflib import get_close_matches

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pyro_metabayes.errors import UsageError, printable, unknown_key
from pyro_metabayes.experiments.cli.sweeps import LAUNCHER

MISTAKES = (UsageError, HydraException, OmegaConfBaseException, OSError, yaml.YAMLError, UnicodeDecodeError)
# Lines of Hydra and OmegaConf that speak of their insides.
NOISE = ("full_key", "object_type", "reference_type", "Config search path", "provider=", "Set the environment")
COMPOSERS = {"hydra", "omegaconf", "yaml", "antlr4"}


def in_composing(error: BaseException) -> bool:
    """Whether Hydra, or what it reads YAML with, tripped over settings; its errors are of many kinds."""
    called = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [name.partition(".")[0] for name in called]
    return {*[name for name in packages if name not in sys.stdlib_module_names][-1:]} <= COMPOSERS


def hides_a_stop(error: BaseException) -> bool:
    """Whether it has taken the place of an interruption: OmegaConf trips in a `finally` over what is half made."""
    return in_composing(error) and KeyboardInterrupt in map(type, _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what was being handled when it was raised, and so on."""
    while error is not None:
        yield error
        error = error.__context__


def one_line(error: BaseException) -> str:
    """The message of an error, its lines joined; Hydra and OmegaConf spread theirs over several."""
    return printable(_joined(error))


def _joined(error: BaseException) -> str:
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        near = get_close_matches(name, error.options, 1)
        guess = f"did you mean '{near[0]}'? " if near else ""
        there = f"{guess}there are: {', '.join(error.options)}"
        extras = "; others come with extras: pip install -c constraints.txt -e '.[joblib]' (or submitit, or ray)"
        return f"no '{name}' for {group}; {there}{extras if group == LAUNCHER else ''}"
    if said := _system_mistake(error) or _type_mistake(error):
        return said
    if "Ambiguous value for argument" in str(error):
        return f"{str(error).splitlines()[0]}; to sweep over a list put -m first: python -m experiments.run -m ..."
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else None
    if isinstance(unknown := cause or error, ConfigAttributeError | ConfigKeyError) and unknown.parent_node:
        known = [str(name) for name in unknown.parent_node]
        return str(unknown_key(str(unknown.full_key), known, unknown.object_type_str or ""))
    lines = [line.strip() for line in str(error).splitlines()]
    if cause is not None and not isinstance(cause, HydraException):
        lines += [line.strip() for line in str(cause).splitlines()]
    kept = [line for line in lines if line and not line.startswith(NOISE)]
    return " ".join(dict.fromkeys(kept))


def _system_mistake(error: BaseException) -> str:
    """What the system refuses; '' for other errors."""
    if isinstance(error, BrokenPipeError):
        return "expected a reader of what is printed, got none any more; write it to a file"
    if isinstance(error, OSError) and error.strerror:
        return f"expected to use {error.filename or 'the disk'}, got: {error.strerror}; free it, or name another place"
    return ""


def _type_mistake(error: BaseException) -> str:
    """A value that is no number where one is asked for, or no list; '' for other errors."""
    text = " ".join(f"{error} {error.__cause__ or ''}".split())
    key = re.search(r"full_key: (\S+)", text) or re.search(r"merging override ([^=\s]+)=", text)
    name = key[1] if key else "the setting"
    if "is not a ListConfig" in text:
        return f"expected {name} to be a list, in quotes for the shell: '{name}=[...]'"
    found = re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", text)
    return f"expected {name} to be of type {found[2].lower()}, got '{found[1]}'" if found else ""
