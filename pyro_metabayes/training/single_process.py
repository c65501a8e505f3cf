"""Lightning Fabric in a single process, on any device of torch."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import Accelerator
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import SingleDeviceStrategy


class AnyDevice(Accelerator):
    """A Fabric accelerator for any device of torch. Fabric itself supports only CPU, CUDA and MPS."""

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
    """A Fabric with a single process, also inside a job of Slurm, LSF or MPI, which Fabric would detect and join."""
    strategy = SingleDeviceStrategy(device, accelerator=AnyDevice())
    return Fabric(strategy=strategy, plugins=[LightningEnvironment()])
