"""The arguments of the command line, as Hydra takes them."""

from __future__ import annotations

import sys
from pathlib import Path

from pyro_metabayes.specification.parts import PARTS


def hydra_arguments(arguments: list[str]) -> list[str]:
    """The arguments of a command in Hydra's grammar."""
    return _in_resumed_folder([allow_part_setting(argument) for argument in _multirun_first(arguments)])


def allow_part_setting(argument: str) -> str:
    """`guide.scale=0.1` may set what the YAML leaves at its default: the constructor's signature decides.

    Hydra requires the prefix ++ for such a setting, and for a new entry of a mapping.
    """
    open_ended = (*(f"{part}." for part in ("data", *PARTS)), "train.learning_rates", "train.kl_weight")
    return f"++{argument}" if argument.startswith(open_ended) else argument


def _multirun_first(arguments: list[str]) -> list[str]:
    """Hydra accepts -m as the first argument only."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def _in_resumed_folder(arguments: list[str]) -> list[str]:
    """`resume=DIR` runs in DIR."""
    folders = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not folders or not folders[-1]:
        return arguments
    if not (Path(folders[-1]) / "checkpoint.pt").is_file():
        expected = f"expected resume= to name the folder of a run with a checkpoint.pt, got '{folders[-1]}'"
        sys.exit(f"error: {expected}; {_resume_remedy(Path(folders[-1]))}")
    quoted = "'" + folders[-1].replace("'", r"\'") + "'"  # Hydra interprets commas and equals signs
    remaining = [argument for argument in arguments if not argument.startswith("resume=")]
    return [*remaining, f"resume={quoted}", f"hydra.run.dir={quoted}"]


def _resume_remedy(folder: Path) -> str:
    """What to do about a folder that cannot be resumed."""
    if folder.is_file():
        return f"give its folder, {folder.parent}"
    if (folder / "multirun.yaml").exists():
        return f"continue a sweep with its own command and hydra.sweep.dir={folder}"
    if folder.is_dir():
        return "start a run without a checkpoint again with its own command"
    return "there is no such folder"
