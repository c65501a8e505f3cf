"""The usage text of a command, built from its docstring and its schema: description, arguments, one example."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING as REQUIRED
from omegaconf import OmegaConf

WIDTH = 100
RUN = "runs/sib"  # replaces RUN_DIR in an example
COMMENT = re.compile(r"^    (\w+): .+?  # (.+)$", re.MULTILINE)  # a field of a dataclass with its comment
FILLED_IN = "filled in"  # marks, in its comment, a field that users do not set


def asks_for_help(arguments: Sequence[str]) -> bool:
    return not {"-h", "--help"}.isdisjoint(arguments)


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser without arguments; its help text is made from this docstring."""
    name, example, text = _described(doc)
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=name, description=text, epilog=_example(name, example), formatter_class=form)


def usage_of_settings(doc: str | None, schema: type) -> str:
    """The usage of a command on a finished run: the settings of `schema`, and settings of the run to change."""
    rows = [*_rows(schema), ("task.*, eval.*, guide.*", "changed settings of the run, such as task.shot=5")]
    return _usage(doc, "run=RUN_DIR [SETTING=VALUE ...]", [("settings", rows)])


def usage_of_configuration(doc: str | None, folder: Path, config_name: str) -> str:
    """The usage of a command with configuration CONFIG_NAME.yaml: its choices and the settings of its schema."""
    chosen, schema = _composed(folder, config_name)
    required = {group: choice for group, choice in chosen.items() if choice == REQUIRED}
    shown = required or chosen
    notes = {} if schema is None else _comments(schema)
    choices = [(f"{group}=", _options(folder / group, choice, notes.get(group, ""))) for group, choice in shown.items()]
    settings = [] if required or schema is None else [*_rows(schema)]
    configuration = "prints the whole configuration, with the settings of the choices, and runs nothing"
    more = [("--cfg job", configuration), ("--hydra-help", "the flags of Hydra")]
    arguments = "".join(f"{group}=NAME " for group in required) + "[SETTING=VALUE ...]"
    return _usage(doc, arguments, [("choices", choices), ("settings", settings), ("more", more)])


def _described(doc: str | None) -> tuple[str, str, str]:
    """NAME, ARGUMENTS and TEXT of a docstring "python -m NAME ARGUMENTS: TEXT": name, example and description."""
    command, _, text = (doc or "").strip().partition(": ")
    module, *arguments = command.removeprefix("python -m ").split()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    installed = spec is not None and spec.name.startswith("pyro_metabayes.")
    name = module.replace("experiments.", "metabayes ") if installed else f"python -m {module}"
    return name, " ".join(arguments).replace("RUN_DIR", RUN), text[:1].upper() + text[1:]


def _example(name: str, arguments: str) -> str:
    return f"example:\n  {name} {arguments}".rstrip()


def _usage(doc: str | None, arguments: str, sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    name, example, text = _described(doc)
    tables = [f"{title}:\n{_table(rows)}" for title, rows in sections if rows]
    return "\n\n".join([f"usage: {name} {arguments}", text, *tables, _example(name, example)])


def _table(rows: Sequence[tuple[str, str]]) -> str:
    """A table of two columns; the second one is wrapped."""
    first = 2 + max(len(name) for name, _ in rows)
    return "\n".join(
        textwrap.fill(text, WIDTH, initial_indent=f"  {name:{first}}", subsequent_indent=" " * (first + 2))
        for name, text in rows
    )


def _rows(schema: type) -> Iterator[tuple[str, str]]:
    """Name and explanation of every setting of a dataclass; for a nested dataclass, only the names of its settings."""
    comments = _comments(schema)
    for setting in fields(schema):
        default, comment = _default(setting), comments.get(setting.name, "")
        if is_dataclass(default):
            yield f"{setting.name}.*", ", ".join(item.name for item in fields(default))
        elif FILLED_IN not in comment and default is not MISSING:
            yield setting.name, f"{comment} ({_written(default)})".lstrip()


def _comments(schema: type) -> dict[str, str]:
    """The comment beside each field of a dataclass."""
    classes = [base for base in reversed(schema.__mro__) if is_dataclass(base)]
    return dict(found for base in classes for found in COMMENT.findall(inspect.getsource(base)))


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _written(value: Any) -> str:
    return "required" if value == REQUIRED else f"default: {value!r}" if value in ("", []) else f"default: {value}"


def _options(folder: Path, choice: str, note: str) -> str:
    """The names that a group has, the default, and the comment on the field of the schema."""
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    return "; ".join(part for part in (f"{names} ({_written(choice)})", note) if part)


def _composed(folder: Path, name: str) -> tuple[dict[str, str], type | None]:
    """The groups of a YAML with their default choices, and the schema that its defaults list names."""
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"), resolve=False)
    groups: dict[str, str] = {}
    schema: type | None = None
    for entry in config["defaults"]:
        if isinstance(entry, Mapping):
            groups |= {group: choice for group, choice in entry.items() if not group.startswith("override ")}
        elif (folder / f"{entry}.yaml").exists():
            groups, schema = _composed(folder, entry)
        elif entry != "_self_":
            schema = OmegaConf.get_type(ConfigStore.instance().load(f"{entry}.yaml").node)
    return groups, schema
