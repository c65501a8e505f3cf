"""Has the prior over a task's weights collapsed to a point, and has the posterior left it?

A prior is collapsed when drawing from it makes no difference to predictions. The weights' own
spread cannot tell: under a cosine head only directions count, and a prior mean near 0 makes any
ratio large. So the verdict looks at what the draws do to the logits and to the decisions.

The other collapse, of a posterior that never leaves its prior, shows in kl and active_dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.distributions import Normal as TorchNormal

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.evaluation.scores import log_mean_exp, masked_mean, most_probable
from pyro_metabayes.inference.divergences import entropy_of, has_density, innermost, kl_by_dimension, mixture_kl_bounds
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.objectives.elbo import Elbo

# collapsed: draws move the logits by less than a tenth of a nat, and change fewer than 2% of the decisions.
COLLAPSED_LOGIT_SD = 0.1
COLLAPSED_DISAGREEMENT = 0.02
ACTIVE_NATS = 0.01  # a weight is active if its mean KL(q, p) exceeds this
HALF_OF_90 = 1.6448536269514722  # standard normal quantile at 0.95

Spread = dict[str, Tensor]
Figures = dict[str, Any]
# Every figure of `summary`, in the order of results.json; null where a setting does not have it.
FIGURES = (
    *("prior_sd", "relative_sd", "prior_entropy", "logit_sd", "disagreement", "collapsed"),
    *(
        "elbo",
        "kl",
        "kl_variational_bound",
        "kl_convexity_bound",
        "active_dimensions",
        "posterior_sd",
        "posterior_entropy",
    ),
    *("sd_ratio", "training_sd_ratio", "coverage90_of_truth", "kl_from_truth", "kl_to_truth"),
)


def prior_spread(learner: MetaLearner, observed: Observed, num_samples: int) -> Spread:
    """Spreads of the prior p_psi(w | support), task by task [T]; {} for a flat prior.

    prior_variance and prior_mean_square over the weights; logit_variance over samples, of logits
    centred over classes (in a regression: of means in units of the noise); disagreement: share of
    draws that decide otherwise than their average, by more than a hair: a prior that cannot tell the
    classes apart leaves ties to any draw. prior_entropy: differential, nats.
    """
    prior = learner.model.prior(observed)
    if not has_density(prior):
        return {}
    _, likelihood = learner.predictive_under(prior, observed, max(num_samples, 2))  # one has no spread
    spread = {
        "prior_variance": prior.variance.flatten(1).mean(1),
        "prior_mean_square": prior.mean.square().flatten(1).mean(1),
        **_spread_of_outputs(innermost(likelihood), observed.query_mask),
    }
    entropy = entropy_of(prior)
    return spread if entropy is None else spread | {"prior_entropy": entropy}


def _spread_of_outputs(likelihood: Any, mask: Tensor) -> Spread:
    """What the draws do to the predictions; likelihood [L, T, Q]."""
    if not isinstance(likelihood, Categorical):
        in_noise = (likelihood.mean / likelihood.stddev).var(0).flatten(2).mean(-1)
        return {"logit_variance": masked_mean(in_noise, mask)}
    logits = likelihood.logits  # [L, T, Q, C], normalised by the Categorical
    centred = logits - logits.mean(-1, keepdim=True)
    ensemble = most_probable(log_mean_exp(logits)).unsqueeze(-1)
    of_ensemble = logits.gather(-1, ensemble.expand(*logits.shape[:-1], 1)).squeeze(-1)
    otherwise = logits.amax(-1) - of_ensemble > COLLAPSED_LOGIT_SD
    return {
        "logit_variance": masked_mean(centred.var(0).mean(-1), mask),
        "disagreement": masked_mean(otherwise.to(logits.dtype).mean(0), mask),
    }


def posterior_spread(learner: MetaLearner, episodes: Episodes, q: TorchDistribution) -> Spread:
    """Of q = training_posterior(episodes), which alone bounds the evidence, task by task; {} for a point mass.

    posterior_variance over the weights, posterior_entropy [T]; against a prior with a density elbo and
    kl (batch means of one draw a task where the KL has no closed form) [T], kl_by_dimension [T, weights]; against a
    mixture kl_variational_bound and kl_convexity_bound, closed forms above the KL [T].
    """
    if not has_density(q):
        return {}
    spread = {"posterior_variance": q.variance.flatten(1).mean(1)}
    if (entropy := entropy_of(q)) is not None:
        spread["posterior_entropy"] = entropy
    prior = learner.model.prior(episodes.observed())
    if has_density(prior):
        terms = Elbo(kl="analytic").terms(learner.model, learner.guide, episodes)
        assert terms.kl is not None
        for name, value in (("elbo", terms.log_likelihood - terms.kl), ("kl", terms.kl)):
            spread[name] = (value / episodes.num_tasks).expand(episodes.num_tasks)
        if (each := kl_by_dimension(q, prior)) is not None:
            spread |= {"kl": each.flatten(1).sum(1), "kl_by_dimension": each.flatten(1)}
        spread |= {f"kl_{name}_bound": bound for name, bound in mixture_kl_bounds(q, prior).items()}
    return spread


def against_truth(fit: TorchDistribution, true: TorchDistribution) -> Spread:
    """A fitted p(w | what is observed) against the true one, task by task [T]; {} for a point mass.

    fit_variance, true_variance over the weights; coverage90_of_truth: the true probability of each
    weight's central 90% interval under the fit, mean over weights; kl_from_truth = KL(true, fit) and
    kl_to_truth = KL(fit, true) in nats. Weights one by one: the fit's correlations are not looked at.
    """
    if not has_density(fit):
        return {}
    p, q = (TorchNormal(its.mean, its.variance.sqrt()) for its in (true, fit))
    upper, lower = (p.cdf(q.mean + sign * HALF_OF_90 * q.stddev) for sign in (1, -1))
    each = {
        "fit_variance": q.variance,
        "true_variance": p.variance,
        "coverage90_of_truth": upper - lower,
    }
    nats = {"kl_from_truth": kl_divergence(p, q), "kl_to_truth": kl_divergence(q, p)}
    return {name: value.flatten(1).mean(1) for name, value in each.items()} | {
        name: value.flatten(1).sum(1) for name, value in nats.items()
    }


def summary(spread: Mapping[str, Tensor]) -> Figures:
    """Every figure of FIGURES from spreads of any number of tasks, and the verdict `collapsed`.

    relative_sd: rms sd over rms mean of the prior; sd_ratio: rms sd of the posterior at test over that of
    the truth; training_sd_ratio: the same in training given support and query, for a guide whose
    training_posterior sees the query labels. Null without what it takes.
    """
    mean = {name: value.mean().item() for name, value in spread.items() if name != "kl_by_dimension"}
    figures: Figures = dict.fromkeys(FIGURES)
    figures |= {name: value for name, value in mean.items() if name in FIGURES}
    for name, (above, below) in _RATIOS.items():
        if above in mean and (not below or mean[below]):  # N(0, I) has no spread relative to its mean
            figures[name] = math.sqrt(mean[above] / (mean[below] if below else 1.0))
    if "kl_by_dimension" in spread:
        figures["active_dimensions"] = int((spread["kl_by_dimension"].mean(0) > ACTIVE_NATS).sum())
    if "logit_variance" in mean:
        undecided = mean.get("disagreement", 0.0) < COLLAPSED_DISAGREEMENT
        figures["collapsed"] = figures["logit_sd"] < COLLAPSED_LOGIT_SD and undecided
    return figures


_RATIOS = {  # figure: square root of one mean over another
    "prior_sd": ("prior_variance", ""),
    "relative_sd": ("prior_variance", "prior_mean_square"),
    "logit_sd": ("logit_variance", ""),
    "posterior_sd": ("posterior_variance", ""),
    "sd_ratio": ("fit_variance", "true_variance"),
    "training_sd_ratio": ("training_fit_variance", "training_true_variance"),
}


@torch.no_grad()
def spreads_of(learner: MetaLearner, observed: Observed, num_samples: int) -> Spread:
    """Every spread of one batch of tasks, on its device; for Episodes those of the posterior too."""
    spread = prior_spread(learner, observed, num_samples)
    if isinstance(observed, Episodes):
        spread |= posterior_spread(learner, observed, learner.guide.training_posterior(observed))
    return spread


def collapse_figures(learner: MetaLearner, observed: Observed, num_samples: int) -> Figures:
    """The summary of one batch of tasks, read on the host."""
    return summary(spreads_of(learner, observed, num_samples))
