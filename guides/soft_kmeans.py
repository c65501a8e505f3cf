"""Soft k-means: class means that are refined by the unlabelled queries.

Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification", ICLR 2018 (arXiv 1803.00676), section 3.1.1,
with the query set as the unlabelled set and more than one step.
"""

from __future__ import annotations

from pyro.distributions import Delta, TorchDistribution

import pyro_metabayes
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasClassMeans
from pyro_metabayes.transductive.balance import WITH_ESTIMATE, check_balance
from pyro_metabayes.transductive.refinement import Refinement


class Guide(pyro_metabayes.Guide):
    """Point estimate at the class means m after K steps of soft k-means on support points and queries.

    q(w | support, x_query) = delta(m^K), where each step is

        z_ic = softmax_c(sharpness * logits_c(x_i; m^k) + log pi_c),
        m_c^{k+1} = (sum_{support of c} x_i + sum_query z_ic x_i) / (n_c + sum_query z_ic).

    n_c is the number of support points of class c. z_ic is the assignment of query i to class c. The steps are
    expectation maximisation in a mixture. With the linear head, whose logits are -scale |x - m_c|^2 up to a term common
    to all classes, the components are Gaussians with equal covariances. With the cosine head, the components are von
    Mises-Fisher distributions.

    Args:
        num_steps: number of steps K.
        balance: the class shares pi of the queries.
            `unknown`: no term log pi_c.
            `estimated`: pi_c is the mean of z_ic over the queries in the previous step.
            `known`: equal shares, by Sinkhorn's projection.
        sharpness: inverse temperature of the assignments, divided by the inverse temperature of the predictions, before
            training. This ratio is learned.

    Raises:
        UsageError: a setting is out of range, or the head has no term per class for the class shares.
    """

    requires = (HasClassMeans,)

    def __init__(
        self, model: pyro_metabayes.Model, num_steps: int = 10, balance: str = "unknown", sharpness: float = 1.0
    ) -> None:
        super().__init__(model)
        if num_steps < 0:
            raise UsageError(f"expected guide.num_steps >= 0, got {num_steps}")
        check_balance(balance, model, WITH_ESTIMATE)
        self.num_steps, self.transductive = num_steps, num_steps > 0 or balance == "known"
        self.refine = Refinement(model, balance, sharpness)

    def posterior(self, observed: Observed) -> TorchDistribution:
        return Delta(self.refine(self.model, observed, self.num_steps), event_dim=2)
