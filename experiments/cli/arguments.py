"""Translates the arguments that users type to arguments that Hydra accepts."""

from __future__ import annotations

import shlex
import sys
from difflib import get_close_matches
from pathlib import Path

from pyro_metabayes.experiments.cli.choices import CONF
from pyro_metabayes.experiments.cli.overrides import composable
from pyro_metabayes.storage.paths import user_path

# The flags of Hydra. Hydra also accepts the beginning of a flag, such as --multi.
FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
    *("-h", "-c", "-p", "-r", "-m", "-i", "-sc", "-cp", "-cn", "-cd"),
)


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments of a command in Hydra's grammar. Exit with a message if an argument is not allowed."""
    _refuse_unknown_flags(arguments)
    _refuse_without_logger(arguments)
    return composable(_in_resumed_folder(_multirun_first(arguments)))


def _refuse_unknown_flags(arguments: list[str]) -> None:
    """Exit with a one-line message if a flag is unknown. Hydra itself would print its whole usage."""
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("-") and not any(known.startswith(flag) for known in FLAGS):
            near = get_close_matches(flag, FLAGS, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            sys.exit(f"error: unknown flag '{flag}'; {guess}settings have the form train.steps=500; --help lists them")


def _refuse_without_logger(arguments: list[str]) -> None:
    """Exit with a message if there are settings such as logger.project=x, but no logger=NAME."""
    settings = [argument for argument in arguments if argument.startswith("logger.")]
    if settings and not any(argument.startswith("logger=") for argument in arguments):
        names = ", ".join(sorted(path.stem for path in (CONF / "logger").glob("*.yaml")))
        sys.exit(f"error: expected logger=NAME beside {settings[0]}, got none; choose one of: {names}")


def _multirun_first(arguments: list[str]) -> list[str]:
    """Move -m to the front, where Hydra requires it."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def _in_resumed_folder(arguments: list[str]) -> list[str]:
    """Replace `resume=DIR` by arguments with which the run continues in the folder DIR.

    Exits with a message if DIR has no checkpoint.
    """
    folders = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not folders or not folders[-1]:
        return arguments
    folder = user_path(folders[-1])
    if not (folder / "checkpoint.pt").is_file():
        expected = f"expected resume= to name the folder of a run with a checkpoint.pt, got '{folders[-1]}'"
        sys.exit(f"error: {expected}; {_resume_remedy(folder)}")
    remaining = [argument for argument in arguments if not argument.startswith("resume=")]
    return [*remaining, f"resume={folder}", f"hydra.run.dir={folder}"]


def _resume_remedy(folder: Path) -> str:
    """Return advice for a user whose folder cannot be resumed."""
    if folder.is_file():
        return f"take the folder of that file, resume={folder.parent}"
    if (folder / "multirun.yaml").exists():
        return f"continue a sweep with its own command and {shlex.quote(f'hydra.sweep.dir={folder}')}"
    if folder.is_dir():
        return "repeat the command that started this run"
    return "check the path, since the folder does not exist"


def command_line(name: str) -> str:
    """Return the start of a command line for the command NAME, in the form in which this process was started.

    The form is `metabayes NAME` if the process runs a module of pyro_metabayes, else `python -m experiments.NAME`.
    """
    installed = _module_of_process().startswith("pyro_metabayes.")
    return f"metabayes {name}" if installed else f"python -m experiments.{name}"


def this_command() -> str:
    """Return the words that started this command, such as `python -m experiments.run`."""
    return command_line(_module_of_process().removesuffix(".__main__").rpartition(".")[2])


def _module_of_process() -> str:
    """Return the name of the module that was started, such as experiments.compare.__main__; '' if it has none."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return "" if spec is None else spec.name
