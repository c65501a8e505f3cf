"""Lightning Fabric in one of several processes."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy


def fabric_in_group(device: torch.device, devices: int) -> Fabric:
    """Fabric that averages gradients by DDP. static_graph: the same subset of parameters is used in every step."""
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=devices // here,
        strategy=DDPStrategy(static_graph=True),
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric
