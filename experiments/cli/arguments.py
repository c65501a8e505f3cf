"""The arguments of the command line, as Hydra takes them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from pyro_metabayes.experiments.cli.overrides import composable
from pyro_metabayes.storage.paths import user_path


def hydra_arguments(arguments: list[str]) -> list[str]:
    """The arguments of a command in Hydra's grammar."""
    return composable(_in_resumed_folder(_multirun_first(arguments)))


def _multirun_first(arguments: list[str]) -> list[str]:
    """Hydra accepts -m as the first argument only."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def _in_resumed_folder(arguments: list[str]) -> list[str]:
    """`resume=DIR` runs in DIR."""
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
    """What to do about a folder that cannot be resumed."""
    if folder.is_file():
        return f"give its folder, {folder.parent}"
    if (folder / "multirun.yaml").exists():
        return f"continue a sweep with its own command and {shlex.quote(f'hydra.sweep.dir={folder}')}"
    if folder.is_dir():
        return "start a run without a checkpoint again with its own command"
    return "there is no such folder"
