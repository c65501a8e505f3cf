"""Mean and variance of distributions of the latent, and estimates of a KL, with Monte-Carlo errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor

from pyro_metabayes.inference.divergences import TORCH_GAUSSIANS, innermost, log_ratio
from pyro_metabayes.inference.laplace import LowRankPrecision
from pyro_metabayes.prediction.averages import standard_error
from pyro_metabayes.seeding import drawing, restored_noise

MOMENT_DRAWS = 100  # draws per task for a moment without a closed form
GAUSSIANS = (*TORCH_GAUSSIANS, LowRankPrecision)


@dataclass(frozen=True, eq=False)
class Moments:
    """Marginal moments of each weight.

    Attributes:
        mean: [T, *W].
        variance: [T, *W].
        error: [T], Monte-Carlo standard error of the variance averaged over the weights; None for closed forms.
    """

    mean: Tensor
    variance: Tensor
    error: Tensor | None = None


def has_normal_marginals(distribution: TorchDistribution) -> bool:
    """Whether the marginal distribution of each weight is normal, so that mean and variance determine it."""
    return isinstance(innermost(distribution), GAUSSIANS)


def extra_draws(distribution: TorchDistribution, num_samples: int) -> Tensor:
    """Draws [L, T, *W] without a gradient; the random state is restored, so that later draws do not change."""
    with restored_noise():
        return draws_of(distribution, num_samples)


def mean_of(distribution: TorchDistribution, num_samples: int = MOMENT_DRAWS) -> Tensor:
    """Mean [T, *W]: the closed form if the distribution has one, else the mean of num_samples draws."""
    try:
        return distribution.mean
    except NotImplementedError:
        return extra_draws(distribution, num_samples).mean(0)


def moments_of(distribution: TorchDistribution, num_samples: int = MOMENT_DRAWS) -> Moments:
    """Mean and variance in closed form if the distribution has both, else estimated from num_samples >= 2 draws."""
    try:
        return Moments(distribution.mean, distribution.variance)
    except NotImplementedError:
        w = extra_draws(distribution, num_samples)
        mean = w.mean(0)
        squares = (w - mean).square().flatten(2).mean(2)  # [L, T]
        return Moments(mean, w.var(0), standard_error(squares))


def kl_from_draws(q: TorchDistribution, p: TorchDistribution, w: Tensor) -> tuple[Tensor, Tensor | None]:
    """Estimate of KL(q, p) [T] in nats from draws w ~ q [L, T, *W], and its standard error [T] for L >= 2."""
    ratio = log_ratio(q, p, w)
    return ratio.mean(0), standard_error(ratio) if len(w) > 1 else None


def pooled_error(errors: Tensor) -> float:
    """Standard error of a mean over T tasks with independent draws, from the standard errors [T] of the tasks."""
    return float(errors.detach().square().mean().sqrt()) / len(errors) ** 0.5


def draws_of(distribution: TorchDistribution, num_samples: int) -> Tensor:
    """Samples [L, T, *W] without a gradient; L is num_samples, or 1 for a point estimate."""
    shape = torch.Size((1 if isinstance(innermost(distribution), Delta) else num_samples,))
    with torch.no_grad(), drawing():  # rsample, since `sample` raises if parameters have overflowed
        return distribution.rsample(shape) if distribution.has_rsample else distribution.sample(shape)
