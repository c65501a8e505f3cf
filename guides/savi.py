"""SAMOVAR's shared amortized variational inference: one encoder is conditional prior and posterior.

Iakovleva, Verbeek and Alahari, "Meta-Learning with Shared Amortized Variational Inference", ICML 2020
(arXiv 2008.12037).
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed


class Guide(pyro_metabayes.Guide):
    """q(w | support, query) = p_psi(w | support u query) in training; predictions use p_psi(w | support)."""

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.model.prior(observed)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        return self.model.prior(episodes.pooled())
