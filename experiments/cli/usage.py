"""Usage texts (--help) of commands, built from the docstring and the settings of a command."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from omegaconf import MISSING as REQUIRED

from pyro_metabayes.experiments.cli.arguments import command_line
from pyro_metabayes.experiments.cli.explanations import (
    also_set_by,
    choices_of,
    composed,
    explanations_of,
    named_choices,
    settings_of_choice,
    settings_of_schema,
)
from pyro_metabayes.experiments.cli.text_table import WIDTH

RUN = "runs/sib"  # replaces RUN_DIR in an example
MORE = (
    ("--cfg job", "prints the whole configuration, with the settings of the choices, and runs nothing"),
    ("--hydra-help", "lists the flags of Hydra"),
)


def asks_for_help(arguments: Sequence[str]) -> bool:
    return not {"-h", "--help"}.isdisjoint(arguments)


class OneLineParser(argparse.ArgumentParser):
    """Argument parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return an argument parser without arguments, whose help text is made from the docstring of a command.

    Args:
        doc: docstring of the form "python -m experiments.NAME ARGUMENTS: TEXT".
    """
    name, example, text = _described(doc)
    form = argparse.RawDescriptionHelpFormatter
    return OneLineParser(prog=name, description=text, epilog=_example(name, example), formatter_class=form)


def usage_of_settings(doc: str | None, schema: type) -> str:
    """Return the usage text of a command that reads a finished run.

    Args:
        doc: docstring of the command.
        schema: dataclass of the settings of the command.
    """
    rows = [row for row in settings_of_schema(schema) if row[0] != "run"]
    run = [("RUN_DIR", explanations_of(schema)["run"])]
    changed = [("task.*, eval.*, guide.*", "changed settings of the run, such as task.shot=5")]
    return _usage(doc, "RUN_DIR [SETTING=VALUE ...]", [("run", run), ("settings", [*rows, *changed])])


def usage_of_configuration(doc: str | None, folder: Path, config_name: str, arguments: Sequence[str]) -> str:
    """Return the usage text of a command that Hydra configures, with its choices and settings.

    Args:
        doc: docstring of the command.
        folder: the folder of the configuration.
        config_name: the name of its YAML file.
        arguments: arguments of the command. The settings of choices among them, such as guide=sib, are listed too.
    """
    chosen, schema = composed(folder, config_name)
    required = {group: choice for group, choice in chosen.items() if choice == REQUIRED}
    sections = [("choices", list(choices_of(folder, required or chosen, schema)))]
    for group, choice in named_choices(folder, chosen, arguments).items():
        rows = [*settings_of_choice(folder, group, choice), *also_set_by(folder, group, choice)]
        sections.append((f"settings of {group}={choice}", rows))
    if schema is not None and not required:
        title = "settings (a choice may set another default)"
        sections.append((title, list(settings_of_schema(schema))))
    explained = "together with --help: also explains the settings of this choice"
    sections.append(("more", [(f"{next(iter(required or chosen))}=NAME", explained), *MORE]))
    return _usage(doc, "".join(f"{group}=NAME " for group in required) + "[SETTING=VALUE ...]", sections)


def _described(doc: str | None) -> tuple[str, str, str]:
    """Split a docstring "python -m NAME ARGUMENTS: TEXT" into command, example arguments and description."""
    command, _, text = (doc or "").strip().partition(": ")
    module, *arguments = command.removeprefix("python -m ").split()
    example = " ".join(arguments).replace("RUN_DIR", RUN)
    return command_line(module.removeprefix("experiments.")), example, _filled(text[:1].upper() + text[1:])


def _filled(text: str) -> str:
    """Wrap each paragraph of a text to lines of at most WIDTH characters."""
    return "\n\n".join(textwrap.fill(paragraph, WIDTH) for paragraph in text.split("\n\n"))


def _example(name: str, arguments: str) -> str:
    return f"example:\n  {name} {arguments}".rstrip()


def _usage(doc: str | None, arguments: str, sections: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> str:
    name, example, text = _described(doc)
    tables = [f"{title}:\n{_table(rows)}" for title, rows in sections if rows]
    return "\n\n".join([f"usage: {name} {arguments}", text, *tables, _example(name, example)])


def _table(rows: Sequence[tuple[str, str]]) -> str:
    """Format a table of two columns, with the second column wrapped."""
    first = 2 + max(len(name) for name, _ in rows)
    return "\n".join(
        textwrap.fill(text, WIDTH, initial_indent=f"  {name:{first}}", subsequent_indent=" " * (first + 2))
        for name, text in rows
    )
