"""Computation of the features of all inputs of a bank (data set) by a backbone."""

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
    """Compute D features of each of N inputs of shape *X in batches, and return them on the CPU [N, D].

    Args:
        backbone: the network, which is set to evaluation mode.
        inputs: the inputs [N, *X], in memory or in a file. Bytes are scaled to [0, 1].
        device: device of the network.
        change: function that is applied to each batch before the backbone; None: batches are not changed.
    """
    backbone.eval()
    parts = []
    num_batches = -(-len(inputs) // BATCH)
    for batch in counted(inputs.split(BATCH), "extract features", "batches", num_batches, leave=False):
        values = as_float(batch.to(device))
        parts.append(backbone(values if change is None else change(values)).cpu())
    return torch.cat(parts)


def embed_bank(backbone: nn.Module, bank: Bank, device: torch.device) -> Bank:
    """Return the bank (data set) with features as inputs.

    For inputs in a memory-mapped file, features are computed when an input is read. Other features are computed now.
    """
    if isinstance(bank.inputs, MappedRows):
        return bank.with_inputs(bank.inputs.with_change(backbone))
    return bank.with_inputs(extract(backbone, bank.inputs, device))


def extract_rotations(backbone: nn.Module, bank: Bank, device: torch.device) -> Tensor | None:
    """Compute the features of all images of a bank (data set), rotated by 1, 2 and 3 quarter turns.

    Returns:
        Tensor [M, 3, D] for M images and D features. None if the bank does not have domains with shared classes.
    """
    if not bank.num_shared:
        return None
    quarters = [extract(backbone, bank.in_memory, device, partial(torch.rot90, k=k, dims=(2, 3))) for k in (1, 2, 3)]
    return torch.stack(quarters, dim=1)
