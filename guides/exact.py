"""The exact posterior of a conjugate model, the reference for every other guide."""

from __future__ import annotations

from pyro.distributions import TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.inference.capabilities import Conjugate


class Guide(pyro_metabayes.Guide):
    """q(w) = p(w | labels that `model.observe` names) in training, in closed form; predictions use p(w | support).

    With this guide the sampled ELBO equals the log evidence for every single sample. Training the prior with it is
    therefore empirical Bayes without approximation.

    Raises:
        UsageError: the model has no exact posterior.
    """

    requires = (Conjugate,)

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.require(Conjugate).exact_posterior(observed)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        return self.posterior(episodes.as_support(self.model.observe))
