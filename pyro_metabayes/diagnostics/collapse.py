"""Detects a prior over task weights that has collapsed to a point, and a posterior that equals its prior.

A prior is collapsed if its draws do not change the predictions: sum_i I(y_i; w) over the queries i of a task, the
mutual information of label and weights, is below 0.05 nats. The spread of the weights does not show this: under a
cosine head only directions matter, and a mean near 0 makes any ratio large. Neither does the share of draws that
predict another class, which is large for a prior without a preference for any class.

A posterior that equals its prior (posterior collapse) has kl and active_dimensions near 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from pyro_metabayes.diagnostics.collapse_metrics import SITE, Metrics, Spread, summary
from pyro_metabayes.diagnostics.output_spread import output_spread, posterior_outputs
from pyro_metabayes.distributions.joint import Joint, sample_latent
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.inference.divergences import (
    closed_form_kl,
    entropy_of,
    has_density,
    kl_by_dimension,
    mixture_kl_bounds,
)
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.draws import likelihood_of_draws
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.prediction.moments import (
    MOMENT_DRAWS,
    extra_draws,
    has_normal_marginals,
    kl_from_draws,
    moments_of,
)
from pyro_metabayes.seeding import restored_noise

HALF_OF_90 = 1.6448536269514722  # standard normal quantile at 0.95
QUANTILE_DRAWS = 1000  # draws per task of a central 90% interval without a closed form


def prior_spread(learner: MetaLearner, observed: Observed, num_samples: int) -> Spread:
    """Spreads of the prior p_psi(w | support), per task [T]; {} for a flat prior.

    Returns:
        prior_variance, prior_mean_square: variance and squared mean, averaged over the weights.
        prior_variance_error: Monte-Carlo standard error, if the variance is estimated from draws.
        logit_variance: variance over draws of the logits, centred over classes; in a regression, of the predicted means
            in units of the noise.
        disagreement: share of draws that predict another class than the averaged prediction (ties excluded).
        information: sum over the queries of I(y_i; w), in nats.
        information_error: upper bound on the Monte-Carlo standard error of information.
        prior_entropy: differential entropy in nats, if it has a closed form.
    """
    prior = learner.model.prior(observed)
    if not has_density(prior):
        return {}
    drawn = likelihood_of_draws(learner.model, prior, observed, max(num_samples, 2))  # one sample has no spread
    moments = moments_of(prior)
    spread = {
        "prior_variance": moments.variance.flatten(1).mean(1),
        "prior_mean_square": moments.mean.square().flatten(1).mean(1),
        **output_spread(drawn, observed.query_mask),
        **_error("prior_variance", moments.error),
    }
    entropy = entropy_of(prior)
    return spread if entropy is None else spread | {"prior_entropy": entropy}


def _error(name: str, error: Tensor | None) -> Spread:
    """The Monte-Carlo standard error [T] of a spread; {} for a closed form."""
    return {} if error is None else {f"{name}_error": error}


def posterior_spread(learner: MetaLearner, episodes: Episodes, q: TorchDistribution) -> Spread:
    """Spreads per task of q = training_posterior(episodes), the posterior of the ELBO; {} for a point estimate.

    Returns:
        posterior_variance [T]: mean over the weights.
        posterior_entropy [T]: in nats, if it has a closed form.
        elbo, kl [T], kl_by_dimension [T, weights]: in nats, if the prior has a density. The log-likelihood is a batch
            mean from one draw per task. A KL without a closed form is the mean over MOMENT_DRAWS draws.
        posterior_variance of site NAME, kl of site NAME [T]: if q is a Joint. The kl of a site is the expected KL given
            the earlier sites; the kl of all sites sum to kl.
        posterior_variance_error, kl_error [T]: Monte-Carlo standard errors, if the value is estimated from draws.
        kl_variational_bound, kl_convexity_bound [T]: closed-form upper bounds on the KL, if the prior is a mixture.
    """
    if not has_density(q):
        return {}
    moments = moments_of(q)
    spread = {"posterior_variance": moments.variance.flatten(1).mean(1), **_error("posterior_variance", moments.error)}
    if isinstance(q, Joint):
        spread |= {
            f"posterior_variance{SITE}{name}": value.reshape(len(value), -1).mean(1)
            for name, value in q.sites.split(moments.variance).items()
        }
    if (entropy := entropy_of(q)) is not None:
        spread["posterior_entropy"] = entropy
    prior = learner.model.prior(episodes.observed())
    if has_density(prior):
        terms = Elbo(kl="analytic").terms(learner.model, _program(q), episodes)
        assert terms.kl is not None
        for name, value in (("elbo", terms.log_likelihood - terms.kl), ("kl", terms.kl)):
            spread[name] = (value / episodes.num_tasks).expand(episodes.num_tasks)
        if (weight_kl := kl_by_dimension(q, prior)) is not None:
            spread |= {"kl": weight_kl.flatten(1).sum(1), "kl_by_dimension": weight_kl.flatten(1)}
        elif closed_form_kl(q, prior) is None:
            spread |= _sampled_kl(q, prior, terms.log_likelihood / episodes.num_tasks)
        spread |= {f"kl_{name}_bound": bound for name, bound in mixture_kl_bounds(q, prior).items()}
    return spread


def _program(q: TorchDistribution) -> Callable[[Observed], None]:
    """The Pyro program of a guide whose posterior is q, which is then not inferred again."""

    def program(data: Observed) -> None:
        with pyro.plate("task", data.num_tasks, dim=-1):
            sample_latent(q)

    return program


def _sampled_kl(q: TorchDistribution, prior: TorchDistribution, log_likelihood: Tensor) -> Spread:
    """kl, kl_error and elbo [T] with the KL estimated from MOMENT_DRAWS draws (the objective uses one)."""
    w = extra_draws(q, MOMENT_DRAWS)
    kl, error = kl_from_draws(q, prior, w)
    return {"kl": kl, "elbo": log_likelihood - kl, **_error("kl", error), **_kl_by_site(q, prior, w)}


def _kl_by_site(q: TorchDistribution, prior: TorchDistribution, w: Tensor) -> Spread:
    """The terms [T] of KL(q, prior) = sum_k E_q KL(q(z_k | z_<k), p(z_k | z_<k)), from draws w ~ q; {} for one site."""
    if not (isinstance(q, Joint) and isinstance(prior, Joint)):
        return {}
    of_q, of_prior = q.log_probs(w), prior.log_probs(w)
    return {f"kl{SITE}{name}": (of_q[name] - of_prior[name]).mean(0) for name in of_q}


def against_truth(fit: TorchDistribution, true: TorchDistribution) -> Spread:
    """Compares a fitted posterior of w with the exact one, per task [T]; {} for a point estimate.

    Returns:
        fit_variance, true_variance: means over the weights.
        coverage90_of_truth: probability, under the exact posterior, of the central 90% interval of the fit, mean over
            weights. If the fit is not Gaussian, the interval is between quantiles of draws.
        kl_from_truth, kl_to_truth: KL(true, fit) and KL(fit, true) in nats, summed over the marginal distributions of
            the weights; correlations are ignored. Only for a Gaussian fit.
    """
    if not has_density(fit):
        return {}
    p, q = (TorchNormal(moments.mean, moments.variance.sqrt()) for moments in (moments_of(true), moments_of(fit)))
    is_gaussian = has_normal_marginals(fit)
    upper, lower = (p.cdf(bound) for bound in (_interval(q) if is_gaussian else _sampled_interval(fit)))
    means = {
        "fit_variance": q.variance,
        "true_variance": p.variance,
        "coverage90_of_truth": upper - lower,
    }
    nats = {"kl_from_truth": kl_divergence(p, q), "kl_to_truth": kl_divergence(q, p)} if is_gaussian else {}
    return {name: value.flatten(1).mean(1) for name, value in means.items()} | {
        name: value.flatten(1).sum(1) for name, value in nats.items()
    }


def _interval(q: TorchNormal) -> tuple[Tensor, Tensor]:
    """Upper and lower end of the central 90% interval of each weight under a normal distribution."""
    upper, lower = (q.mean + sign * HALF_OF_90 * q.stddev for sign in (1, -1))
    return upper, lower


def _sampled_interval(fit: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Upper and lower end of the central 90% interval of each weight, from quantiles of draws."""
    ordered, tail = extra_draws(fit, QUANTILE_DRAWS).sort(0).values, QUANTILE_DRAWS // 20
    return ordered[-tail], ordered[tail - 1]


@torch.no_grad()
def batch_spreads(learner: MetaLearner, observed: Observed, num_samples: int) -> Spread:
    """All spreads of one batch of tasks, on its device; for Episodes also those of the training posterior."""
    spread = prior_spread(learner, observed, num_samples)
    if isinstance(observed, Episodes):
        spread |= posterior_spread(learner, observed, learner.guide.training_posterior(observed))
        with restored_noise():
            posterior = learner.guide.posterior(observed.observed())
        known = replace(observed.observed(), query_mask=observed.query_mask)  # without queries of unknown classes
        spread |= posterior_outputs(learner, known, posterior, num_samples)
    return spread


def collapse_metrics(learner: MetaLearner, observed: Observed, num_samples: int) -> Metrics:
    """The metrics of one batch of tasks, read on the host."""
    return summary(batch_spreads(learner, observed, num_samples))
