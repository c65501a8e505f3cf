"""SAMOVAR's shared amortized variational inference: one encoder for the conditional prior and the posterior.

Iakovleva, Verbeek and Alahari, "Meta-Learning with Shared Amortized Variational Inference", ICML 2020
(arXiv 2008.12037).
"""

from __future__ import annotations

import copy

from pyro.distributions import TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasPrior


class Guide(pyro_metabayes.Guide):
    """Posterior that applies the encoder of the conditional prior p_psi(w | .) to the support and query set together.

    In training q(w | support, query) = p_psi(w | support and query). Predictions use the prior p_psi(w | support).

    Args:
        shared: whether posterior and prior share one encoder. If false, the posterior has a second encoder, as in a
            conditional VAE. The second encoder starts as a copy of the first.

    Raises:
        UsageError: the prior does not depend on the support set.
    """

    def __init__(self, model: pyro_metabayes.Model, shared: bool = True) -> None:
        super().__init__(model)
        prior = self.require(HasPrior).prior_over_weights
        if not prior.conditional:
            raise UsageError(
                "expected a prior that depends on the support set for guide=savi, got an unconditional prior; take "
                "prior=conditional, low_rank or coupling_flow"
            )
        self.encoder = None if shared else copy.deepcopy(prior)

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.model.prior(observed)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        pooled = episodes.pooled()
        if self.encoder is None:
            return self.model.prior(pooled)
        return self.encoder(pooled, self.model.event_shape(pooled))
