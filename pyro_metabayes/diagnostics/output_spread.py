"""How much draws from a prior or a posterior change the predictions."""

from __future__ import annotations

from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.diagnostics.collapse_metrics import Spread
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.divergences import has_density, innermost
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.predictions import registered
from pyro_metabayes.prediction.averages import masked_mean
from pyro_metabayes.prediction.moments import extra_draws


def output_spread(likelihood: Any, mask: Tensor) -> Spread:
    """Means over the queries, and sums of information, of a likelihood with batch [L, T, Q]."""
    family = innermost(likelihood)
    count = mask.sum(-1)
    return {
        name: masked_mean(value, mask) * (count if name.startswith("information") else 1)
        for name, value in registered(family).spread(family).items()
    }


def posterior_outputs(learner: MetaLearner, observed: Observed, q: TorchDistribution, num_samples: int) -> Spread:
    """logit_variance, disagreement and information of a posterior, named posterior_...; {} for a point estimate."""
    if not has_density(q):
        return {}
    likelihood = learner.model.likelihood(extra_draws(q, max(num_samples, 2)), observed.query_x, observed)
    return {f"posterior_{name}": value for name, value in output_spread(likelihood, observed.query_mask).items()}
