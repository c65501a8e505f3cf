"""Features of inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_metabayes.arrays import as_float

BATCH = 512
Change = Callable[[Tensor], Tensor]


@torch.no_grad()
def extract(backbone: nn.Module, inputs: Tensor, device: torch.device, change: Change | None = None) -> Tensor:
    """Features [N, D] on the CPU of inputs [N, *X], or of what `change` makes of each batch of them."""
    backbone.eval()
    parts = []
    for batch in tqdm(inputs.split(BATCH), desc="extract features", unit="batch", disable=None, leave=False):
        values = as_float(batch.to(device))
        parts.append(backbone(values if change is None else change(values)).cpu())
    return torch.cat(parts)
