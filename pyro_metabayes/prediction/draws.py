"""Samples of distributions over the latent of a task."""

from __future__ import annotations

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.seeding import drawing


def draws_of(distribution: TorchDistribution, num_samples: int) -> Tensor:
    """Samples [L, T, *W] without a gradient; a point estimate has one."""
    shape = torch.Size((1 if isinstance(innermost(distribution), Delta) else num_samples,))
    with torch.no_grad(), drawing():  # `sample` would raise where parameters have overflowed
        return distribution.rsample(shape) if distribution.has_rsample else distribution.sample(shape)
