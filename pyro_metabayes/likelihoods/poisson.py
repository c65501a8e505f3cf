"""Predictions under Poisson likelihoods: counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Poisson

from pyro_metabayes.likelihoods.numbers import NumberPredictions
from pyro_metabayes.likelihoods.predictions import register


@register(Poisson)
class CountPredictions(NumberPredictions):
    """Predictions of counts under a Poisson likelihood."""

    @classmethod
    def standardised(cls, family: Any) -> Tensor:
        """Return 2 sqrt(rate) per sample of w and label. On this scale a count has an sd near 1. (Anscombe 1948.)"""
        return 2 * family.rate.sqrt()

    def cdf(self, y: Tensor) -> Tensor:
        """Compute the CDF at y, the regularised incomplete gamma function Q(floor(y) + 1, rate); 0 for y < 0."""
        count = (y.floor() + 1).clamp(min=0).to(self.family.rate)
        return torch.where(count > 0, torch.special.gammaincc(count.clamp(min=1), self.family.rate), 0.0)
