"""Construction of Lightning Fabric objects for any device of torch, and for one or several processes."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import Accelerator
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, SingleDeviceStrategy
from torch import distributed


class AnyDevice(Accelerator):
    """Fabric accelerator for any device of torch, also for devices that Fabric itself does not support, such as XPU."""

    def setup_device(self, device: torch.device) -> None:
        if device.index is not None and device.type not in ("cpu", "mps"):  # for kernels without a device argument
            torch.accelerator.set_device_index(device.index)

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return []  # the strategy has the device

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "any"


def fabric_alone(device: torch.device) -> Fabric:
    """Construct a Fabric for a single process, even in a job of Slurm, LSF or MPI with several processes."""
    strategy = SingleDeviceStrategy(device, accelerator=AnyDevice())
    return Fabric(strategy=strategy, plugins=[LightningEnvironment()])


def fabric_in_group(device: torch.device) -> Fabric:
    """Construct a Fabric for one process of the initialised process group.

    DDP averages the gradients over all processes. DDP gets static_graph, since every step uses the same parameters.
    """
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=distributed.get_world_size() // here,
        strategy=DDPStrategy(static_graph=True),
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def fabric_of_process(device: torch.device) -> Fabric:
    """Construct a Fabric for this process.

    If a process group has been initialised (by torchrun or a command), the Fabric averages gradients over all
    processes. Otherwise it has a single process.
    """
    in_group = TorchElasticEnvironment.detect() and distributed.is_initialized()
    return fabric_in_group(device) if in_group else fabric_alone(device)
