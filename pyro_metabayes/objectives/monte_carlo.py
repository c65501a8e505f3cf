"""VERSA's objective: a Monte-Carlo estimate of the posterior predictive likelihood, without a KL term."""

from __future__ import annotations

import math
from typing import Any

from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.objectives.objective import Objective, Stochastic, Terms, added, latent_sites, observed_sites


class MonteCarlo(Objective):
    """Negative log predictive likelihood, in nats, summed over tasks and points.

        joint=False: loss = -sum_t sum_i log (1/L) sum_l p(y_ti | x_ti, w_l)
        joint=True:  loss = -sum_t log (1/L) sum_l prod_i p(y_ti | x_ti, w_l)

    where i runs over the query points of task t. The samples w_l are drawn from the `posterior` of the guide, which
    does not depend on query labels. (Gordon et al. 2019, and the code of the paper. The neural process literature calls
    the joint form NPML.)

    Args:
        particles: number L of samples of w per task.
        joint: whether the product over the query points of a task is inside the logarithm. With the prior as guide,
            the joint loss is RenyiELBO(alpha=0) of each task.
    """

    bound = False

    def __init__(self, particles: int = 1, joint: bool = False) -> None:
        super().__init__(particles)
        self.joint = joint

    @property
    def name(self) -> str:  # type: ignore[override]
        return "monte_carlo_joint" if self.joint else "monte_carlo"

    def terms(self, model: Stochastic, guide: Stochastic, *args: Any, **kwargs: Any) -> Terms:
        """Compute the loss and the log predictive likelihood, in nats; there is no KL."""
        (data,) = args
        seen = data.observed() if isinstance(data, Episodes) else data
        model_trace, guide_trace = self._traces(model, guide, data, seen, **kwargs)
        latent_sites(guide_trace)  # refuses distributions without reparametrised samples, which have no gradient
        total = added([self._log_predictive(model_trace.nodes[name]).sum() for name in observed_sites(model_trace)])
        return Terms(-total, total.detach(), None)

    def _log_predictive(self, site: Any) -> Tensor:
        """Compute log (1/L) sum_l p(y | w_l) of an observed site: [T, Q] per query, or [T] per task with `joint`."""
        points = scale_and_mask(_points(site["fn"], site["value"]), mask=_of_points(site["mask"]))
        log_prob = points.sum(-1) if self.joint else points
        if self.particles > 1:
            log_prob = log_prob.logsumexp(0) - math.log(self.particles)
        return log_prob * site["scale"]


def _points(distribution: Any, value: Tensor) -> Tensor:
    """Compute log p [..., T, N] of the N points of T tasks. A distribution without event dimensions has N = 1."""
    if isinstance(distribution, MaskedDistribution):
        return scale_and_mask(_points(distribution.base_dist, value), mask=_of_points(distribution._mask))
    if isinstance(distribution, Independent):
        return distribution.base_dist.log_prob(value).flatten(-distribution.reinterpreted_batch_ndims)
    return distribution.log_prob(value).unsqueeze(-1)


def _of_points(mask: Any) -> Any:
    """Reshape the mask [..., T] of a site to [..., T, 1], which broadcasts over the points of a task."""
    return mask.unsqueeze(-1) if isinstance(mask, Tensor) else mask
