"""The importance-weighted bound on the log evidence, task by task."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_metabayes.divergences import innermost
from pyro_metabayes.objectives.objective import Objective, Stochastic, Terms, latent_sites, observed_sites
from pyro_metabayes.scores import log_mean_exp


class ImportanceWeighted(Objective):
    """loss = -sum_t log (1/L) sum_l p(y_t | w_l) p(w_l) / q(w_l), w_l ~ q(w), L = particles.

    Between the ELBO (L = 1) and the log evidence (L to infinity). The average is taken inside each task:
    taken over the product of all tasks it would be another, much looser bound. With the prior as guide
    it is monte_carlo with joint=true. Equal to Pyro's RenyiELBO(alpha=0) where every site is inside the
    plate of tasks. kl_weight tempers p(w) / q(w); the bound holds at 1. (Burda et al. 2016, eq. 8.)
    """

    name = "importance_weighted"
    bound = True

    def terms(self, model: Stochastic, guide: Stochastic, *args: Any, **kwargs: Any) -> Terms:
        (data,) = args
        model_trace, guide_trace = self._traces(model, guide, data, data, **kwargs)
        tempered, ratio = torch.zeros(()), torch.zeros(())
        for name in latent_sites(guide_trace):
            log_ratio = _log_ratio(guide_trace.nodes[name], model_trace.nodes[name])
            tempered = tempered + scale_and_mask(log_ratio, guide_trace.nodes[name]["scale"])
            ratio = ratio + log_ratio.detach()
        log_likelihood = torch.zeros(())
        for name in observed_sites(model_trace):
            site: Any = model_trace.nodes[name]
            log_prob = site["fn"].log_prob(site["value"])
            log_likelihood = log_likelihood + scale_and_mask(log_prob, site["scale"], site["mask"])
        weights = log_likelihood + tempered  # [L, T], or [T] for one particle
        bound = log_mean_exp(weights) if self.particles > 1 else weights
        return Terms(-bound.sum(), log_likelihood.detach().sum() / self.particles, -ratio.sum() / self.particles)


def _log_ratio(guide_site: Any, model_site: Any) -> Tensor:
    """log p(w) - log q(w) of each sample and task, without the KL weight."""
    q, p, w = guide_site["fn"], model_site["fn"], guide_site["value"]
    return p.log_prob(w) if isinstance(innermost(q), Delta) else p.log_prob(w) - q.log_prob(w)
