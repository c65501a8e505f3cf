"""Runs a Hydra command, with one-line error messages, exit codes, a lock on the folder of the run, and `resume=`."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shlex
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

from pyro_metabayes.device import keep_freed_memory
from pyro_metabayes.errors import Interrupted, UsageError, printable
from pyro_metabayes.experiments.cli.arguments import command_line, hydra_arguments
from pyro_metabayes.experiments.cli.config import register
from pyro_metabayes.experiments.cli.messages import MISTAKES, masks_interrupt, one_line, raised_in_composition
from pyro_metabayes.experiments.cli.one_line_warnings import one_line_warnings
from pyro_metabayes.experiments.cli.sweeps import (
    RUNNING,
    another_folder,
    in_sweep,
    interruption_message,
    job_name,
    unfinished_jobs,
    write_note,
)
from pyro_metabayes.experiments.cli.usage import asks_for_help, usage_of_configuration
from pyro_metabayes.experiments.runs.plots import plot_formats
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.lock import alone_in
from pyro_metabayes.storage.untrusted import DAMAGED, reason_of
from pyro_metabayes.training.interruption import SIGNALS

CONF = str(Path(__file__).parents[1] / "conf")
NOTHING_KEPT = "interrupted; of the unfinished work only the cache was kept: backbones, features and converted data"
INTERRUPTED = 130  # exit code of the shell for a program that SIGINT has ended


def run_command(
    task: Callable[[DictConfig, Path], object], config_name: str = "config", config_folder: str = CONF
) -> None:
    """Compose CONFIG_NAME.yaml with the arguments of the command line, and call a function with the result.

    Mistakes of the user are reported in one line, with exit code 1. With --help, only the usage is printed.

    Args:
        task: function of the composed configuration and the folder of the run.
        config_name: the name of the YAML file.
        config_folder: the folder of the YAML file.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are reported here, not by Hydra
    register()
    if asks_for_help(sys.argv):
        doc = sys.modules[task.__module__].__doc__
        print(usage_of_configuration(doc, Path(config_folder), config_name, sys.argv[1:]))
        return
    sys.argv[1:] = hydra_arguments(sys.argv[1:])
    failures: list[str] = []

    def job(config: DictConfig) -> None:
        try:
            write_note(RUNNING)
            _in_clean_folder(lambda folder: task(config, folder))
            write_note("")
        except Exception as error:
            if not (job_name() or isinstance(error, MISTAKES)):
                raise
            failures.append(report_failure(error))  # in the job, since a launcher may run it in another process

    _launch(hydra.main(version_base="1.3", config_path=config_folder, config_name=config_name)(job))
    if summary := unfinished_jobs():
        sys.exit(f"error: {summary}")
    if failures:
        sys.exit(1)


def _launch(program: Callable[[], object]) -> None:
    """Run a Hydra program, and report errors of its launcher in one line. Each job reports its own errors."""
    try:
        run_program(program)
    except Exception as error:
        if not in_sweep():
            raise
        unfinished = unfinished_jobs() or "no job is left unfinished"
        sys.exit(f"error: the launcher failed: {type(error).__name__}: {one_line(error)}; {unfinished}")


def report_failure(error: Exception) -> str:
    """Print and record why a job failed: a one-line message, or the traceback of an unexpected error.

    Returns:
        The message or traceback.
    """
    lines = one_line(error) if isinstance(error, MISTAKES) else "".join(traceback.format_exception(error)).rstrip()
    with contextlib.suppress(UsageError):  # the disk may be full
        write_note(lines)
    print(f"error: {job_name()}{': ' if job_name() else ''}{lines}", file=sys.stderr)
    return lines


def run_program(main: Callable[[], object]) -> None:
    """Call the main function of a command. After a user's mistake or a signal, exit with a one-line message."""
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # each line reaches a pipe when it is printed
    try:
        plot_formats()  # an unknown format in METABAYES_PLOTS is reported before any work
        with _stoppable(), one_line_warnings():
            main()
    except KeyboardInterrupt as stop:  # includes Interrupted
        print(f"\n{interruption_message() or str(stop) or NOTHING_KEPT}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except MISTAKES as error:
        sys.exit(f"error: {one_line(error)}")
    except DAMAGED as error:
        if not raised_in_composition(error):
            raise
        sys.exit(printable(f"error: expected settings that Hydra can compose, got: {reason_of(error)}; fix them"))


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Context manager in which SIGTERM acts like SIGINT, the signal of Ctrl-C.

    A signal that is already ignored when the process starts (under nohup, or with &) stays ignored.
    """
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    except Exception as error:
        if masks_interrupt(error):
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def keep_settings(composed: DictConfig, folder: Path) -> None:
    """Write the settings of the run to the subfolder .hydra of the locked folder.

    Hydra itself would write them before the folder is locked, and could overwrite the settings of another run.
    """
    hydra_config: Any = HydraConfig.instance().cfg
    files = {"config": composed, "hydra": hydra_config, "overrides": hydra_config.hydra.overrides.task}
    for name, settings in files.items():
        path = folder / ".hydra" / f"{name}.yaml"
        write_atomically(path, functools.partial(OmegaConf.save, settings))


def _in_clean_folder(task: Callable[[Path], object]) -> None:
    """Call a function with the locked folder of the run. Remove the folder if it stays empty."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with alone_in(folder, another_folder()):
            _in_locked_folder(task, folder)
    finally:
        if not folder.is_dir():
            folder = folder.parent  # its parent runs/DATA/GUIDE may be empty now
        _remove_empty(folder)


def _in_locked_folder(task: Callable[[Path], object], folder: Path) -> None:
    try:
        task(folder)
    except BaseException as error:
        if {path.name for path in folder.iterdir()} <= {".hydra", "study.txt", ".lock"}:
            shutil.rmtree(folder)
        elif type(error) is KeyboardInterrupt and (folder / "checkpoint.pt").exists():
            how = f"{command_line('run')} {shlex.quote(f'resume={folder}')}"
            raise Interrupted(f"{str(error) or 'interrupted'}; continue with: {how}") from None
        raise


def _remove_empty(folder: Path) -> None:
    """Remove a folder and its parents, as long as they are empty and inside the current working directory."""
    while Path.cwd() in folder.parents and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
