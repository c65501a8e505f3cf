"""VERSA: the conditional prior makes the predictions. The loss is a Monte-Carlo estimate of the predictive NLL.

Gordon et al., "Meta-Learning Probabilistic Inference for Prediction", ICLR 2019 (arXiv 1805.09921). The variance of the
conditional prior collapses, since no term of the objective rewards a positive variance (Iakovleva et al., ICML 2020,
arXiv 2008.12037).
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Observed


class Guide(pyro_metabayes.Guide):
    """Posterior q(w | support) = p_psi(w | support), i.e. the conditional prior itself."""

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.model.prior(observed)
