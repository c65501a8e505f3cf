"""Importance sampling of the posterior of a task: lower bounds on the log evidence, and their reliability.

All functions take log importance weights log p(w, y) - log g(w), [L, T] for L draws w ~ g for each of T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_metabayes.device import as_double
from pyro_metabayes.prediction.averages import log_mean_exp

TRUSTED_K = 0.7  # for larger k, estimates of errors are unreliable
FLAT = 1e-3  # weights count as equal if the largest exceeds the tail threshold by less than this share of itself


def importance_weighted_bounds(log_weights: Tensor, counts: Sequence[int]) -> Tensor:
    """Compute the importance-weighted bound on log p(y) with n draws, for each n in counts.

    It is the log of the mean of n weights, averaged over blocks of n draws. In expectation it is the ELBO for n = 1,
    does not decrease with n, and does not exceed log p(y). (Burda et al. 2016.)

    Args:
        log_weights: log importance weights [L, T] of L draws for T tasks.
        counts: numbers of draws n, each at most L.

    Returns:
        Tensor [number of counts, T], in nats.
    """
    total = len(log_weights)
    bounds = []
    for count in counts:
        blocks = log_weights[: total // count * count].unflatten(0, (-1, count))
        bounds.append(log_mean_exp(blocks, dim=1).mean(0))
    return torch.stack(bounds)


def effective_size(log_weights: Tensor) -> Tensor:
    """Compute the effective sample size (sum w)^2 / sum w^2 per task from log weights log w per draw and task."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def pareto_k(log_weights: Tensor) -> Tensor:
    """Fit a generalised Pareto distribution to the largest min(L/5, 3 sqrt(L)) weights, and return its shape k [T].

    Importance sampling is reliable for k < 0.7. Moments of the weights of order above 1/k do not exist. (Vehtari et al.
    2024, "Pareto smoothed importance sampling". The fit is that of Zhang and Stephens 2009 with a weak prior at 1/2.)

    Args:
        log_weights: log importance weights [L, T] of L draws for T tasks.
    """
    num_draws = len(log_weights)
    num_tail = math.ceil(min(0.2 * num_draws, 3 * math.sqrt(num_draws)))
    if num_tail < 5:
        return torch.full_like(log_weights[0], math.inf)
    weights = as_double(log_weights - log_weights.amax(0)).exp().sort(0).values
    excess = (weights[-num_tail:] - weights[-num_tail - 1]).mT  # [T, tail], ascending
    k = _zhang_stephens(excess.clamp(min=torch.finfo(excess.dtype).tiny))
    k = (num_tail * k + 10 * 0.5) / (num_tail + 10)
    flat = excess[:, -1] < FLAT  # weights that are equal up to rounding have no tail
    return torch.where(flat, 0.0, k).to(log_weights.dtype)


def _zhang_stephens(excess: Tensor) -> Tensor:
    """Estimate the shape k of a generalised Pareto distribution per task, from n ascending excesses [T, n].

    The estimate uses the posterior mean of b = -k / sigma over a grid. (Zhang and Stephens 2009.)
    """
    num_tail = excess.shape[1]
    size = 30 + int(math.sqrt(num_tail))
    grid = 1 - (size / (torch.arange(1, size + 1, dtype=excess.dtype) - 0.5)).sqrt()
    quartile = excess[:, int(num_tail / 4 + 0.5) - 1]
    b = grid / (3 * quartile.unsqueeze(1)) + 1 / excess[:, -1:]  # [T, grid]
    k = (-b.unsqueeze(-1) * excess.unsqueeze(1)).log1p().mean(-1)
    profile = num_tail * ((-b / k).log() - k - 1)
    mean_b = (profile.softmax(1) * b).sum(1, keepdim=True)
    return (-mean_b * excess).log1p().mean(1)


def bridge_evidence(at_gold: Tensor, at_proposal: Tensor, steps: int = 200) -> Tensor:
    """Estimate log p(y) [T] by bridge sampling, from draws of the posterior and draws of a proposal.

    The estimate r of p(y) is the solution of r = E_g[p / (s p + s' r g)] / E_p[g / (s p + s' r g)]. Here p is the
    unnormalised posterior, g the proposal, and s and s' are the fractions of draws from the posterior and from the
    proposal. Posterior and proposal must overlap; the proposal need not have wider tails. (Optimal bridge: Meng and
    Wong 1996.)

    Args:
        at_gold: [L, T], log weights log p - log g at L draws of the posterior of T tasks.
        at_proposal: [L', T], log weights at L' draws of the proposal.
        steps: number of fixed-point iterations.
    """
    log_share, log_other_share = _log_shares(at_gold, at_proposal)
    log_r = at_proposal.median(0).values
    for _ in range(steps):
        log_numerator = at_proposal - torch.logaddexp(log_share + at_proposal, log_other_share + log_r)
        log_denominator = -torch.logaddexp(log_share + at_gold, log_other_share + log_r)
        log_r = log_mean_exp(log_numerator) - log_mean_exp(log_denominator)
    return log_r


def bridge_error(at_gold: Tensor, at_proposal: Tensor, log_evidence: Tensor, gold_size: Tensor) -> Tensor:
    """Compute the standard error of the result of `bridge_evidence` for each task [T], to first order, in nats.

    Its square is var_g(f) / (L' E_g[f]^2) + var_p(h) / (ESS E_p[h]^2), with f = p / (s p + s' r g) at the L' draws of
    the proposal g, and h = g / (s p + s' r g) at draws of the posterior p with effective sample size ESS.
    (Fruehwirth-Schnatter 2004.)

    Args:
        at_gold, at_proposal: log weights, the arguments of `bridge_evidence`.
        log_evidence: log r [T], the result of `bridge_evidence`.
        gold_size: ESS [T].
    """
    log_share, log_other_share = _log_shares(at_gold, at_proposal)
    log_f = at_proposal - torch.logaddexp(log_share + at_proposal, log_other_share + log_evidence)
    log_h = -torch.logaddexp(log_share + at_gold, log_other_share + log_evidence)
    f, h = ((value - log_mean_exp(value)).exp() for value in (log_f, log_h))
    return (f.var(0) / len(f) + h.var(0) / gold_size).sqrt()


def _log_shares(at_gold: Tensor, at_proposal: Tensor) -> tuple[float, float]:
    """Return log s and log s', where s and s' are the shares of posterior and proposal among all draws."""
    num_draws = len(at_gold) + len(at_proposal)
    return math.log(len(at_gold) / num_draws), math.log(len(at_proposal) / num_draws)
