"""Decomposition of the ELBO gap into the approximation gap of the family and the amortization gap of the guide.

    log p(y) - ELBO(q) = KL(q, p(w | y)) = approximation gap + amortization gap
    approximation gap  = log p(y) - ELBO(q*)
    amortization gap   = ELBO(q*) - ELBO(q)

where q* is the member of the variational family of q that maximises the ELBO of the task.
(Cremer, Li and Duvenaud 2018, arXiv 1801.03558.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.diagnostics.best_in_family import elbo_of
from pyro_metabayes.diagnostics.gold import Gold, Target
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evidence.importance import bridge_error, bridge_evidence, importance_weighted_bounds, pareto_k
from pyro_metabayes.inference.divergences import has_density, log_density
from pyro_metabayes.prediction.moments import moments_of

COUNTS = (1, 10, 100, 1000, 10_000)  # draws of an importance-weighted bound
CHUNK = 500  # draws per evaluation of the importance weights


def check_density(q: TorchDistribution) -> None:
    """Raise a UsageError if q is a point estimate, which has no density."""
    if not has_density(q):
        raise UsageError(
            "expected a posterior with a density for the gaps of the ELBO, got a point estimate; use another guide"
        )


@dataclass(frozen=True)
class Gaps:
    """Estimates of evidence and ELBO for T tasks, from which the gaps of an approximate posterior q follow.

    q* is the member of the family of q with the largest ELBO. "NUTS draws" are draws of the exact posterior by NUTS.
    All attributes are [T], in nats per task, if nothing else is stated.

    Attributes:
        evidence: log p(y) by bridge sampling between the NUTS draws and q*.
        evidence_error: Monte-Carlo standard error of evidence.
        elbo: ELBO of q.
        best_elbo: ELBO of q*.
        kl_from_gold: KL(p(w | y), q), estimated from the NUTS draws.
        bounds: [COUNTS, T], importance-weighted bounds from 1, 10, 100, ... draws of q (the numbers in COUNTS).
        best_bounds: [COUNTS, T], importance-weighted bounds from draws of q*.
        pareto_k: Pareto k of the importance weights of q, without unit.
        best_pareto_k: Pareto k of the importance weights of q*.
        sd_ratio: root mean square sd of w under q, divided by the root mean square sd of the NUTS draws.
    """

    evidence: Tensor
    evidence_error: Tensor
    elbo: Tensor
    best_elbo: Tensor
    kl_from_gold: Tensor
    bounds: Tensor
    best_bounds: Tensor
    pareto_k: Tensor
    best_pareto_k: Tensor
    sd_ratio: Tensor

    @property
    def approximation_gap(self) -> Tensor:
        return self.evidence - self.best_elbo

    @property
    def amortization_gap(self) -> Tensor:
        return self.best_elbo - self.elbo


@torch.no_grad()
def gaps_of(target: Target, q: TorchDistribution, best: TorchDistribution, gold: Gold, num_samples: int) -> Gaps:
    """Compute the ELBO gaps of q.

    Args:
        target: the unnormalised posterior of T tasks.
        q: the approximate posterior of the guide, batch [T].
        best: the member q* of the family of q with the largest ELBO, batch [T].
        gold: draws of the exact posterior by NUTS.
        num_samples: draws of q and of q* per task.
    """
    log_weights, best_log_weights = (_log_weights(target, proposal, num_samples) for proposal in (q, best))
    at_gold = target.log_joint(gold.w)
    bridge = at_gold - log_density(best, gold.w), best_log_weights
    evidence = bridge_evidence(*bridge)
    counts = [count for count in COUNTS if count <= num_samples]
    spread = gold.w.var(0).flatten(1).mean(1)
    return Gaps(
        evidence=evidence,
        evidence_error=bridge_error(*bridge, evidence, gold.ess),
        elbo=elbo_of(target, q, num_samples),
        best_elbo=elbo_of(target, best, num_samples),
        kl_from_gold=(at_gold - log_density(q, gold.w)).mean(0) - evidence,
        bounds=importance_weighted_bounds(log_weights, counts),
        best_bounds=importance_weighted_bounds(best_log_weights, counts),
        pareto_k=pareto_k(log_weights),
        best_pareto_k=pareto_k(best_log_weights),
        sd_ratio=(moments_of(q, num_samples).variance.flatten(1).mean(1) / spread).sqrt(),
    )


def _log_weights(target: Target, proposal: TorchDistribution, num_samples: int) -> Tensor:
    """Compute log p(w, y) - log g(w) [L, T] for L draws w from the proposal g and T tasks, in chunks of draws."""
    parts = []
    for start in range(0, num_samples, CHUNK):
        w = proposal.sample(torch.Size((min(CHUNK, num_samples - start),)))
        parts.append(target.log_joint(w) - log_density(proposal, w))
    return torch.cat(parts)
