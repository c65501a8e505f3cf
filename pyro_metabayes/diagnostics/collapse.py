"""Has the prior over a task's weights collapsed to a point?

A prior is collapsed when drawing from it makes no difference to predictions. The weights' own
spread cannot tell: under a cosine head only directions count, and a prior mean near 0 makes any
ratio large. So the verdict looks at what the draws do to the logits and to the decisions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_metabayes.divergences import has_density
from pyro_metabayes.episodes import Observed
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.scores import log_mean_exp, masked_mean

# collapsed: draws move the logits by less than a tenth of a nat, and change fewer than 2% of the decisions.
COLLAPSED_LOGIT_SD = 0.1
COLLAPSED_DISAGREEMENT = 0.02

SPREADS = ("prior_variance", "prior_mean_square", "logit_variance", "disagreement")
Figures = dict[str, float | bool | None]


def prior_spread(learner: MetaLearner, observed: Observed, num_samples: int) -> dict[str, Tensor]:
    """Squared spreads of the prior p_psi(w | support), task by task [T]; {} for a flat prior.

    prior_variance and prior_mean_square over the weights; logit_variance over samples, of logits
    centred over classes; disagreement: share of draws that decide otherwise than their average, by
    more than a hair: a prior that cannot tell the classes apart leaves ties to any draw.
    """
    prior = learner.model.prior(observed)
    if not has_density(prior):
        return {}
    _, likelihood = learner.predictive_under(prior, observed, max(num_samples, 2))  # one has no spread
    logits = likelihood.logits  # [L, T, Q, C]
    centred = logits - logits.mean(-1, keepdim=True)
    ensemble = log_mean_exp(logits.log_softmax(-1)).argmax(-1, keepdim=True)
    of_ensemble = logits.gather(-1, ensemble.expand(*logits.shape[:-1], 1)).squeeze(-1)
    otherwise = logits.amax(-1) - of_ensemble > COLLAPSED_LOGIT_SD
    return {
        "prior_variance": prior.variance.flatten(1).mean(1),
        "prior_mean_square": prior.mean.square().flatten(1).mean(1),
        "logit_variance": masked_mean(centred.var(0).mean(-1), observed.query_mask),
        "disagreement": masked_mean(otherwise.to(logits.dtype).mean(0), observed.query_mask),
    }


def summary(spread: dict[str, Tensor]) -> Figures:
    """prior_sd, relative_sd (rms sd over rms mean), logit_sd, disagreement and the verdict `collapsed`.

    All null where there is no density to speak of (a flat prior).
    """
    if not spread:
        return dict.fromkeys(("prior_sd", "relative_sd", "logit_sd", "disagreement", "collapsed"))
    mean = {name: value.mean().item() for name, value in spread.items()}
    logit_sd, disagreement = math.sqrt(mean["logit_variance"]), mean["disagreement"]
    return {
        "prior_sd": math.sqrt(mean["prior_variance"]),
        "relative_sd": math.sqrt(mean["prior_variance"] / max(mean["prior_mean_square"], 1e-30)),
        "logit_sd": logit_sd,
        "disagreement": disagreement,
        "collapsed": logit_sd < COLLAPSED_LOGIT_SD and disagreement < COLLAPSED_DISAGREEMENT,
    }


@torch.no_grad()
def collapse_figures(learner: MetaLearner, observed: Observed, num_samples: int) -> Figures:
    """The summary for one batch of tasks."""
    return summary(prior_spread(learner, observed, num_samples))
