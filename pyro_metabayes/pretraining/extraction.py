"""Computes the features of the inputs of a bank with a backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.mapped import MappedRows, StoredRows
from pyro_metabayes.prediction.images import as_float
from pyro_metabayes.training.progress import counted

BATCH = 512
Change = Callable[[Tensor], Tensor]


@torch.no_grad()
def extract(
    backbone: nn.Module, inputs: Tensor | StoredRows, device: torch.device, change: Change | None = None
) -> Tensor:
    """Features [N, D], on the CPU, of inputs [N, *X]; `change` is applied to each batch first."""
    backbone.eval()
    parts = []
    num_batches = -(-len(inputs) // BATCH)
    for batch in counted(inputs.split(BATCH), "extract features", "batches", num_batches, leave=False):
        values = as_float(batch.to(device))
        parts.append(backbone(values if change is None else change(values)).cpu())
    return torch.cat(parts)


def embed_bank(backbone: nn.Module, bank: Bank, device: torch.device) -> Bank:
    """The bank with features as inputs; for a memory-mapped file the features are computed when rows are read."""
    if isinstance(bank.inputs, MappedRows):
        return bank.with_inputs(bank.inputs.with_change(backbone))
    return bank.with_inputs(extract(backbone, bank.inputs, device))


def extract_rotations(backbone: nn.Module, bank: Bank, device: torch.device) -> Tensor | None:
    """Features [M, 3, D] of the images rotated by 1, 2 and 3 quarter turns; None unless domains share their classes."""
    if not bank.num_shared:
        return None
    quarters = [extract(backbone, bank.in_memory, device, partial(torch.rot90, k=k, dims=(2, 3))) for k in (1, 2, 3)]
    return torch.stack(quarters, dim=1)
