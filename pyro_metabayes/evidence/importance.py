"""Importance sampling of the posterior of a task: bounds on the log evidence, and diagnostics of reliability.

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

    The bound is the log of the mean of n weights, averaged over blocks of n draws. In expectation, the bound is the
    ELBO for n = 1, does not decrease with n, and does not exceed log p(y). (Burda et al. 2016.)

    Args:
        log_weights: log importance weights [L, T] of L draws for T tasks.
        counts: numbers of draws n, each at most L.

    Returns:
        Tensor [counts, T], in nats.
    """
    total = len(log_weights)
    bounds = []
    for count in counts:
        blocks = log_weights[: total // count * count].unflatten(0, (-1, count))
        bounds.append(log_mean_exp(blocks, dim=1).mean(0))
    return torch.stack(bounds)


def effective_size(log_weights: Tensor) -> Tensor:
    """Compute the effective sample size (sum w)^2 / sum w^2 [T] of importance weights w from log w [L, T]."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def pareto_k(log_weights: Tensor) -> Tensor:
    """Compute Pareto k [T]: the shape of a generalised Pareto distribution, fitted to the largest weights.

    The fit uses the largest min(L/5, 3 sqrt(L)) weights, by the method of Zhang and Stephens (2009), with a weak prior
    at 1/2. Importance sampling is reliable for k < 0.7. Moments of order above 1/k do not exist. k is infinite for L <=
    20, and 0 if the largest weights are almost equal. (Vehtari et al. 2024, "Pareto smoothed importance sampling".)

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
    """Estimate the shape k [T] of a generalised Pareto distribution with scale sigma from n ascending excesses [T, n].

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
    """Estimate log p(y) [T] by bridge sampling, from draws of the posterior and of a proposal.

    The estimate r of p(y) solves

        r = E_g[p / (s p + s' r g)] / E_p[g / (s p + s' r g)]

    where p is the unnormalised posterior, g the proposal, s the share of posterior draws among all draws, and
    s' = 1 - s. Posterior and proposal must overlap. (Optimal bridge: Meng and Wong 1996.)

    Args:
        at_gold: [L, T], log weights log p - log g at L draws of the posterior of T tasks.
        at_proposal: [L', T], log weights log p - log g at L' draws of the proposal.
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
    """Compute the first-order standard error of `bridge_evidence` for each task [T], in nats.

        error^2 = var_g(f) / (L' E_g[f]^2) + var_p(h) / (ESS E_p[h]^2)
        f = p / (s p + s' r g),   h = g / (s p + s' r g)

    where ESS is the effective sample size of the posterior draws. `bridge_evidence` defines the other symbols.
    (Fruehwirth-Schnatter 2004.)

    Args:
        at_gold: log weights at draws of the posterior, as in `bridge_evidence`.
        at_proposal: log weights at draws of the proposal, as in `bridge_evidence`.
        log_evidence: [T], log r, the result of `bridge_evidence`.
        gold_size: [T], ESS.
    """
    log_share, log_other_share = _log_shares(at_gold, at_proposal)
    log_f = at_proposal - torch.logaddexp(log_share + at_proposal, log_other_share + log_evidence)
    log_h = -torch.logaddexp(log_share + at_gold, log_other_share + log_evidence)
    f, h = ((value - log_mean_exp(value)).exp() for value in (log_f, log_h))
    return (f.var(0) / len(f) + h.var(0) / gold_size).sqrt()


def _log_shares(at_gold: Tensor, at_proposal: Tensor) -> tuple[float, float]:
    """Return log s and log s', the log shares of posterior draws and of proposal draws among all draws."""
    num_draws = len(at_gold) + len(at_proposal)
    return math.log(len(at_gold) / num_draws), math.log(len(at_proposal) / num_draws)
