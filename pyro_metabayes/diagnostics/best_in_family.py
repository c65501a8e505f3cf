"""Search for the member of a variational family that maximises the ELBO of each single task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal, TorchDistribution
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_metabayes.diagnostics.gold import Target
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import closed_form_kl, innermost, log_ratio
from pyro_metabayes.inference.laplace import LowRankPrecision
from pyro_metabayes.prediction.moments import GAUSSIANS

Build = Callable[..., TorchDistribution]


@runtime_checkable
class HasFamily(Protocol):
    """Interface of a guide with approximate posteriors from a family that is not Gaussian."""

    def family_of(self, q: TorchDistribution) -> tuple[list[Tensor], Build]:
        """Return the parameters of q, and a function that builds a distribution of the family from parameters.

        Args:
            q: a posterior of the guide for T tasks, batch [T].

        Returns:
            The parameters: tensors [T, ...]. Every real value must be valid.
            The function: the parameters of one task must not change the distribution of another task.
        """


def elbo_of(target: Target, q: TorchDistribution, num_samples: int) -> Tensor:
    """Estimate the ELBO of each task from draws of w ~ q.

        ELBO = E_q[log p(y | w)] - KL(q, prior)

    The KL is exact if it has a closed form; otherwise it is a mean over the draws.

    Args:
        target: the prior and the log-likelihood of T tasks.
        q: the approximate posterior, batch [T].
        num_samples: number of draws of w per task.

    Returns:
        Tensor [T], in nats per task.
    """
    w = q.rsample(torch.Size((num_samples,)))
    kl = closed_form_kl(q, target.prior)
    if kl is None:
        kl = log_ratio(q, target.prior, w).mean(0)
    return target.log_likelihood(w).mean(0) - kl


def best_in_family(
    target: Target,
    q: TorchDistribution,
    steps: int = 600,
    num_samples: int = 8,
    rate: float = 0.03,
    guide: object = None,
) -> TorchDistribution:
    """Find q*, the member of the variational family of q with the largest ELBO, for each task by Adam.

    If the guide has the method `family_of`, this method defines the family, and Adam starts at q. Otherwise the type of
    q defines the family:

        Normal: factorised Gaussians.
        LowRankPrecision: Gaussians whose precision is diagonal plus low rank, with the rank of q.
        MultivariateNormal: Gaussians with independent rows of w.
        LowRankMultivariateNormal: Gaussians with independent rows of w, whose covariance is diagonal plus low rank.

    For these families Adam runs twice, from the moments of the prior and from q. Each task gets the better result.

    Args:
        target: the prior and the log-likelihood of T tasks.
        q: the approximate posterior of the guide, batch [T].
        steps: number of steps of Adam.
        num_samples: draws of w per step.
        rate: initial learning rate of Adam; for a Gaussian family, of parameters in units of the sd of the prior.
        guide: the guide that computed q; needed only if q is not Gaussian.

    Returns:
        q*, batch [T].

    Raises:
        UsageError: q is not Gaussian and the guide has no `family_of`; or the family has no reparametrised draws.
    """
    if isinstance(guide, HasFamily):
        start, build = guide.family_of(q)
        if not build(*start).has_rsample:
            raise UsageError(
                "expected a posterior with reparametrised draws (rsample) to search the best member of its family, "
                f"got {type(innermost(q)).__name__}; use another guide"
            )
        return build(*_ascend(target, start, build, steps, num_samples, rate))
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
    """Return the start values of Adam, and a function from parameters to a distribution.

    The parameters are in units of the sd of the prior. With `at_prior`, the start values come from the prior instead of
    q, except low-rank factors.
    """
    family: Any = innermost(q)
    loc, scale = target.loc, target.scale
    if not isinstance(family, GAUSSIANS):
        raise UsageError(
            "expected a Gaussian posterior, or a guide with the method family_of, got a posterior of type "
            f"{type(family).__name__}; define family_of (docs/gold.md)"
        )
    mean = torch.zeros_like(loc) if at_prior else ((q.mean - loc) / scale).expand(loc.shape)
    if isinstance(family, LowRankPrecision):
        log_precision = torch.zeros_like(loc) if at_prior else (family.precision * scale**2).log()
        return [mean, log_precision, family.root * scale.unsqueeze(-1)], _low_rank_family(target)
    if isinstance(family, torch.distributions.MultivariateNormal):
        identity = torch.eye(loc.shape[-1], dtype=loc.dtype).expand(*loc.shape, -1)
        return [mean, identity if at_prior else family.scale_tril / scale.unsqueeze(-1)], _row_family(target)
    if isinstance(family, torch.distributions.LowRankMultivariateNormal):
        log_variance = torch.zeros_like(loc) if at_prior else (family.cov_diag / scale**2).log().expand(loc.shape)
        factor = (family.cov_factor / scale.unsqueeze(-1)).expand(*loc.shape, -1)
        return [mean, log_variance, factor], _low_rank_rows_family(target)
    log_sd = torch.zeros_like(loc) if at_prior else (q.variance.sqrt() / scale).log().expand(loc.shape)
    return [mean, log_sd], _factorised_family(target)


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


def _low_rank_rows_family(target: Target) -> Build:
    loc, scale = target.loc, target.scale

    def build(mean: Tensor, log_variance: Tensor, factor: Tensor) -> TorchDistribution:
        columns, variance = factor * scale.unsqueeze(-1), log_variance.exp() * scale**2
        return LowRankMultivariateNormal(loc + scale * mean, columns, variance).to_event(1)

    return build


def _factorised_family(target: Target) -> Build:
    loc, scale = target.loc, target.scale

    def build(mean: Tensor, log_sd: Tensor) -> TorchDistribution:
        return Normal(loc + scale * mean, scale * log_sd.exp()).to_event(target.event_dim)

    return build
