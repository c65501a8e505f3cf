"""VERSA: predict with the conditional prior itself, trained by a Monte-Carlo estimate of the predictive.

Gordon et al., "Meta-Learning Probabilistic Inference for Prediction", ICLR 2019. The objective
rewards no spread, so the conditional prior collapses (Iakovleva et al., ICML 2020, arXiv 2008.12037).
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Observed


class Guide(pyro_metabayes.Guide):
    """q(w | support) = p_psi(w | support)."""

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.model.prior(observed)
