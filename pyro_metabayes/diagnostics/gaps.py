"""Decomposes the gap of the ELBO into the approximation gap of the family and the amortization gap of the guide.

    log p(y) - ELBO(q) = KL(q, p(w | y)) = approximation gap + amortization gap
    approximation gap = log p(y) - ELBO(q*),   amortization gap = ELBO(q*) - ELBO(q),

with q* the member of q's family that maximises the ELBO of the single task.
(Cremer, Li and Duvenaud 2018, arXiv 1801.03558.)
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
from pyro_metabayes.inference.divergences import closed_form_kl, has_density, innermost, log_ratio
from pyro_metabayes.inference.laplace import LowRankPrecision

Build = Callable[..., TorchDistribution]
COUNTS = (1, 10, 100, 1000, 10_000)  # draws of an importance-weighted bound
CHUNK = 500  # draws per evaluation of the weights


def elbo_of(target: Target, q: TorchDistribution, num_samples: int) -> Tensor:
    """E_q[log p(y | w)] - KL(q, p) [T] from num_samples draws; the KL in closed form where one exists."""
    w = q.rsample(torch.Size((num_samples,)))
    kl = closed_form_kl(q, target.prior)
    if kl is None:
        kl = log_ratio(q, target.prior, w).mean(0)
    return target.log_likelihood(w).mean(0) - kl


def check_density(q: TorchDistribution) -> None:
    if not has_density(q):
        raise UsageError(
            "expected a guide whose posterior has a density for its gaps, got a point estimate; take another"
        )


def best_in_family(
    target: Target, q: TorchDistribution, steps: int = 600, num_samples: int = 8, rate: float = 0.03
) -> TorchDistribution:
    """q*: Adam on the ELBO over all parameters of q, separately for every task, in units of the prior's sd.

    The family is that of q: factorised Gaussians (Normal), Gaussians of the same rank (LowRankPrecision) or Gaussians
    with independent rows (MultivariateNormal). Adam starts at the prior's mean and sd, and in a second run at q; the
    better result of each task is returned.
    """
    at_prior, build = _parameters(target, q, at_prior=True)
    fits = [_ascend(target, start, build, steps, num_samples, rate) for start in (at_prior, _parameters(target, q)[0])]
    with torch.no_grad():
        first, second = (elbo_of(target, build(*parameters), 20 * num_samples) for parameters in fits)
        better = second > first
        best = [
            torch.where(better.view(-1, *[1] * (of_first.dim() - 1)), of_second, of_first)
            for of_first, of_second in zip(*fits, strict=True)
        ]
        return build(*best)


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
    """Free parameters at q, or at the prior, in units of the prior's sd, and the family that they parametrise."""
    family: Any = innermost(q)
    loc, scale = target.loc, target.scale
    mean = torch.zeros_like(loc) if at_prior else ((q.mean - loc) / scale).expand(loc.shape)
    if isinstance(family, LowRankPrecision):
        log_precision = torch.zeros_like(loc) if at_prior else (family.precision * scale**2).log()
        return [mean, log_precision, family.root * scale.unsqueeze(-1)], _low_rank_family(target)
    if isinstance(family, torch.distributions.MultivariateNormal):
        identity = torch.eye(loc.shape[-1], dtype=loc.dtype).expand(*loc.shape, -1)
        return [mean, identity if at_prior else family.scale_tril / scale.unsqueeze(-1)], _row_family(target)
    if isinstance(family, torch.distributions.Normal):
        log_sd = torch.zeros_like(loc) if at_prior else (q.variance.sqrt() / scale).log().expand(loc.shape)
        return [mean, log_sd], _factorised_family(target)
    raise UsageError(f"expected a Gaussian posterior for the best of its family, got {type(family).__name__}")


def _low_rank_family(target: Target) -> Build:
    loc, scale = target.loc, target.scale

    def build(mean: Tensor, log_precision: Tensor, root: Tensor) -> TorchDistribution:
        precision, columns = log_precision.exp() / scale**2, root / scale.unsqueeze(-1)
        return LowRankPrecision(loc + scale * mean, precision, columns, target.event_dim)

    return build


def _row_family(target: Target) -> Build:
    loc, scale = target.loc, target.scale

    def build(mean: Tensor, factor: Tensor) -> TorchDistribution:
        tril = factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).abs() + 1e-8)
        return MultivariateNormal(loc + scale * mean, scale_tril=scale.unsqueeze(-1) * tril).to_event(1)

    return build


def _factorised_family(target: Target) -> Build:
    loc, scale = target.loc, target.scale

    def build(mean: Tensor, log_sd: Tensor) -> TorchDistribution:
        return Normal(loc + scale * mean, scale * log_sd.exp()).to_event(target.event_dim)

    return build


@dataclass(frozen=True)
class Gaps:
    """Gaps of a posterior q for one target, in nats per task [T]; `best` is q*, `gold` are the draws of NUTS.

    evidence: log p(y) by bridge sampling between the gold draws and q*.
    elbo, best_elbo: ELBO of q and of q*.
    kl_from_gold: KL(p(w | y), q) from the gold draws. KL(q, p(w | y)) is the sum of the two gaps.
    bounds, best_bounds [counts, T]: importance-weighted bounds from q and from q* with COUNTS draws.
    pareto_k, best_pareto_k: Pareto k of the importance weights of q and of q*.
    sd_ratio: rms sd of w under q over that of the gold draws.
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
    """Gaps from num_samples draws of q and of q*."""
    log_weights, best_log_weights = (_log_weights(target, proposal, num_samples) for proposal in (q, best))
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
    """log p(w, y) - log g(w) [L, T], in chunks of draws that bound the memory."""
    parts = []
    for start in range(0, num_samples, CHUNK):
        w = proposal.sample(torch.Size((min(CHUNK, num_samples - start),)))
        parts.append(target.log_joint(w) - proposal.log_prob(w))
    return torch.cat(parts)
