"""Closed forms of posterior and evidence for y_i = w x_i + noise with a Gaussian prior on w."""

from __future__ import annotations

import math

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.cholesky import WithoutWaiting, cholesky
from pyro_metabayes.inference.divergences import innermost


def precision_of(prior: TorchDistribution) -> Tensor:
    """Precision [T, Y, D, D] of each row of w [Y, D] under a Gaussian, diagonal or full.

    Raises:
        UsageError: the prior is not Gaussian.
    """
    inner = innermost(prior)
    if isinstance(inner, torch.distributions.MultivariateNormal):
        return inner.precision_matrix
    return torch.diag_embed(_normal(inner).variance.reciprocal())


def covariance_of(prior: TorchDistribution) -> Tensor:
    """Covariance [T, Y, D, D] of each row of w [Y, D] under a Gaussian, diagonal or full.

    Raises:
        UsageError: the prior is not Gaussian.
    """
    inner = innermost(prior)
    if isinstance(inner, torch.distributions.MultivariateNormal):
        return inner.covariance_matrix
    return torch.diag_embed(_normal(inner).variance)


def _normal(inner: Distribution) -> Normal:
    if isinstance(inner, Normal):
        return inner
    raise UsageError(f"expected a Gaussian prior for a closed form, got {type(inner).__name__}; take prior=gaussian")


def posterior_of_rows(
    prior: TorchDistribution, x: Tensor, y: Tensor, mask: Tensor, noise: Tensor | float
) -> TorchDistribution:
    """p(w | x, y) for y_ik ~ N(w_k . x_i, noise^2), the rows w_k independent: batch [T], event [Y, D].

    With prior precision P_k and mean m_k: precision P_k + sum_i x_i x_i^T / noise^2, mean
    precision^-1 (P_k m_k + sum_i y_ik x_i / noise^2). (Bishop 2006, eqs. 3.49 to 3.51.)

    Args:
        prior: a Gaussian, batch [T], event [Y, D].
        x: inputs [T, N, D].
        y: labels [T, N, Y].
        mask: [T, N].
        noise: standard deviation of a label.
    """
    x = x * mask.unsqueeze(-1)
    before = precision_of(prior)
    precision = before + (x.mT @ x / noise**2).unsqueeze(-3)  # [T, Y, D, D]
    evidence = (before @ prior.mean.unsqueeze(-1)).squeeze(-1) + y.mT @ x / noise**2  # [T, Y, D]
    factor = cholesky(precision)
    loc = torch.cholesky_solve(evidence.unsqueeze(-1), factor).squeeze(-1)
    with WithoutWaiting():
        return MultivariateNormal(loc, precision_matrix=precision).to_event(1)


def log_evidence_of_rows(prior: TorchDistribution, x: Tensor, y: Tensor, mask: Tensor, noise: Tensor | float) -> Tensor:
    """log p(y | x) [T] in nats, w integrated out: y_k ~ N(X m_k, X P_k^-1 X^T + noise^2 I) for each output k.

    The arguments are those of `posterior_of_rows`.
    """
    points = mask.unsqueeze(-1).to(x.dtype)
    x, y = x * points, y * points
    covariance = x.unsqueeze(-3) @ covariance_of(prior) @ x.mT.unsqueeze(-3)
    covariance = covariance + torch.as_tensor(noise) ** 2 * torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    with WithoutWaiting():
        log_prob = MultivariateNormal((x @ prior.mean.mT).mT, covariance).log_prob(y.mT).sum(-1)
    # A masked point is a label 0 with mean 0 and the variance of the noise; its density is removed.
    masked = (~mask).sum(-1) * y.shape[-1]
    return log_prob + masked * (torch.as_tensor(noise).log() + 0.5 * math.log(2 * math.pi))
