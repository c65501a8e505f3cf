"""The exact posterior of a conjugate model: the ceiling that every other guide is measured against."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyro.distributions import TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError


class Guide(pyro_metabayes.Guide):
    """q(w) = p(w | labels that the model observes), in closed form; predictions use p(w | support).

    With it -loss of the sampled ELBO is the log evidence for every single sample, so training the
    prior by it is empirical Bayes without approximation.
    """

    def __init__(self, model: pyro_metabayes.Model) -> None:
        super().__init__(model)
        if not hasattr(model, "exact_posterior"):
            raise UsageError(
                "expected a model with exact_posterior for guide=exact, got one without; take data=gaussian_mean, "
                "data=linear_regression or data=groups"
            )

    def posterior(self, observed: Observed) -> TorchDistribution:
        model: Any = self.model
        return model.exact_posterior(observed)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        seen = episodes.pooled()
        if self.model.observe == "support":
            seen = episodes.observed()
        elif self.model.observe == "query":
            support = {name: getattr(episodes, f"query_{name}") for name in ("x", "y", "mask")}
            seen = replace(episodes.observed(), **{f"support_{name}": value for name, value in support.items()})
        return self.posterior(seen)
