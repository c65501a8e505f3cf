"""Processes of a run on several devices. All processes train; only the first evaluates, prints and writes files.

The other processes are called workers. The processes find each other through the environment variables of torchrun.
Without torchrun, the first process sets these variables and starts the workers as `python -m experiments.run`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from torch import distributed

import pyro_metabayes
from pyro_metabayes.device import count_of, device_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.arguments import command_line
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.training.interruption import SIGNALS

ROOT = Path(pyro_metabayes.__file__).parents[1]  # the folder from which the workers import the package
STARTED = "METABAYES_STARTED"  # set in workers that the first process has started and which exit with it
WAIT = timedelta(days=1)  # workers may have to wait while the first process pretrains a backbone


def check_devices(config: Config) -> None:
    """Check that trainer.devices fits the devices of this machine and, under torchrun, the number of processes."""
    devices = here = config.trainer.devices
    if _under_torchrun():
        size, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if devices != size:
            raise UsageError(f"expected trainer.devices={size}, the number of processes of torchrun, got {devices}")
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UsageError("expected one run under torchrun, got a sweep (-m); leave out torchrun, or -m")
    device = device_of(config.device)
    if device.type != "cpu" and here > (count := count_of(device.type)):
        raise UsageError(f"expected trainer.devices <= {count}, the number of {device.type} devices, got {here}")
    if device.index and here > 1:
        raise UsageError(f"expected device={device.type} for trainer.devices={devices}, got device={device}")


def _under_torchrun() -> bool:
    return distributed.is_available() and distributed.is_torchelastic_launched()


@contextlib.contextmanager
def processes_of(config: Config, folder: Path) -> Iterator[None]:
    """Context manager that starts one worker per further device, sends the settings to the workers, and stops them."""
    if config.trainer.devices == 1:
        yield
        return
    with _report_lost_process(folder), _worker_processes(config.trainer.devices), process_group():
        distributed.broadcast_object_list([config, folder])
        yield


@contextlib.contextmanager
def _report_lost_process(folder: Path) -> Iterator[None]:
    """Context manager that replaces torch's long error about a lost process by a one-line UsageError."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        codes = " ".join(getattr(error, "__notes__", []))
        launcher = "the torchrun command with" if _under_torchrun() else command_line("run")
        raise UsageError(
            f"a process of the job was lost{codes}; continue from the last checkpoint with: {launcher} "
            f"{shlex.quote(f'resume={folder}')}"
        ) from error


def is_worker() -> bool:
    """Return whether this process is a worker, i.e. not the first process of its run."""
    return _under_torchrun() and int(os.environ["RANK"]) > 0


def run_worker(train: Callable[[Config, Path], object]) -> None:
    """Train in a worker, without output; `train` receives the settings and the folder from the first process."""
    for number in SIGNALS:  # until training begins, a signal ends the worker at once
        signal.signal(number, signal.SIG_DFL)
    if os.environ.get(STARTED):
        threading.Thread(target=_exit_with_first, daemon=True).start()
        os.write(1, b".")  # ready
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            _train_in_group(train)
    except KeyboardInterrupt:
        pass  # the first process reports the interruption
    except UsageError as error:
        sys.exit(f"error: process {os.environ['RANK']} of the job: {error}")
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        sys.exit(1)


def _train_in_group(train: Callable[[Config, Path], object]) -> None:
    with process_group():
        message: list[Any] = [None, None]
        distributed.broadcast_object_list(message)
        config, folder = message
        if (kind := device_of(config.device).type) != "cpu":
            torch.get_device_module(kind).set_device(int(os.environ["LOCAL_RANK"]))
        train(config, folder)


def _exit_with_first() -> None:
    """Exit when the first process ends and thereby closes the pipe to this worker.

    Otherwise the worker could wait for the first process in a collective operation for up to a day (WAIT).
    """
    sys.stdin.buffer.read()
    os._exit(1)


@contextlib.contextmanager
def _worker_processes(devices: int) -> Iterator[None]:
    """Context manager that starts the workers and stops them at the end. torchrun starts its workers itself."""
    if _under_torchrun():
        yield
        return
    environment = dict(os.environ)
    os.environ |= _torchrun_variables(devices)
    workers: list[subprocess.Popen[bytes]] = []
    try:
        workers += [_start_worker(rank) for rank in range(1, devices)]
        _wait_for(workers)
        yield
    except RuntimeError as error:
        codes = {rank: code for rank, worker in enumerate(workers, 1) if (code := worker.poll()) is not None}
        if _is_lost_process(error):
            error.add_note(f" (rank and exit code: {codes or 'unknown'})")
        raise
    finally:
        os.environ.clear()
        os.environ |= environment
        for worker in workers:
            worker.kill()
            worker.communicate()


def _torchrun_variables(devices: int) -> dict[str, str]:
    """Return the environment variables that torchrun would set in the first process of a run on this machine."""
    from lightning_fabric.plugins.environments.lightning import find_free_network_port  # takes a second

    port = find_free_network_port()
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": devices, "LOCAL_WORLD_SIZE": devices}
    variables |= {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": port}
    return {name: str(value) for name, value in variables.items()}


def _wait_for(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until every worker has started. A worker prints one byte when it starts."""
    for rank, worker in enumerate(workers, 1):
        if worker.stdout is None or not worker.stdout.read(1):
            raise UsageError(f"expected process {rank} of the job to start, got exit code {worker.wait()}; see above")


def _start_worker(rank: int) -> subprocess.Popen[bytes]:
    """Start a worker in a session of its own. Ctrl-C then reaches only the first process, which stops the workers.

    Other launchers do not fit. When a process is lost, Fabric kills the first process before it can print a message.
    torchrun prints errors of many lines. When torchrun is killed, the processes continue.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), STARTED: "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pyro_metabayes.experiments.run"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | variables, start_new_session=True)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Context manager with a torch process group. CUDA tensors are exchanged by NCCL, CPU tensors by Gloo."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=WAIT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _is_lost_process(error: RuntimeError) -> bool:
    """Return whether an error of torch reports the loss of another process."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
