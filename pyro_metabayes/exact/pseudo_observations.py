"""Posterior of a Gaussian prior given pseudo-observations u_i = b_i . w + e_i with noise e_i ~ N(0, 1)."""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor

from pyro_metabayes.exact.conjugate import precision_of
from pyro_metabayes.inference.cholesky import WithoutWaiting, cholesky, symmetric


def posterior_of_pseudo_observations(prior: TorchDistribution, direction: Tensor, value: Tensor) -> TorchDistribution:
    """Compute the posterior of w given pseudo-observations u_i = b_i . w + e_i, e_i ~ N(0, 1), of each row of w.

    The Y rows of w, of W weights each, are independent. The posterior of a row has precision P = A + sum_i b_i b_i^T
    and mean P^-1 (A m + sum_i b_i u_i).

    Args:
        prior: a Gaussian over w, batch [T], event [Y, W], with mean m and precision A of a row.
        direction: b [T, Y, S, W], for T tasks and S pseudo-observations per row.
        value: u [T, Y, S, 1].

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
    """Compute linear maps from a point to a pseudo-observation, for the exact posterior of a mixed model.

    The model is y_i ~ N(w . z_i + shared . x_i, noise^2), where z_i are the first W of the D features x_i. A point
    gives the pseudo-observation u_i = b_i . w + e_i, e_i ~ N(0, 1), with b_i = z_i / noise = B (x_i, y_i) and
    u_i = (y_i - shared . x_i) / noise = c (x_i, y_i).

    Args:
        num_weights: W.
        shared: [D], coefficients of the features without group effects; 0 for the features z_i.
        noise: standard deviation of the label noise.

    Returns:
        B [W, D + 1] and c [1, D + 1].
    """
    direction, value = (shared.new_zeros(size, len(shared) + 1) for size in (num_weights, 1))
    direction[:, :num_weights] = torch.eye(num_weights) / noise
    value[0, :-1] = -shared / noise
    value[0, -1] = 1 / noise
    return direction, value
