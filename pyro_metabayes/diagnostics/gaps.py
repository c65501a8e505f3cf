"""Why is a bound loose? The family cannot be the posterior, or the guide is not the best of its family.

    log p(y) - ELBO(q) = KL(q, p(w | y)) = approximation gap + amortization gap
    approximation gap = log p(y) - ELBO(q*),   amortization gap = ELBO(q*) - ELBO(q),

q* the member of q's family with the largest ELBO on this very task. (Cremer, Li and Duvenaud 2018, arXiv 1801.03558.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_metabayes.diagnostics.gold import Gold, Target
from pyro_metabayes.diagnostics.importance import bridge_evidence, importance_weighted_bounds, pareto_k
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import closed_form_kl, has_density, innermost
from pyro_metabayes.inference.laplace import LowRankPrecision

Build = Callable[..., TorchDistribution]
COUNTS = (1, 10, 100, 1000, 10_000)  # draws of an importance-weighted bound
CHUNK = 500  # draws weighed at once


def elbo_of(target: Target, q: TorchDistribution, num_samples: int) -> Tensor:
    """E_q[log p(y | w)] - KL(q, p) [T] from that many draws; the KL in closed form where there is one."""
    w = q.rsample(torch.Size((num_samples,)))
    kl = closed_form_kl(q, target.prior)
    if kl is None:
        kl = (q.log_prob(w) - target.prior.log_prob(w)).mean(0)
    return target.log_likelihood(w).mean(0) - kl


def check_density(q: TorchDistribution) -> None:
    if not has_density(q):
        raise UsageError("expected a guide whose posterior has a density for its gaps, got a point mass; take another")


def best_in_family(
    target: Target, q: TorchDistribution, steps: int = 600, num_samples: int = 8, rate: float = 0.03
) -> TorchDistribution:
    """q*: all parameters of q free, for every task of its own, by Adam on the ELBO in units of the prior's sd.

    Normal: factorised Gaussians; LowRankPrecision: those of its rank; MultivariateNormal: Gaussians with independent
    rows. It starts at q and, once more, at the prior's mean and spread; the better of the two is kept, task by task.
    """
    at_prior, build = _parameters(target, q, at_prior=True)
    fits = [_ascend(target, start, build, steps, num_samples, rate) for start in (at_prior, _parameters(target, q)[0])]
    with torch.no_grad():
        first, second = (elbo_of(target, build(*each), 20 * num_samples) for each in fits)
        better = second > first
        chosen = [
            torch.where(better.view(-1, *[1] * (one.dim() - 1)), two, one) for one, two in zip(*fits, strict=True)
        ]
        return build(*chosen)


def _ascend(
    target: Target, start: list[Tensor], build: Build, steps: int, num_samples: int, rate: float
) -> list[Tensor]:
    parameters = [value.detach().clone().requires_grad_() for value in start]
    optimiser = torch.optim.Adam(parameters, lr=rate)
    schedule = CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = -elbo_of(target, build(*parameters), num_samples).sum()
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = slope
        optimiser.step()
        schedule.step()
    return [parameter.detach() for parameter in parameters]


def _parameters(target: Target, q: TorchDistribution, at_prior: bool = False) -> tuple[list[Tensor], Build]:
    """Free parameters at q, or at the prior, and the family: all in units of the prior's sd."""
    inner: Any = innermost(q)
    loc, scale = target.loc, target.scale
    start = torch.zeros_like(loc) if at_prior else ((q.mean - loc) / scale).expand(loc.shape)
    if isinstance(inner, LowRankPrecision):
        log_precision = torch.zeros_like(loc) if at_prior else (inner.precision * scale**2).log()
        root = inner.root * scale.unsqueeze(-1)

        def low_rank(mean: Tensor, log_precision: Tensor, root: Tensor) -> TorchDistribution:
            precision, columns = log_precision.exp() / scale**2, root / scale.unsqueeze(-1)
            return LowRankPrecision(loc + scale * mean, precision, columns, target.event_dim)

        return [start, log_precision, root], low_rank
    if isinstance(inner, torch.distributions.MultivariateNormal):
        identity = torch.eye(loc.shape[-1], dtype=loc.dtype).expand(*loc.shape, -1)
        factor = identity if at_prior else inner.scale_tril / scale.unsqueeze(-1)

        def rows(mean: Tensor, factor: Tensor) -> TorchDistribution:
            tril = factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).abs() + 1e-8)
            return MultivariateNormal(loc + scale * mean, scale_tril=scale.unsqueeze(-1) * tril).to_event(1)

        return [start, factor], rows
    if isinstance(inner, torch.distributions.Normal):
        log_sd = torch.zeros_like(loc) if at_prior else (q.variance.sqrt() / scale).log().expand(loc.shape)

        def factorised(mean: Tensor, log_sd: Tensor) -> TorchDistribution:
            return Normal(loc + scale * mean, scale * log_sd.exp()).to_event(target.event_dim)

        return [start, log_sd], factorised
    raise UsageError(f"expected a Gaussian posterior for the best of its family, got {type(inner).__name__}")


@dataclass(frozen=True)
class Gaps:
    """Of one posterior q and one target, nats a task [T]; `best` is q*, and `gold` the draws of NUTS.

    evidence: log p(y), bridged between the gold draws and q*. elbo, best_elbo; approximation_gap, amortization_gap.
    kl_from_gold: KL(p(w | y), q), from the gold draws; KL(q, p(w | y)) is the sum of the gaps.
    bounds, best_bounds [counts, T]: importance-weighted bounds from q and from q*, of COUNTS draws.
    pareto_k, best_pareto_k: of their importance weights. sd_ratio: rms sd of w under q over that of the gold draws.
    """

    evidence: Tensor
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
    """Everything of Gaps, from num_samples draws of q and of q*."""
    log_weights, best_log_weights = (_log_weights(target, its, num_samples) for its in (q, best))
    at_gold = target.log_joint(gold.w)
    evidence = bridge_evidence(at_gold - best.log_prob(gold.w), best_log_weights)
    counts = [count for count in COUNTS if count <= num_samples]
    spread = gold.w.var(0).flatten(1).mean(1)
    return Gaps(
        evidence=evidence,
        elbo=elbo_of(target, q, num_samples),
        best_elbo=elbo_of(target, best, num_samples),
        kl_from_gold=(at_gold - q.log_prob(gold.w)).mean(0) - evidence,
        bounds=importance_weighted_bounds(log_weights, counts),
        best_bounds=importance_weighted_bounds(best_log_weights, counts),
        pareto_k=pareto_k(log_weights),
        best_pareto_k=pareto_k(best_log_weights),
        sd_ratio=(q.variance.flatten(1).mean(1) / spread).sqrt(),
    )


def _log_weights(target: Target, proposal: TorchDistribution, num_samples: int) -> Tensor:
    """log p(w, y) - log g(w) [L, T], a part of the draws at a time."""
    parts = []
    for start in range(0, num_samples, CHUNK):
        w = proposal.sample(torch.Size((min(CHUNK, num_samples - start),)))
        parts.append(target.log_joint(w) - proposal.log_prob(w))
    return torch.cat(parts)
