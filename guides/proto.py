"""Prototypical networks as a guide: the point estimate at the class means.

Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017 (arXiv 1703.05175).
"""

from __future__ import annotations

from pyro.distributions import Delta, TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.capabilities import HasPrototypes
from pyro_metabayes.transductive.balance import balanced, check_balance


class Guide(pyro_metabayes.Guide):
    """Point estimate at the prototypes, i.e. the weights that classify by the nearest class mean of the support set.

    q(w | support) = delta(prototypes). The cosine head classifies by the largest cosine, the linear head by the
    smallest squared distance.

    Args:
        balance: whether the class shares of the queries are known.
            `unknown`: predictions are not projected.
            `known`: each class has equally many queries, and predictions are projected to equal class shares
                (`pyro_metabayes/transductive/balance.py`).

    Raises:
        UsageError: the model has no prototypes, or balance is `known` and the head has no term per class.
    """

    requires = (HasPrototypes,)

    def __init__(self, model: pyro_metabayes.Model, balance: str = "unknown") -> None:
        super().__init__(model)
        check_balance(balance, model)
        self.balance, self.transductive = balance, balance == "known"

    def posterior(self, observed: Observed) -> TorchDistribution:
        prototypes = self.require(HasPrototypes).prototypes(observed)
        return Delta(balanced(self.balance, self.model, prototypes, observed), event_dim=2)
