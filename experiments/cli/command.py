"""What every Hydra command shares: one line for a mistake, a clean exit, and `resume=`."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pyro_metabayes.errors import Interrupted, UsageError, printable
from pyro_metabayes.experiments.cli.config import register
from pyro_metabayes.experiments.cli.lock import alone_in
from pyro_metabayes.experiments.cli.messages import MISTAKES, hides_a_stop, in_composing, one_line
from pyro_metabayes.experiments.cli.sweeps import SILENT, how_to_go_on, job_name, note, sweeps, unfinished_jobs
from pyro_metabayes.learner import PARTS
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.untrusted import DAMAGED, reason_of
from pyro_metabayes.training.allocator import keep_freed_memory
from pyro_metabayes.training.interruption import SIGNALS

CONF = str(Path(__file__).parents[1] / "conf")
NOTHING_KEPT = "interrupted; nothing of the unfinished work was kept but the cache: backbones, features, converted data"
INTERRUPTED = 130  # the shell's code for a program that SIGINT ended


def run_command(
    task: Callable[[DictConfig, Path], object], config_name: str = "config", config_folder: str = CONF
) -> None:
    """Compose CONFIG_NAME.yaml, call the task with it and the run's folder, answer mistakes in one line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, not to Hydra's own printer
    sys.argv[1:] = _in_resumed_folder([of_a_part(argument) for argument in _with_the_flag_first(sys.argv[1:])])
    register()
    failures: list[str] = []

    def job(config: DictConfig) -> None:
        try:
            note(SILENT)
            _in_clean_folder(lambda folder: task(config, folder))
            note("")
        except Exception as error:
            if not (job_name() or isinstance(error, MISTAKES)):
                raise
            failures.append(told(error))  # here: a launcher may have brought the job to another process

    try:
        answer(hydra.main(version_base="1.3", config_path=config_folder, config_name=config_name)(job))
    except Exception as error:  # of a launcher: surprises of a job stay with the job
        if not sweeps():
            raise
        begun = unfinished_jobs() or "no job is left unfinished"
        sys.exit(f"error: the launcher gave up: {type(error).__name__}: {one_line(error)}; {begun}")
    if summary := unfinished_jobs():
        sys.exit(f"error: {summary}")
    if failures:
        sys.exit(1)


def told(error: Exception) -> str:
    """The line of a failed job, or all there is to say of a surprise: on the terminal, and in the folder of a sweep."""
    lines = one_line(error) if isinstance(error, MISTAKES) else "".join(traceback.format_exception(error)).rstrip()
    with contextlib.suppress(UsageError):  # a disk that is full, perhaps
        note(lines)
    print(f"error: {job_name()}{': ' if job_name() else ''}{lines}", file=sys.stderr)
    return lines


def answer(main: Callable[[], object]) -> None:
    """Call the program of a command; a mistake, or a signal to stop, gets one line and an exit code."""
    keep_freed_memory()
    try:
        with _stoppable():
            main()
    except KeyboardInterrupt as stop:  # Interrupted among them
        print(f"\n{how_to_go_on() or str(stop) or NOTHING_KEPT}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except MISTAKES as error:
        sys.exit(f"error: {one_line(error)}")
    except DAMAGED as error:
        if not in_composing(error):
            raise
        sys.exit(printable(f"error: expected settings that can be composed, got others: {reason_of(error)}"))


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does; a signal that the shell told to ignore (nohup, &) stays ignored."""
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    except Exception as error:
        if hides_a_stop(error):
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def of_a_part(argument: str) -> str:
    """`guide.scale=0.1` may set what the YAML leaves at its default: the constructor's signature decides.

    To Hydra that is an addition (++), which it would otherwise refuse; so are new entries of a mapping.
    """
    open_ended = (*(f"{part}." for part in ("data", *PARTS)), "train.learning_rates", "train.kl_weight")
    return f"++{argument}" if argument.startswith(open_ended) else argument


def _with_the_flag_first(arguments: list[str]) -> list[str]:
    """Hydra takes -m nowhere else."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def _in_resumed_folder(arguments: list[str]) -> list[str]:
    """`resume=DIR` runs in DIR."""
    folders = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not folders or not folders[-1]:
        return arguments
    if not (Path(folders[-1]) / "checkpoint.pt").is_file():
        expected = f"expected resume= to name the folder of a run with a checkpoint.pt, got '{folders[-1]}'"
        sys.exit(f"error: {expected}; {_instead_of(Path(folders[-1]))}")
    quoted = "'" + folders[-1].replace("'", r"\'") + "'"  # to Hydra a comma or an equals sign has a meaning
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    return [*others, f"resume={quoted}", f"hydra.run.dir={quoted}"]


def _instead_of(folder: Path) -> str:
    """What to do about a folder that cannot be resumed."""
    if folder.is_file():
        return f"give its folder, {folder.parent}"
    if (folder / "multirun.yaml").exists():
        return f"a sweep goes on with its own command and hydra.sweep.dir={folder}"
    if folder.is_dir():
        return "a run that has none yet begins again with its own command"
    return "there is no such folder"


def keep_settings(composed: DictConfig, folder: Path) -> None:
    """.hydra/ in the folder, once it is known to be ours; Hydra itself would write over those of another run."""
    hydra_config: Any = HydraConfig.instance().cfg
    files = {"config": composed, "hydra": hydra_config, "overrides": hydra_config.hydra.overrides.task}
    for name, settings in files.items():
        path = folder / ".hydra" / f"{name}.yaml"
        write_atomically(path, functools.partial(OmegaConf.save, settings))


def _in_clean_folder(task: Callable[[Path], object]) -> None:
    """Call the task, alone in its folder; where it wrote nothing, failed or not, leave no trace of the folder."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with alone_in(folder):
            _in_locked_folder(task, folder)
    finally:
        if not folder.is_dir():
            folder = folder.parent  # runs/DATA/GUIDE, where this run was its first
        _remove_empty(folder)


def _in_locked_folder(task: Callable[[Path], object], folder: Path) -> None:
    try:
        task(folder)
    except BaseException as error:
        if {path.name for path in folder.iterdir()} <= {".hydra", "study.txt", ".lock"}:
            shutil.rmtree(folder)
        elif type(error) is KeyboardInterrupt and (folder / "checkpoint.pt").exists():
            how = f"python -m experiments.run resume={folder}"
            raise Interrupted(f"interrupted; continue with: {how}") from None
        raise


def _remove_empty(folder: Path) -> None:
    """The folder and those above it, as long as they are empty and below the current one."""
    while Path.cwd() in folder.parents and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
