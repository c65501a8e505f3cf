"""The processes of a job on several devices. The first does all that shows; the others train along with it.

They know each other by the variables that torchrun sets. Where it has not started them, the first process starts the
others itself, as `python -m experiments.run` with those variables set.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from torch import distributed

import pyro_metabayes
from pyro_metabayes.device import count_of, device_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.cli.fabric import fabric_alone, fabric_in_group
from pyro_metabayes.training.interruption import SIGNALS

ROOT = Path(pyro_metabayes.__file__).parents[1]  # where the other processes find the package
STARTED = "METABAYES_STARTED"  # by the first process, whose end is also ours
WAIT = timedelta(days=1)  # for the first process, which may be pretraining a backbone


def check_devices(config: Config) -> None:
    """Refuse what this machine, or torchrun, does not have."""
    devices = here = config.trainer.devices
    if TorchElasticEnvironment.detect():
        of, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if devices != of:
            raise UsageError(f"expected trainer.devices={of}, the processes that torchrun has started, got {devices}")
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UsageError("expected one run under torchrun, got a sweep (-m); leave out torchrun, or -m")
    device = device_of(config.device)
    if device.type != "cpu" and here > (there := count_of(device.type)):
        raise UsageError(f"expected trainer.devices <= {there}, the {device.type} devices of this machine, got {here}")
    if device.index and here > 1:
        raise UsageError(f"expected device={device.type} for trainer.devices={devices}, got {device}, a single device")


@contextlib.contextmanager
def fabric_of(config: Config, folder: Path) -> Iterator[Fabric]:
    """Fabric on the device of a run; on several, with the other processes at work inside the block."""
    if config.trainer.devices == 1:
        yield fabric_alone(device_of(config.device))
        return
    with _losses_told(folder), _others(config.trainer.devices), group():
        distributed.broadcast_object_list([config, folder])
        yield fabric_in_group(device_of(config.device), config.trainer.devices)


@contextlib.contextmanager
def _losses_told(folder: Path) -> Iterator[None]:
    """Report a lost process in one line, in place of the long error of the collective that waited for it."""
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        codes = " ".join(getattr(error, "__notes__", []))
        again = "the torchrun command with" if TorchElasticEnvironment.detect() else "python -m experiments.run"
        raise UsageError(
            f"a process of the job is gone{codes}; from its last checkpoint it goes on with: {again} resume={folder}"
        ) from error


def follows() -> bool:
    """Whether this process is another than the first of its job."""
    return TorchElasticEnvironment.detect() and int(os.environ["RANK"]) > 0


def follow(train: Callable[[Config, Path, Fabric], object]) -> None:
    """Train along with the first process, and leave it to that one to say how it ended; but not what we lack."""
    for number in SIGNALS:  # before there is a step to finish, they end us at once
        signal.signal(number, signal.SIG_DFL)
    if os.environ.get(STARTED):
        threading.Thread(target=_end_with_the_first, daemon=True).start()
        os.write(1, b".")  # ready
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            _train_along(train)
    except KeyboardInterrupt:
        pass  # which the first process meets too
    except UsageError as error:
        sys.exit(f"error: process {os.environ['RANK']} of the job: {error}")
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        sys.exit(1)


def _train_along(train: Callable[[Config, Path, Fabric], object]) -> None:
    with group():
        given: list[Any] = [None, None]
        distributed.broadcast_object_list(given)
        config, folder = given
        train(config, folder, fabric_in_group(device_of(config.device), config.trainer.devices))


def _end_with_the_first() -> None:
    """The pipe from the first process closes however that one ends; a collective would wait for it in vain."""
    sys.stdin.buffer.read()
    os._exit(1)


@contextlib.contextmanager
def _others(devices: int) -> Iterator[None]:
    """The other processes, started and ready, where torchrun has not; none is left when the block ends."""
    if TorchElasticEnvironment.detect():
        yield
        return
    port = find_free_network_port()
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": devices, "LOCAL_WORLD_SIZE": devices}
    variables |= {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": port}
    before = dict(os.environ)
    os.environ |= {name: str(value) for name, value in variables.items()}
    others: list[subprocess.Popen[bytes]] = []
    try:
        others += [_started(rank) for rank in range(1, devices)]
        for rank, other in enumerate(others, 1):
            if other.stdout is None or not other.stdout.read(1):
                raise UsageError(f"process {rank} of the job did not start: exit code {other.wait()}")
        yield
    except RuntimeError as error:
        codes = {rank: code for rank, other in enumerate(others, 1) if (code := other.poll()) is not None}
        if _is_loss(error):
            error.add_note(f" (rank and exit code: {codes or 'unknown'})")
        raise
    finally:
        os.environ.clear()
        os.environ |= before
        for other in others:
            other.kill()
            other.communicate()


def _started(rank: int) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for the first process, which stops the others at the end of a step.

    Fabric's launcher would kill the first process with SIGKILL when another is lost, so that no line could be printed;
    torchrun's would leave the others behind when it is killed itself, and reports a lost process on many lines.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), STARTED: "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "pyro_metabayes.experiments.run"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | variables, start_new_session=True)


@contextlib.contextmanager
def group() -> Iterator[None]:
    """One group for tensors of either kind; what processes tell each other beside the gradients is on the CPU."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=WAIT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _is_loss(error: RuntimeError) -> bool:
    """Whether it says that another process is gone."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
