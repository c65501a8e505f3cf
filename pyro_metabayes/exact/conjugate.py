"""Posterior, predictions and evidence in closed form for y_i = w x_i + noise, with a Gaussian prior on w."""

from __future__ import annotations

import math

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Normal

from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.cholesky import WithoutWaiting, cholesky, symmetric
from pyro_metabayes.inference.divergences import innermost


def precision_of(prior: TorchDistribution) -> Tensor:
    """Return the precision matrix [T, Y, D, D] of each row of w, for a Gaussian over w [Y, D].

    Raises:
        UsageError: the prior is not Gaussian.
    """
    inner = innermost(prior)
    if isinstance(inner, torch.distributions.MultivariateNormal):
        return inner.precision_matrix
    return torch.diag_embed(_normal(inner).variance.reciprocal())


def _normal(inner: Distribution) -> Normal:
    if isinstance(inner, Normal):
        return inner
    raise UsageError(f"expected a Gaussian prior for a closed form, got {type(inner).__name__}; use prior=gaussian")


def posterior_of_rows(
    prior: TorchDistribution, x: Tensor, y: Tensor, mask: Tensor, noise: Tensor | float
) -> TorchDistribution:
    """Compute the exact posterior of linear regression, y_ik ~ N(w_k . x_i, noise^2), with independent rows w_k of w.

        precision P = P_k + sum_i x_i x_i^T / noise^2
        mean        = P^-1 (P_k m_k + sum_i y_ik x_i / noise^2)

    where P_k and m_k are precision and mean of the prior of w_k. (Bishop 2006, eqs. 3.49 to 3.51.)

    Args:
        prior: a Gaussian over w, batch [T], event [Y, D], for T tasks, Y outputs and D features.
        x: inputs [T, N, D].
        y: labels [T, N, Y].
        mask: [T, N], False for points that are left out.
        noise: standard deviation of a label.

    Returns:
        A Gaussian over w, batch [T], event [Y, D].
    """
    x = x * mask.unsqueeze(-1)
    before = precision_of(prior)
    precision = symmetric(before + (x.mT @ x / noise**2).unsqueeze(-3))  # [T, Y, D, D]
    evidence = (before @ prior.mean.unsqueeze(-1)).squeeze(-1) + y.mT @ x / noise**2  # [T, Y, D]
    factor = cholesky(precision)
    loc = torch.cholesky_solve(evidence.unsqueeze(-1), factor).squeeze(-1)
    with WithoutWaiting():
        return MultivariateNormal(loc, precision_matrix=precision).to_event(1)


def output_variance_of_rows(q: TorchDistribution, x: Tensor) -> Tensor:
    """Compute the variance x_i^T S_k x_i of the outputs w_k . x_i, where S_k is the covariance of row w_k of w.

    Args:
        q: a Gaussian over w, batch [T], event [Y, D], for T tasks, Y outputs and D features.
        x: inputs [T, N, D].

    Returns:
        Tensor [T, N, Y], in the squared unit of the labels.
    """
    return (x.unsqueeze(-3) @ _root_of(q)).square().sum(-1).mT


def log_evidence_of_rows(prior: TorchDistribution, x: Tensor, y: Tensor, mask: Tensor, noise: Tensor | float) -> Tensor:
    """Compute the log evidence log p(y | x) [T] of linear regression in nats, with w integrated out.

    The arguments are those of `posterior_of_rows`. The result is the sum over the outputs k of log p(y_k):

        y_k ~ N(X m_k, X S_k X^T + noise^2 I)
        -2 log p(y_k) = N log(2 pi noise^2) + log |M| + |r - A u|^2 + |u|^2
        A = X R / noise,   r = (y_k - X m_k) / noise,   M = I + A^T A,   u = M^-1 A^T r

    where m_k and S_k = R R^T are mean and covariance of row k of w.
    """
    points, noise = mask.unsqueeze(-1).to(x.dtype), torch.as_tensor(noise)
    residual = ((y - (prior.mean @ x.mT).mT) * points / noise).mT.unsqueeze(-1)  # [T, Y, N, 1]
    reach = (x * points).unsqueeze(-3) @ _root_of(prior) / noise  # [T, Y, N, D]
    factor = torch.linalg.cholesky_ex(_one_like(x) + reach.mT @ reach)[0]  # no check: finite if `reach` is
    explained = torch.cholesky_solve(reach.mT @ residual, factor)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
    quadratic = (residual - reach @ explained).square().sum((-3, -2, -1)) + explained.square().sum((-3, -2, -1))
    constant = mask.sum(-1) * y.shape[-1] * (math.log(2 * math.pi) + 2 * noise.log())
    return -0.5 * (constant + log_det + quadratic)


def _one_like(x: Tensor) -> Tensor:
    """Return the identity matrix with the size of the last axis of x."""
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


def _root_of(q: TorchDistribution) -> Tensor:
    """Return a root R [T, Y, D, D] of the covariance R R^T of each row of w, for a Gaussian over w [Y, D]."""
    inner = innermost(q)
    if isinstance(inner, torch.distributions.MultivariateNormal):
        return inner.scale_tril
    return torch.diag_embed(_normal(inner).stddev)
