"""The posterior of a Gaussian prior given pseudo-observations u_i = b_i . w + e_i, e_i ~ N(0, 1)."""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor

from pyro_metabayes.exact.conjugate import precision_of
from pyro_metabayes.inference.cholesky import WithoutWaiting, cholesky


def posterior_of_pseudo_observations(prior: TorchDistribution, direction: Tensor, value: Tensor) -> TorchDistribution:
    """p(w | u) for independent rows w [Y, W]: precision P = A + sum_i b_i b_i^T, mean P^-1 (A m + sum_i b_i u_i).

    Args:
        prior: a Gaussian N(m, A^-1), batch [T], event [Y, W].
        direction: b [T, Y, S, W].
        value: u [T, Y, S, 1].

    Returns:
        A Gaussian, batch [T], event [Y, W].

    Raises:
        UsageError: the prior is not Gaussian.
    """
    before = precision_of(prior)  # [T, Y, W, W]
    evidence = before @ prior.mean.unsqueeze(-1) + direction.mT @ value
    precision = before + direction.mT @ direction
    loc = torch.cholesky_solve(evidence, cholesky(precision)).squeeze(-1)
    with WithoutWaiting():
        return MultivariateNormal(loc, precision_matrix=precision).to_event(1)


def linear_maps(num_weights: int, shared: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """B and c with b_i = B (x_i, y_i) and u_i = c (x_i, y_i) that give the exact posterior of a linear mixed model.

    The model is y_i ~ N(w . z_i + shared . x_i, noise^2), z_i the first W features of x_i. So b_i = z_i / noise and
    u_i = (y_i - shared . x_i) / noise.

    Args:
        num_weights: W.
        shared: shared effects of the features x_i [D], 0 for the features z_i.
        noise: standard deviation of the label noise.

    Returns:
        B [W, D + 1] and c [1, D + 1].
    """
    direction, value = (shared.new_zeros(size, len(shared) + 1) for size in (num_weights, 1))
    direction[:, :num_weights] = torch.eye(num_weights) / noise
    value[0, :-1] = -shared / noise
    value[0, -1] = 1 / noise
    return direction, value
