"""Predictions under Bernoulli likelihoods: the classes 0 and 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli
from torch.nn.functional import logsigmoid

from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.likelihoods.predictions import register


@register(Bernoulli)
class BinaryPredictions(ClassPredictions):
    """Predictions under a Bernoulli likelihood, with one label 0 or 1 per query."""

    @classmethod
    def log_probs_of(cls, family: Any) -> Tensor:
        """Return log p(y = 0) and log p(y = 1) of a Bernoulli distribution, [*batch, 2]."""
        return torch.stack((logsigmoid(-family.logits), logsigmoid(family.logits)), -1)
