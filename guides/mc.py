"""VERSA: the conditional prior makes the predictions. The loss is a Monte-Carlo estimate of the predictive NLL.

Gordon et al., "Meta-Learning Probabilistic Inference for Prediction", ICLR 2019 (arXiv 1805.09921). The variance of the
conditional prior collapses, since no term of the objective rewards a positive variance (Iakovleva et al., ICML 2020,
arXiv 2008.12037).
"""

from __future__ import annotations

from pyro.distributions import TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasPrior, has


class Guide(pyro_metabayes.Guide):
    """Posterior q(w | support) = p_psi(w | support), i.e. the conditional prior itself.

    Raises:
        UsageError: the prior is flat, so it cannot be sampled.
    """

    def __init__(self, model: pyro_metabayes.Model) -> None:
        super().__init__(model)
        if has(model, HasPrior) and not model.prior_over_weights.proper:
            raise UsageError(
                "expected a prior that can be sampled for guide=mc, got a flat prior; take prior=conditional, low_rank "
                "or coupling_flow"
            )

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.model.prior(observed)
