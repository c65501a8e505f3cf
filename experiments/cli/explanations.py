"""Explanations of settings for --help, read from docstrings and from comments beside the fields of dataclasses."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING as REQUIRED
from omegaconf import OmegaConf

from pyro_metabayes.build import arguments_of, provided_by_source, target_of
from pyro_metabayes.experiments.cli.overrides import flatten
from pyro_metabayes.specification.parts import CONTEXT, PARTS

Rows = Iterator[tuple[str, str]]
COMMENT = re.compile(r"^    (\w+): .+?  # (.+)$", re.MULTILINE)  # a field of a dataclass with its comment
ARGUMENTS = re.compile(r"^Args:\n((?:    .*\n|\n)+)", re.MULTILINE)  # a docstring's Args
ENTRY = re.compile(r"^    (\w[\w, ]*?): ((?:.*\n)(?:(?:     .*)?\n)*)", re.MULTILINE)  # "NAMES: TEXT" in Args
OTHERS = re.compile(r"arguments are those of `(\w+)`")
PROVIDED = {"logger": ("folder", "name")}  # arguments of constructors that are no settings
FILLED_IN = "filled in"  # these words in the comment on a field mean that users do not set it


def explanations_of(target: Any) -> dict[str, str]:
    """Return {argument: explanation} of a class or function, from its docstring and the comments on its fields."""
    classes = target.__mro__ if inspect.isclass(target) else ()
    found: dict[str, str] = {}
    for owner in (*(base for base in reversed(classes) if base is not object), target):
        if is_dataclass(owner) and inspect.isclass(owner):
            found |= dict(COMMENT.findall(inspect.getsource(owner)))
        found |= _of_docstring(owner)
    if others := OTHERS.search(" ".join((target.__doc__ or "").split())):
        found = explanations_of(_named(others[1], target)) | found
    return found


def _named(name: str, target: Any) -> Any:
    """Return the object `name` in the module that defines `target`, or else the class of guide=`name`."""
    module = sys.modules[target.__module__]
    return getattr(module, name, None) or target_of({"_target_": f"guides.{name}.Guide"}, "guide")


def _of_docstring(target: Any) -> dict[str, str]:
    """Return {argument: text} from the section Args of a docstring. Arguments listed together have the same text."""
    section = ARGUMENTS.search(f"{inspect.cleandoc(target.__doc__ or '')}\n")
    entries = ENTRY.findall(section[1]) if section else []
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def settings_of_schema(schema: type, prefix: str = "") -> Rows:
    """Yield name and explanation of every setting of a dataclass and of the dataclasses in it.

    Args:
        schema: the dataclass.
        prefix: prefix of the names, such as "train.".
    """
    explanations = explanations_of(schema)
    for setting in fields(schema):
        default, text = _default(setting), explanations.get(setting.name, "")
        if is_dataclass(default):
            yield from settings_of_schema(type(default), f"{prefix}{setting.name}.")
        elif FILLED_IN not in text and default is not MISSING:
            yield prefix + setting.name, _with_default(text, default)


def settings_of_choice(folder: Path, group: str, choice: str) -> Rows:
    """Yield name and explanation of every setting of a choice such as guide=sib, from its constructor.

    Args:
        folder: the folder of the configuration.
        group: the group, such as guide.
        choice: the choice, such as sib. Its YAML names the constructor.
    """
    specification, _ = _contents(folder, group, choice)
    if "_target_" not in specification:
        return
    target = target_of(specification, group)
    explanations = explanations_of(target)
    for name, argument in settings_of_target(group, target).items():
        default = REQUIRED if argument.default is argument.empty else argument.default
        yield f"{group}.{name}", _with_default(explanations.get(name, ""), specification.get(name, default))


def settings_of_target(group: str, target: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of a constructor that are settings of a group, such as guide, by name."""
    provided = {*provided_by_source(target), *(CONTEXT if group in PARTS else PROVIDED.get(group, ()))}
    return {name: argument for name, argument in arguments_of(target).items() if name not in provided}


def also_set_by(folder: Path, group: str, choice: str) -> Rows:
    """Yield one row with the settings of other groups that the YAML of a choice sets; nothing if it sets none.

    The arguments are those of `settings_of_choice`.
    """
    if others := dict(flatten(_contents(folder, group, choice)[1])):
        yield "also sets", ", ".join(f"{name}={_value(value)}" for name, value in others.items())


def _contents(folder: Path, group: str, choice: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two parts of the file GROUP/CHOICE.yaml: the settings of GROUP, and the settings of other groups."""
    path = folder / group / f"{choice}.yaml"
    settings: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) or {}
    if not path.read_text(encoding="utf-8").startswith("# @package _global_"):
        return settings, {}
    return settings.pop(group, {}), {name: value for name, value in settings.items() if name != "defaults"}


def choices_of(folder: Path, chosen: Mapping[str, str], schema: type | None) -> Rows:
    """Yield one row per group of choices, such as "guide=". The row has the options, the default and an explanation.

    Args:
        folder: the folder of the configuration.
        chosen: the default choice of each group.
        schema: the dataclass whose comments explain the groups; None without explanations.
    """
    notes = {} if schema is None else explanations_of(schema)
    for group, choice in chosen.items():
        options = ", ".join(sorted(path.stem for path in (folder / group).glob("*.yaml")))
        yield f"{group}=", "; ".join(part for part in (f"{options} ({_written(choice)})", notes.get(group, "")) if part)


def named_choices(folder: Path, groups: Iterable[str], arguments: Sequence[str]) -> dict[str, str]:
    """Return the choices that are among the arguments of a command, such as {"guide": "savi"} for guide=savi.

    Args:
        folder: the folder of the configuration; names without a YAML file are ignored.
        groups: the names of the groups.
        arguments: the arguments of the command.
    """
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    return {group: named[group] for group in groups if (folder / group / f"{named.get(group)}.yaml").is_file()}


def composed(folder: Path, name: str) -> tuple[dict[str, str], type | None]:
    """Return {group: default choice} and the schema (a dataclass) from the defaults list of FOLDER/NAME.yaml."""
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"), resolve=False)
    groups: dict[str, str] = {}
    schema: type | None = None
    for entry in config["defaults"]:
        if isinstance(entry, Mapping):
            groups |= {group: choice for group, choice in entry.items() if not group.startswith("override ")}
        elif (folder / f"{entry}.yaml").exists():
            groups, schema = composed(folder, entry)
        elif entry != "_self_":
            schema = OmegaConf.get_type(ConfigStore.instance().load(f"{entry}.yaml").node)
    return groups, schema


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _with_default(text: str, value: Any) -> str:
    return f"{text.removesuffix('.')} ({_written(value)})".lstrip()


def _written(value: Any) -> str:
    return "required" if value == REQUIRED else f"default: {_value(value)}"


def _value(value: Any) -> str:
    """Format a value as a user would type it on a command line. An empty value becomes the word `none`."""
    if value in ("", [], {}, None):
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
