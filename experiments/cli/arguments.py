"""Translates the arguments of a command line to those that Hydra accepts."""

from __future__ import annotations

import shlex
import sys
from difflib import get_close_matches
from pathlib import Path

from pyro_metabayes.experiments.cli.choices import CONF
from pyro_metabayes.experiments.cli.overrides import composable
from pyro_metabayes.storage.paths import user_path

# The flags of Hydra, which accepts their beginnings too.
FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
    *("-h", "-c", "-p", "-r", "-m", "-i", "-sc", "-cp", "-cn", "-cd"),
)


def hydra_arguments(arguments: list[str]) -> list[str]:
    """The arguments of a command in Hydra's grammar."""
    _refuse_unknown_flags(arguments)
    _refuse_without_logger(arguments)
    return composable(_in_resumed_folder(_multirun_first(arguments)))


def _refuse_unknown_flags(arguments: list[str]) -> None:
    """Exit if there is a flag that Hydra does not have; Hydra itself would print its whole usage."""
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("-") and not any(known.startswith(flag) for known in FLAGS):
            near = get_close_matches(flag, FLAGS, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            sys.exit(f"error: unknown flag '{flag}'; {guess}settings have the form train.steps=500; --help lists them")


def _refuse_without_logger(arguments: list[str]) -> None:
    """Exit if there are settings of a logger but no logger, which Hydra could not compose."""
    settings = [argument for argument in arguments if argument.startswith("logger.")]
    if settings and not any(argument.startswith("logger=") for argument in arguments):
        names = ", ".join(sorted(path.stem for path in (CONF / "logger").glob("*.yaml")))
        sys.exit(f"error: expected logger=NAME beside {settings[0]}, got none; there are: {names}")


def _multirun_first(arguments: list[str]) -> list[str]:
    """Moves -m to the front: Hydra accepts it only there."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def _in_resumed_folder(arguments: list[str]) -> list[str]:
    """Replaces `resume=DIR` by arguments with which the run continues in DIR; exits if DIR has no checkpoint."""
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
    """What the user can do if a folder cannot be resumed."""
    if folder.is_file():
        return f"take the folder of that file, resume={folder.parent}"
    if (folder / "multirun.yaml").exists():
        return f"continue a sweep with its own command and {shlex.quote(f'hydra.sweep.dir={folder}')}"
    if folder.is_dir():
        return "repeat the command that started this run"
    return "the folder does not exist"
