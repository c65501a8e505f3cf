"""Mutual information of the weights and the query set, and the generalisation gap to another query set.

I_q(w; d) is the mutual information, in nats, of the weights w ~ q(w | d) and the query set d of a task. For every prior
p(w), the mean of KL(q, p) over tasks is at least I_q. Equality holds if p is the aggregate posterior, i.e. the mean of
q over tasks. The generalisation gap compares the loss on d with the loss on another query set b of the same task:

    gap = mean_t E_{w ~ q(w | d_t)} [L_b(w) - L_d(w)]
    L(w) = mean of -log p(y_i | x_i, w) over n queries
    |gap| <= sqrt(2 sigma^2 I_q / n)

The inequality holds for independent queries and sigma-subgaussian losses.
(Xu and Raginsky 2017; Hu et al., "Empirical Bayes Transductive Meta-Learning with Synthetic Gradients", ICLR 2020.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pyro_metabayes.device import as_double
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.evaluation.scores import masked_mean
from pyro_metabayes.inference.divergences import closed_form_kl, has_density, innermost
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.prediction.moments import draws_of, kl_from_draws, pooled_error


@runtime_checkable
class HasLossRange(Protocol):
    """Interface of a model with a known range of the loss."""

    def loss_range(self, observed: Observed) -> Tensor | None:
        """Return the maximum minus the minimum of -log p(y | x, w) over w, x and y, in nats; None: infinite."""


UPPER = ("prior", "refitted_prior", "other_tasks", "second_set")


def query_sets(episodes: Episodes) -> tuple[Episodes, Episodes]:
    """Split the queries of each task into two query sets: the 1st, 3rd, 5th, ... query, and the other queries.

    Sampled tasks have queries in the order of the classes, so both query sets have similar class counts.
    """
    return episodes.change_queries(lambda x: x[:, ::2]), episodes.change_queries(lambda x: x[:, 1::2])


def _loss_range(model: object, observed: Observed) -> Tensor | None:
    return model.loss_range(observed) if isinstance(model, HasLossRange) else None


@torch.no_grad()
def information(learner: MetaLearner, batches: Iterable[Episodes], num_samples: int) -> dict[str, Any] | None:
    """Estimate bounds on the mutual information I_q(w; d) of weights and query set, and the generalisation gap.

    The queries of each task are split into two query sets d and b. q is the training posterior.

    Returns:
        None for a point estimate, otherwise values by name. `refitted_prior`, `other_tasks` and `below` are None unless
        q is a factorised Gaussian. The first four values are upper bounds in nats per task:
        prior: mean KL of q to the prior; None for a flat prior.
        refitted_prior: mean KL of q to a Gaussian. The Gaussian for one half of the tasks has the moments of the
            aggregate posterior of the other half.
        other_tasks: mean over t of -log (1 / (T - 1)) sum_{t' != t} exp(-KL(q_t, q_t')). This is at least the KL of
            q_t to the mixture of the other posteriors. (Poole et al. 2019, leave-one-out; Hershey and Olsen 2007)
        second_set: mean KL(q(w | d), q(w | b)). This bounds I_q(w; d | t), the information beyond task t. A bound on
            I_q(w; d | t) suffices for the bound on the gap.
        least: the smallest of these upper bounds, at least 0.
        below: lower bound log T + mean log (q_t(w_t) / sum_t' q_t'(w_t)) on I_q(w; d, t), from one draw w_t per task.
            In nats, at most log T. (Poole et al. 2019)
        monte_carlo_error: {prior, second_set}, standard errors due to draws of w; None for a closed form.
        gap: {mean, ci95} over tasks of the loss on b minus the loss on d, in nats per query.
        sigma: half the range of the loss (Hoeffding); None for an unbounded loss.
        queries: n, the smallest number of queries in d over tasks.
        bound: sqrt(2 sigma^2 least / n), an upper bound on |gap|.
        tightness: |gap| / bound; None without a bound.
    """
    gathered: dict[str, list[Tensor]] = {}
    sigma, num_queries = None, math.inf
    for episodes in batches:
        episodes = learner.featured(episodes)
        d, b = query_sets(episodes)
        q = learner.guide.training_posterior(d)
        if not has_density(q):
            return None
        for name, value in (_task_terms(learner, d, b, q, num_samples) | _moments(q)).items():
            gathered.setdefault(name, []).append(value)
        if (width := _loss_range(learner.model, d.observed())) is not None:
            sigma = float(width) / 2
        num_queries = min(num_queries, int(d.query_mask.sum(-1).min()))
    return _metrics({name: torch.cat(values) for name, values in gathered.items()}, sigma, num_queries)


def _task_terms(
    learner: MetaLearner, d: Episodes, b: Episodes, q: TorchDistribution, num_samples: int
) -> dict[str, Tensor]:
    """Compute gap, second_set and prior of `information` per task [T]; a KL from draws also has an error [T]."""
    w = draws_of(q, num_samples)
    terms = {"gap": (_loss(learner, b, w) - _loss(learner, d, w)).mean(0)}
    second, prior = learner.guide.training_posterior(b), learner.model.prior(d.observed())
    for name, p in (("second_set", second), ("prior", prior)):
        if has_density(p):
            exact = closed_form_kl(q, p)
            terms[name], error = kl_from_draws(q, p, w) if exact is None else (exact, None)
            terms |= {} if error is None else {f"{name}_error": error}
    return terms


def _loss(learner: MetaLearner, episodes: Episodes, w: Tensor) -> Tensor:
    """Compute the mean of -log p(y_i | x_i, w) over the queries i, [L, T] for L draws of w in T tasks."""
    likelihood = learner.model.likelihood(w, episodes.query_x, episodes.observed())
    return -masked_mean(likelihood.log_prob(episodes.query_y), episodes.query_mask)


def _moments(q: TorchDistribution) -> dict[str, Tensor]:
    """Return mean, variance and one draw of the weights per task; {} if q is not a factorised Gaussian."""
    if not isinstance(innermost(q), Normal):
        return {}
    return {
        name: as_double(value.flatten(1))
        for name, value in (("mean", q.mean), ("variance", q.variance), ("draw", draws_of(q, 1)[0]))
    }


def _metrics(terms: dict[str, Tensor], sigma: float | None, num_queries: float) -> dict[str, Any]:
    """Compute all values of `information` from the terms of all tasks."""
    nats = {name: terms[name].mean().item() if name in terms else None for name in ("prior", "second_set")}
    errors = {name: pooled_error(value) for name in nats if (value := terms.get(f"{name}_error")) is not None}
    below = None
    if "mean" in terms:
        mean, variance = terms["mean"], terms["variance"]
        nats["refitted_prior"] = _kl_to_refitted(mean, variance)
        nats["other_tasks"] = _kl_to_others(mean, variance)
        below = _below(mean, variance, terms["draw"])
    upper = {name: nats.get(name) for name in UPPER}
    least = max(0.0, min(value for value in upper.values() if value is not None))  # rounding may make a KL negative
    gap = as_double(terms["gap"])
    bound = None if sigma is None else sigma * math.sqrt(2 * least / num_queries)
    return upper | {
        "least": least,
        "below": below,
        "monte_carlo_error": dict.fromkeys(("prior", "second_set")) | errors,
        "gap": {"mean": gap.mean().item(), "ci95": ci95_of(gap.cpu().numpy())},
        "sigma": sigma,
        "queries": num_queries,
        "bound": bound,
        "tightness": abs(gap.mean().item()) / bound if bound else None,
    }


def _kl_to_refitted(mean: Tensor, variance: Tensor) -> float:
    """Compute the mean KL of q to a Gaussian with the moments of the aggregate posterior of the other half of tasks.

    The variance of the Gaussian is the sum of the variances within and between tasks.
    """
    total = 0.0
    for own, others in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        spread = variance[others].mean(0) + mean[others].var(0, correction=0)
        refitted = Normal(mean[others].mean(0), spread.sqrt())
        total += kl_divergence(Normal(mean[own], variance[own].sqrt()), refitted).sum().item()
    return total / len(mean)


def _kl_to_others(mean: Tensor, variance: Tensor) -> float:
    """Compute `other_tasks` of `information` from KL(q_t, q_t') of all pairs of tasks."""
    precision = 1 / variance
    square = (variance + mean.square()) @ precision.mT - 2 * mean @ (mean * precision).mT
    square = square + (mean.square() * precision).sum(1)
    log_variance = variance.log().sum(1)
    kl = 0.5 * (square - mean.shape[1] + log_variance - log_variance.unsqueeze(1))
    kl.fill_diagonal_(math.inf)
    return (math.log(len(mean) - 1) - (-kl).logsumexp(1)).mean().item()


def _below(mean: Tensor, variance: Tensor, draw: Tensor) -> float:
    """Compute the lower bound `below` of `information` from one draw w_t ~ q_t per task t."""
    precision = 1 / variance
    square = draw.square() @ precision.mT - 2 * draw @ (mean * precision).mT + (mean.square() * precision).sum(1)
    log_density = -0.5 * (square + variance.log().sum(1))  # [draw of t, density of t'], up to a constant
    return (math.log(len(mean)) + (log_density.diagonal() - log_density.logsumexp(1))).mean().item()
