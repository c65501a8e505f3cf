"""The importance-weighted lower bound on the log evidence of each task, as a loss."""

from __future__ import annotations

from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_metabayes.evaluation.scores import log_mean_exp
from pyro_metabayes.inference.divergences import log_ratio
from pyro_metabayes.objectives.objective import Objective, Stochastic, Terms, added, latent_sites, observed_sites


class ImportanceWeighted(Objective):
    """Negative importance-weighted bound on the log evidence, in nats, summed over tasks.

        loss = -sum_t log (1/L) sum_l p(y_t | w_l) (p(w_l) / q(w_l))^kl_weight,   w_l ~ q(w)

    where y_t are the labels of task t that the model observes (by default the query labels), and q is the guide. For
    kl_weight = 1, -loss is a lower bound on the log evidence in expectation: the ELBO for L = 1, and closer to the log
    evidence the larger L is. (Burda et al. 2016, eq. 8.)

    With the prior as guide, the loss equals the loss of monte_carlo with joint=true. If every site is inside the plate
    of tasks, the loss equals Pyro's RenyiELBO(alpha=0).

    Args:
        particles: number L of samples of w per task.
    """

    name = "importance_weighted"
    bound = True

    def terms(self, model: Stochastic, guide: Stochastic, *args: Any, **kwargs: Any) -> Terms:
        """Compute the loss, and the averages over samples of the log-likelihood and the KL."""
        (data,) = args
        model_trace, guide_trace = self._traces(model, guide, data, data, **kwargs)
        latent: list[Any] = [guide_trace.nodes[name] for name in latent_sites(guide_trace)]
        ratios = [_log_ratio(site, model_trace.nodes[site["name"]]) for site in latent]
        tempered = added([scale_and_mask(ratio, site["scale"]) for ratio, site in zip(ratios, latent, strict=True)])
        ratio = added([ratio.detach() for ratio in ratios])
        log_likelihood = added([_log_prob(model_trace.nodes[name]) for name in observed_sites(model_trace)])
        weights = log_likelihood + tempered  # [L, T], or [T] for one particle
        bound = log_mean_exp(weights) if self.particles > 1 else weights
        return Terms(-bound.sum(), log_likelihood.detach().sum() / self.particles, -ratio.sum() / self.particles)


def _log_prob(site: Any) -> Tensor:
    return scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])


def _log_ratio(guide_site: Any, model_site: Any) -> Tensor:
    """Compute log p(w) - log q(w) [L, T] of L samples and T tasks, without the KL weight."""
    ratio = log_ratio(guide_site["fn"], model_site["fn"], guide_site["value"])
    return scale_and_mask(-ratio, mask=guide_site["mask"])
