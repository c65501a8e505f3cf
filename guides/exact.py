"""Exact posterior of a conjugate model, the reference for all other guides."""

from __future__ import annotations

from pyro.distributions import TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.inference.capabilities import Conjugate


class Guide(pyro_metabayes.Guide):
    """Exact posterior p(w | labels) over the task weights w, in closed form.

    Predictions use the labels of the support set. Training uses the labels that the setting model.observe selects:
    "query", "support" or "all". The sampled ELBO equals the log evidence for every sample. So training of the prior is
    empirical Bayes without approximation.

    Raises:
        UsageError: the model has no exact posterior.
    """

    requires = (Conjugate,)

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.require(Conjugate).exact_posterior(observed)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        return self.posterior(episodes.as_support(self.model.observe))
