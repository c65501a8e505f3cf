"""The mean log score per query in units of the entropy of a uniform guess, with equal weight for tasks of any size."""

from __future__ import annotations

import math
from typing import Any

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.objectives.objective import Objective, Stochastic, Terms, added, latent_sites, observed_sites


class MeanScore(Objective):
    """Negative mean log score, without unit, summed over tasks.

        loss = -sum_t (1 / (Q_t log C)) (1/L) sum_l log p(y_t | x_t, w_l),   w_l ~ q

    where y_t are the labels of the Q_t unmasked queries of task t, C is the number of classes, and q the guide. If
    labels are numbers, 1 replaces log C. For classes, a uniform guess has the loss 1 in each task, so large and small
    tasks have about equal weight. There is no KL term, and -loss is not a bound on the evidence.

    Args:
        particles: number L of samples of w per task.
    """

    name = "mean_score"
    bound = False

    def terms(self, model: Stochastic, guide: Stochastic, *args: Any, **kwargs: Any) -> Terms:
        """Compute the loss without unit, and the log-likelihood in nats; there is no KL."""
        (data,) = args
        if not isinstance(data, Episodes):
            raise UsageError(
                "expected tasks with query labels (Episodes) for objective=mean_score, got "
                f"{type(data).__name__}; pass Episodes"
            )
        model_trace, guide_trace = self._traces(model, guide, data, data, **kwargs)
        latent_sites(guide_trace)  # refuses samples without gradient, with which training would silently change nothing
        model_trace.compute_log_prob()
        log_prob = added([model_trace.nodes[name]["log_prob"] for name in observed_sites(model_trace)])  # [T] or [L, T]
        log_prob = log_prob.flatten(0, -2).mean(0) if log_prob.dim() > 1 else log_prob
        unit = math.log(data.num_classes) if data.num_classes > 1 else 1.0
        points = data.query_mask.sum(-1).clamp(min=1) * unit
        return Terms(-(log_prob / points).sum(), log_prob.detach().sum(), None)
