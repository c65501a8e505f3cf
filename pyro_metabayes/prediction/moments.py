"""Mean and variance of distributions over the weights w, and estimates of a KL from draws, with standard errors."""

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
    """Mean and variance of each weight of T tasks with weights of shape *W.

    Attributes:
        mean: [T, *W].
        variance: [T, *W].
        error: [T], Monte-Carlo standard error of the mean variance over the weights; None for closed forms.
    """

    mean: Tensor
    variance: Tensor
    error: Tensor | None = None


def has_normal_marginals(distribution: TorchDistribution) -> bool:
    """Return whether the marginal distribution of each weight is normal."""
    return isinstance(innermost(distribution), GAUSSIANS)


def extra_draws(distribution: TorchDistribution, num_samples: int) -> Tensor:
    """Draw samples [L, T, *W] without gradient, and restore the random state; later draws do not change.

    L is num_samples, or 1 for a point estimate. T is the number of tasks, *W the shape of the weights of one task.
    """
    with restored_noise():
        return draws_of(distribution, num_samples)


def mean_of(distribution: TorchDistribution, num_samples: int = MOMENT_DRAWS) -> Tensor:
    """Return the mean [T, *W] of the weights, in closed form if there is one, else from num_samples draws."""
    try:
        return distribution.mean
    except NotImplementedError:
        return extra_draws(distribution, num_samples).mean(0)


def moments_of(distribution: TorchDistribution, num_samples: int = MOMENT_DRAWS) -> Moments:
    """Return mean and variance of each weight, in closed form if there is one, else from num_samples >= 2 draws."""
    try:
        return Moments(distribution.mean, distribution.variance)
    except NotImplementedError:
        w = extra_draws(distribution, num_samples)
        mean = w.mean(0)
        squares = (w - mean).square().flatten(2).mean(2)  # [L, T]
        return Moments(mean, w.var(0), standard_error(squares))


def kl_from_draws(q: TorchDistribution, p: TorchDistribution, w: Tensor) -> tuple[Tensor, Tensor | None]:
    """Estimate KL(q, p) of each task from draws of q.

    Args:
        q: distribution over the weights, batch [T], event [*W].
        p: distribution of the same shape.
        w: [L, T, *W], L draws of q.

    Returns:
        The estimate [T] in nats, and the standard error [T] of the estimate; None instead of the error for L = 1.
    """
    ratio = log_ratio(q, p, w)
    return ratio.mean(0), standard_error(ratio) if len(w) > 1 else None


def pooled_error(errors: Tensor) -> float:
    """Compute the standard error of a mean over tasks with independent draws, from the standard errors per task."""
    return float(errors.detach().square().mean().sqrt()) / len(errors) ** 0.5


def draws_of(distribution: TorchDistribution, num_samples: int) -> Tensor:
    """Draw samples [L, T, *W] without gradient; L is num_samples, or 1 for a point estimate.

    T is the number of tasks, *W the shape of the weights of one task.
    """
    shape = torch.Size((1 if isinstance(innermost(distribution), Delta) else num_samples,))
    with torch.no_grad(), drawing():  # rsample, since `sample` raises if parameters have overflowed
        return distribution.rsample(shape) if distribution.has_rsample else distribution.sample(shape)
