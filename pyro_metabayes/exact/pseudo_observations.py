"""Posterior of a Gaussian prior given pseudo-observations u_i = b_i . w + e_i with noise e_i ~ N(0, 1)."""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor

from pyro_metabayes.exact.conjugate import precision_of
from pyro_metabayes.inference.cholesky import WithoutWaiting, cholesky, symmetric


def posterior_of_pseudo_observations(prior: TorchDistribution, direction: Tensor, value: Tensor) -> TorchDistribution:
    """Compute the posterior of w given pseudo-observations u_i = b_i . w + e_i, e_i ~ N(0, 1), of each row of w.

    The rows of w are independent. The posterior of a row is Gaussian:

        precision P = A + sum_i b_i b_i^T
        mean        = P^-1 (A m + sum_i b_i u_i)

    where m and A are mean and precision of the prior of the row.

    Args:
        prior: a Gaussian over w, batch [T], event [Y, W], for T tasks and Y rows of W weights.
        direction: [T, Y, S, W], the vectors b_i of S pseudo-observations per row.
        value: [T, Y, S, 1], the values u_i.

    Returns:
        A Gaussian over w, batch [T], event [Y, W].

    Raises:
        UsageError: the prior is not Gaussian.
    """
    before = precision_of(prior)  # [T, Y, W, W]
    evidence = before @ prior.mean.unsqueeze(-1) + direction.mT @ value
    precision = symmetric(before + direction.mT @ direction)
    loc = torch.cholesky_solve(evidence, cholesky(precision)).squeeze(-1)
    with WithoutWaiting():
        return MultivariateNormal(loc, precision_matrix=precision).to_event(1)


def linear_maps(num_weights: int, shared: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Compute the linear maps B, c from a point to a pseudo-observation that give the exact posterior of a mixed model.

        model: y_i ~ N(w . z_i + shared . x_i, noise^2)
        pseudo-observation: u_i = b_i . w + e_i,   e_i ~ N(0, 1)
        b_i = z_i / noise = B (x_i, y_i)
        u_i = (y_i - shared . x_i) / noise = c (x_i, y_i)

    where z_i are the first W of the D features x_i.

    Args:
        num_weights: number W of weights per group.
        shared: [D], coefficients of the features without group effects; 0 for the features z_i.
        noise: standard deviation of the label noise.

    Returns:
        The maps B [W, D + 1] and c [1, D + 1].
    """
    direction, value = (shared.new_zeros(size, len(shared) + 1) for size in (num_weights, 1))
    direction[:, :num_weights] = torch.eye(num_weights) / noise
    value[0, :-1] = -shared / noise
    value[0, -1] = 1 / noise
    return direction, value
