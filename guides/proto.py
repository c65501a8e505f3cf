"""Prototypical networks as a guide: the point estimate at the class means.

Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017 (arXiv 1703.05175).
"""

from __future__ import annotations

from pyro.distributions import Delta, TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.capabilities import HasPrototypes


class Guide(pyro_metabayes.Guide):
    """q(w | support) = delta(prototypes), the weights that classify by the nearest class mean of the support set.

    The cosine head compares by the cosine, the linear head by the squared distance.

    Raises:
        UsageError: the model has no prototypes.
    """

    requires = (HasPrototypes,)

    def posterior(self, observed: Observed) -> TorchDistribution:
        return Delta(self.require(HasPrototypes).prototypes(observed), event_dim=2)
