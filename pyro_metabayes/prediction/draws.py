"""Predictions: class probabilities, and the samples of the posterior that they are averaged over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

from pyro_metabayes.inference.divergences import innermost


class Prediction(NamedTuple):
    """Class probabilities [Q, C] of the posterior predictive, and their spread over samples of w [Q, C]."""

    probabilities: Tensor
    spread: Tensor


def draws_of(distribution: TorchDistribution, num_samples: int) -> Tensor:
    """Samples [L, T, *W] without a gradient; a point estimate has one."""
    shape = torch.Size((1 if isinstance(innermost(distribution), Delta) else num_samples,))
    with torch.no_grad():  # `sample` would raise where parameters have overflowed
        return distribution.rsample(shape) if distribution.has_rsample else distribution.sample(shape)
