"""Detection of a prior over task weights that has collapsed to a point, and of a posterior that equals its prior.

A collapsed prior makes the same predictions with every draw of w. The test is the mutual information I(y_i; w) of label
and weights, summed over the queries i of a task: a prior is collapsed if the sum is below 0.05 nats.

Posterior collapse means that the posterior equals the prior. Its signs are a KL near 0 and a number of active weights
near 0.
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
    """Measure the spread of the prior over w, and of the predictions under the prior, for each of T tasks.

    Returns:
        Tensors [T] by name; {} for a flat prior.
        prior_variance, prior_mean_square: variance and squared mean of w, averaged over the weights.
        prior_variance_error: Monte-Carlo standard error of prior_variance, if it is estimated from draws.
        logit_variance: variance over draws of w of the class-centred logits; in a regression, of predicted mean / sd.
        disagreement: share of draws with another predicted class than the averaged prediction (ties excluded).
        information: mutual information I(y_i; w) in nats, summed over the queries i.
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
    """Return {NAME_error: error} for the spread NAME; {} if error is None."""
    return {} if error is None else {f"{name}_error": error}


def posterior_spread(learner: MetaLearner, episodes: Episodes, q: TorchDistribution) -> Spread:
    """Measure the spread of q, the training posterior of the guide, and the KL of q to the prior.

    Returns:
        Tensors by name, [T] for T tasks unless stated otherwise; {} for a point estimate.
        posterior_variance: variance of w, averaged over the weights.
        posterior_entropy: differential entropy in nats, if it has a closed form.
        elbo, kl, kl_by_dimension [T, weights]: in nats, if the prior has a density. The ELBO uses the mean
            log-likelihood of the batch, from one draw per task. A KL without a closed form is a mean over many draws.
        posterior_variance of site NAME, kl of site NAME: for each latent site of a Joint q; kl is the sum over sites.
        posterior_variance_error, kl_error: Monte-Carlo standard errors of values that are estimated from draws.
        kl_variational_bound, kl_convexity_bound: closed-form upper bounds on the KL of a normal q to a mixture prior.
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
    """Return a Pyro program that samples w from q; the guide then need not infer q again."""

    def program(data: Observed) -> None:
        with pyro.plate("task", data.num_tasks, dim=-1):
            sample_latent(q)

    return program


def _sampled_kl(q: TorchDistribution, prior: TorchDistribution, log_likelihood: Tensor) -> Spread:
    """Return kl, kl_error and elbo per task; the KL is a mean over MOMENT_DRAWS draws."""
    w = extra_draws(q, MOMENT_DRAWS)
    kl, error = kl_from_draws(q, prior, w)
    return {"kl": kl, "elbo": log_likelihood - kl, **_error("kl", error), **_kl_by_site(q, prior, w)}


def _kl_by_site(q: TorchDistribution, prior: TorchDistribution, w: Tensor) -> Spread:
    """Estimate E_q KL(q(z_k | z_<k), p(z_k | z_<k)) per task and site z_k of w; z_<k are the earlier sites."""
    if not (isinstance(q, Joint) and isinstance(prior, Joint)):
        return {}
    of_q, of_prior = q.log_probs(w), prior.log_probs(w)
    return {f"kl{SITE}{name}": (of_q[name] - of_prior[name]).mean(0) for name in of_q}


def against_truth(fit: TorchDistribution, true: TorchDistribution) -> Spread:
    """Compare an approximate posterior of w (`fit`) with the exact posterior (`true`), one value per task [T].

    Returns:
        Tensors [T] by name; {} for a point estimate.
        fit_variance, true_variance: variances of w under `fit` and `true`, averaged over the weights.
        coverage90_of_truth: probability under `true` of the central 90% interval of `fit`, averaged over the weights.
            If the fit is not Gaussian, the interval comes from quantiles of draws.
        kl_from_truth, kl_to_truth: KL(true, fit) and KL(fit, true) in nats, only for a Gaussian fit. They are sums
            over the marginal distributions of the weights, without correlations.
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
    """Return the upper and lower end of the central 90% interval of each weight under a normal distribution q."""
    upper, lower = (q.mean + sign * HALF_OF_90 * q.stddev for sign in (1, -1))
    return upper, lower


def _sampled_interval(fit: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Return the upper and lower end of the central 90% interval of each weight, from quantiles of draws."""
    ordered, tail = extra_draws(fit, QUANTILE_DRAWS).sort(0).values, QUANTILE_DRAWS // 20
    return ordered[-tail], ordered[tail - 1]


@torch.no_grad()
def batch_spreads(learner: MetaLearner, observed: Observed, num_samples: int) -> Spread:
    """Measure the spreads of the prior; with query labels (Episodes) also the spreads of the posteriors."""
    spread = prior_spread(learner, observed, num_samples)
    if isinstance(observed, Episodes):
        spread |= posterior_spread(learner, observed, learner.guide.training_posterior(observed))
        with restored_noise():
            posterior = learner.guide.posterior(observed.observed())
        known = replace(observed.observed(), query_mask=observed.query_mask)  # without queries of unknown classes
        spread |= posterior_outputs(learner, known, posterior, num_samples)
    return spread


def collapse_metrics(learner: MetaLearner, observed: Observed, num_samples: int) -> Metrics:
    """Compute all collapse metrics (`summary`) of one batch of tasks, as Python numbers."""
    return summary(batch_spreads(learner, observed, num_samples))
