"""What has the posterior learnt from its query set, and how much worse is it on another one of the same task?

I_q(w; d) is the information, in nats, between the weights w ~ q(w | d) and the query set d of a task. SIB's ELBO is an
information bottleneck: mean KL(q, p_psi) is no less than I_q, whatever the prior, and equal to it where the prior
is the aggregate posterior. On another query set b of the same task and support the loss differs by

    gen = mean_t E_{w ~ q(w | d_t)} [L_b(w) - L_d(w)],    L(w) the mean of -log p(y_i | x_i, w) over n queries,

and |gen| <= sqrt(2 sigma^2 I_q / n) for queries drawn independently, with losses that are sigma-subgaussian.
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


@runtime_checkable
class HasLossRange(Protocol):
    def loss_range(self, observed: Observed) -> Tensor | None:
        """How far -log p of a label can move, in nats, whatever w and x; None where nothing bounds it."""


UPPER = ("prior", "refitted_prior", "other_tasks", "second_set")


def query_sets(episodes: Episodes) -> tuple[Episodes, Episodes]:
    """Every other query each: d and b of the same tasks, as alike in their classes as they can be."""
    return episodes.change_queries(lambda x: x[:, ::2]), episodes.change_queries(lambda x: x[:, 1::2])


def _loss_range(model: object, observed: Observed) -> Tensor | None:
    return model.loss_range(observed) if isinstance(model, HasLossRange) else None


@torch.no_grad()
def information(learner: MetaLearner, batches: Iterable[Episodes], num_samples: int) -> dict[str, Any] | None:
    """Bounds on I_q, the gap and its bound, from tasks with two query sets each; None for a point mass.

    q is training_posterior, whose KL the ELBO has. In nats a task:
        prior: mean KL(q, p_psi), null for a flat prior.
        refitted_prior: mean KL of q to the Gaussian with the moments of the aggregate posterior of the other half
            of the tasks.
        other_tasks: mean of -log (1 / (T - 1)) sum_{t' != t} exp(-KL(q_t, q_t')), no less than the KL of q_t to the
            mixture of the others. (Poole et al. 2019, leaving one out; Hershey and Olsen 2007)
        second_set: mean KL(q(w | d), q(w | b)), which bounds I_q(w; d | t), the part that no knowledge of the task
            and its support set replaces; the theorem asks for no more.
        least: the smallest of these.
        below: log T less what q_t shares with all T posteriors, from one draw each: no more than I_q(w; d, t), and
            no more than log T. (Poole et al. 2019)
    gap {mean, ci95}: gen, over tasks. sigma: half the range of the loss (Hoeffding), null where it has none.
    bound, tightness: sqrt(2 sigma^2 least / n) and |gap| over it.
    """
    gathered: dict[str, list[Tensor]] = {}
    sigma, points = None, math.inf
    for episodes in batches:
        episodes = learner.featured(episodes)
        d, b = query_sets(episodes)
        q = learner.guide.training_posterior(d)
        if not has_density(q):
            return None
        for name, value in (_of_task(learner, d, b, q, num_samples) | _moments(q)).items():
            gathered.setdefault(name, []).append(value)
        if (width := _loss_range(learner.model, d.observed())) is not None:
            sigma = float(width) / 2
        points = min(points, int(d.query_mask.sum(-1).min()))
    return _figures({name: torch.cat(values) for name, values in gathered.items()}, sigma, points)


def _of_task(
    learner: MetaLearner, d: Episodes, b: Episodes, q: TorchDistribution, num_samples: int
) -> dict[str, Tensor]:
    """The gap and the divergences that a task has by itself [T]; kl only where the prior has a density."""
    w = q.sample(torch.Size((num_samples,)))
    loss_d, loss_b = (
        -masked_mean(learner.model.likelihood(w, its.query_x, its.observed()).log_prob(its.query_y), its.query_mask)
        for its in (d, b)
    )
    each = {"gap": (loss_b - loss_d).mean(0)}
    second, prior = learner.guide.training_posterior(b), learner.model.prior(d.observed())
    for name, p in (("second_set", second), ("prior", prior)):
        if has_density(p):
            exact = closed_form_kl(q, p)
            each[name] = (q.log_prob(w) - p.log_prob(w)).mean(0) if exact is None else exact
    return each


def _moments(q: TorchDistribution) -> dict[str, Tensor]:
    """mean, variance and one draw of each task's weights [T, W], in float64; {} unless they are independent normals."""
    if not isinstance(innermost(q), Normal):
        return {}
    return {
        name: as_double(value.flatten(1))
        for name, value in (("mean", q.mean), ("variance", q.variance), ("draw", q.sample()))
    }


def _figures(each: dict[str, Tensor], sigma: float | None, points: float) -> dict[str, Any]:
    nats = {name: each[name].mean().item() if name in each else None for name in ("prior", "second_set")}
    below = None
    if "mean" in each:
        mean, variance = each["mean"], each["variance"]
        nats["refitted_prior"] = _kl_to_refitted(mean, variance)
        nats["other_tasks"] = _kl_to_others(mean, variance)
        below = _below(mean, variance, each["draw"])
    upper = {name: nats.get(name) for name in UPPER}
    least = max(0.0, min(value for value in upper.values() if value is not None))  # no KL is below 0 but by rounding
    gap = as_double(each["gap"])
    bound = None if sigma is None else sigma * math.sqrt(2 * least / points)
    return upper | {
        "least": least,
        "below": below,
        "gap": {"mean": gap.mean().item(), "ci95": ci95_of(gap.cpu().numpy())},
        "sigma": sigma,
        "queries": points,
        "bound": bound,
        "tightness": abs(gap.mean().item()) / bound if bound else None,
    }


def _kl_to_refitted(mean: Tensor, variance: Tensor) -> float:
    """Mean KL to N(mean over tasks, variance within plus between), of the even tasks for the odd ones and back."""
    total = 0.0
    for own, others in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        spread = variance[others].mean(0) + mean[others].var(0, correction=0)
        refitted = Normal(mean[others].mean(0), spread.sqrt())
        total += kl_divergence(Normal(mean[own], variance[own].sqrt()), refitted).sum().item()
    return total / len(mean)


def _kl_to_others(mean: Tensor, variance: Tensor) -> float:
    """See other_tasks; KL(q_t, q_t') of all pairs in two matrix products."""
    precision = 1 / variance
    square = (variance + mean.square()) @ precision.mT - 2 * mean @ (mean * precision).mT
    square = square + (mean.square() * precision).sum(1)
    log_variance = variance.log().sum(1)
    kl = 0.5 * (square - mean.shape[1] + log_variance - log_variance.unsqueeze(1))
    kl.fill_diagonal_(math.inf)
    return (math.log(len(mean) - 1) - (-kl).logsumexp(1)).mean().item()


def _below(mean: Tensor, variance: Tensor, draw: Tensor) -> float:
    """log T + mean log (q_t(w_t) / sum_t' q_t'(w_t)), w_t ~ q_t."""
    precision = 1 / variance
    square = draw.square() @ precision.mT - 2 * draw @ (mean * precision).mT + (mean.square() * precision).sum(1)
    log_density = -0.5 * (square + variance.log().sum(1))  # [of draw t, under t'], up to a constant
    return (math.log(len(mean)) + (log_density.diagonal() - log_density.logsumexp(1))).mean().item()
