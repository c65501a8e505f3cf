"""Features of inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_metabayes.arrays import as_float
from pyro_metabayes.data.bank import Bank

BATCH = 512


@torch.no_grad()
def extract(backbone: nn.Module, bank: Bank, device: torch.device, progress: bool = True) -> Tensor:
    """Features of every input of the bank, row by row, on the CPU."""
    backbone.eval()
    batches = bank.inputs.split(BATCH)
    bar = tqdm(batches, desc="extract features", unit="batch", disable=None if progress else True)
    return torch.cat([backbone(as_float(part.to(device))).cpu() for part in bar])
