"""Completions of a command line, read from the source files of commands and settings without importing torch."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyro_metabayes
from pyro_metabayes.experiments import commands

ENGINE, CONF = Path(pyro_metabayes.__file__).parent, Path(__file__).parents[1] / "conf"
SCHEMAS = {  # the files with the dataclasses of the settings of a run
    "task": "data/task_shape.py",
    "pretrain": "pretraining/settings.py",
    "train": "training/optimisation.py",
    "eval": "evaluation/settings.py",
}
OF_RUNS = ("task", "eval")  # the groups in SCHEMAS whose settings an evaluation of a finished run may change
DEFAULT = re.compile(r"^  - (\w+)(: .+)?$", re.MULTILINE)  # an entry of the defaults list of a YAML
OPTION = re.compile(r'add_argument\(\s*"(--[\w-]+)"')
SETTING = re.compile(r"^(\w+):", re.MULTILINE)  # a key of a YAML


def candidates(words: Sequence[str]) -> list[str]:
    """Return the possible completions of the last word of a command line, in alphabetical order.

    Args:
        words: the words after `metabayes`. The last word is incomplete, and may be empty.
    """
    found = [f"{name} " for name in commands()] if len(words) == 1 else _of_command(words[0], words[1:])
    return sorted({word for word in found if word.startswith(words[-1])})


def _of_command(name: str, words: Sequence[str]) -> Iterator[str]:
    path = commands().get(name)
    if path is None:
        return
    if name == "completion":
        yield from ("bash ", "zsh ")
    text = path.read_text(encoding="utf-8")
    yield from (f"{option} " for option in ("--help", *OPTION.findall(text)) if words[-1].startswith("-"))
    if configuration := _configuration(name):
        yield from _of_configuration(configuration, words)
    elif len(words) > 1 and ("settings_of(" in text or '"settings"' in text):
        yield from (f"{setting}=" for setting in _fields(path) if setting != "run")
        yield from (f"{part}.{setting}=" for part in OF_RUNS for setting in _fields(ENGINE / SCHEMAS[part]))


def _configuration(name: str) -> Path | None:
    """Return the YAML file from which Hydra composes the settings of a command; None for a command without Hydra."""
    files = (CONF / ("config.yaml" if name == "run" else f"{name}.yaml"), CONF / name / "config.yaml")
    return next((file for file in files if file.exists()), None)


def _of_configuration(configuration: Path, words: Sequence[str]) -> Iterator[str]:
    """Yield words for a command that Hydra composes: choices (guide=sib), and settings (train.steps=).

    Settings of a choice (guide.num_steps=) are included if the choice is among the words before the last one.
    """
    groups = _groups(configuration)
    for group in groups:
        for choice in sorted((configuration.parent / group).glob("*.yaml")):
            yield f"{group}={choice.stem} "
            if f"{group}={choice.stem}" in words[:-1]:
                yield from (f"{group}.{setting}=" for setting in _settings_in(choice, group))
    if "data" in groups:
        yield from (f"{part}.{setting}=" for part, file in SCHEMAS.items() for setting in _fields(ENGINE / file))
        yield from (f"{setting}=" for setting in ("seed", "device", "threads", "init", "resume", "hydra.run.dir"))
    else:
        yield from ("size=full ", "size=smoke ", "parts=", "workers=")


def _groups(configuration: Path) -> list[str]:
    """Return the groups (guide, data, ...) in the defaults list of a YAML file and of the files that it extends."""
    groups: list[str] = []
    for name, choice in DEFAULT.findall(configuration.read_text(encoding="utf-8")):
        extended = configuration.parent / f"{name}.yaml"
        groups += [name] if choice else _groups(extended) if extended.exists() else []
    return groups


def _settings_in(choice: Path, group: str) -> list[str]:
    """Return the names of the settings of a group in the YAML file of a choice, such as num_steps for guide=sib."""
    text = choice.read_text(encoding="utf-8")
    if text.startswith("# @package _global_"):
        own = re.search(rf"^{group}:\n((?:  .*\n)*)", text, re.MULTILINE)
        text = textwrap.dedent(own[1]) if own else ""
    return [name for name in SETTING.findall(text) if not name.startswith("_")]


def _fields(path: Path) -> list[str]:
    """Return the field names of all classes in a Python file with a name that ends with Settings or Shape."""
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    chosen = [node for node in classes if node.name.endswith(("Settings", "Shape"))]
    names = [line.target for node in chosen for line in node.body if isinstance(line, ast.AnnAssign)]
    return [name.id for name in names if isinstance(name, ast.Name)]


def complete(line: str, word: str) -> Iterator[str]:
    """Yield the completions of the word at the cursor.

    bash begins a new word after "=", so the completion of `guide=si` is `sib` rather than `guide=sib`.

    Args:
        line: the command line up to the cursor.
        word: the word at the cursor, as the shell splits words.
    """
    words = line.split()[1:] + [""] * line.endswith(" ")
    skipped = len(words[-1]) - len(word) if words[-1].endswith(word) else 0
    yield from (candidate[skipped:] for candidate in candidates(words))
