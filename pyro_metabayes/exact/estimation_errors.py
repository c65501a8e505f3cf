"""Predictive intervals of a linear mixed model, widened for the estimation errors of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import hessian, jacfwd

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.exact.mixed_effects import (
    LEAST_VARIANCE,
    MixedEffects,
    Sums,
    log_likelihood,
    maximum_of,
    sums_of,
)

FLAT = 1e-9  # curvature, relative to the largest, below which the likelihood does not determine a direction


@dataclass(frozen=True)
class Widening:
    """Spread of Student-t predictions for Q queries of T groups, with estimation errors.

    Attributes:
        sd: [T, Q], scale of Student's t, in the unit of the label.
        ratio: [T, Q], sd divided by the predictive standard deviation at maximum likelihood, without estimation errors.
        freedom: [T, Q], degrees of freedom of Student's t.
    """

    sd: Tensor
    ratio: Tensor
    freedom: Tensor

    def quantile(self, level: float) -> Tensor:
        """Compute the half width of the central interval with probability `level` in units of sd, per query [T, Q]."""
        from scipy.special import stdtrit  # here, since a command would import it at its start

        return torch.from_numpy(stdtrit(self.freedom.numpy(), 0.5 + level / 2))


@dataclass(frozen=True)
class EstimationErrors:
    """Estimates psi of the parameters of a linear mixed model, and the covariance C of the estimation errors.

    A prediction is Student's t with mean m, scale s and df degrees of freedom:

        s^2 = v + grad m^T C grad m
        df = 2 v^2 / (grad v^T C grad v)

    where m(psi) and v(psi) are mean and variance of the prediction given psi, grad is the gradient with respect to psi,
    and C is the inverse of the observed information of psi.

    psi is estimated by restricted maximum likelihood, with a penalty that keeps each sd of an effect above 0. (Kackar
    and Harville 1984, "Approximations for standard errors of estimators of fixed and random effects"; Satterthwaite
    1946.)

    Attributes:
        maximum: the maximum-likelihood estimates, for predictions without estimation errors.
        psi: vector of the coefficients, the free elements of L, and log noise. The covariance of the effects is
            noise^2 L L^T.
        free: [R, R], True for the estimated elements of L, for R effects per group.
        covariance: matrix C, with one row per element of psi.
    """

    maximum: MixedEffects
    psi: Tensor
    free: Tensor
    covariance: Tensor

    def of_queries(self, observed: Observed, noise: bool = True) -> Widening:
        """Compute the predictive spread for the queries given the support points.

        Args:
            observed: groups as tasks.
            noise: True: predict labels, with noise. False: predict the regression function.
        """
        before = self._moments(_parameters(self.maximum, self.free), observed, noise)[..., 1]
        variance = self._moments(self.psi, observed, noise)[..., 1]
        by_psi: Callable[[Tensor], Tensor] = jacfwd(lambda psi: self._moments(psi, observed, noise))
        slopes = by_psi(self.psi)  # [T, Q, 2, P]
        of_mean, of_variance = ((slopes @ self.covariance) * slopes).sum(-1).unbind(-1)
        freedom = (2 * variance.square() / of_variance).clamp(min=1.0)
        sd = (variance + of_mean).sqrt()
        return Widening(sd, sd / before.sqrt(), freedom)

    def _moments(self, psi: Tensor, observed: Observed, noise: bool) -> Tensor:
        """Compute mean and variance of the prediction given psi, per group and query [T, Q, 2]."""
        coefficients, factor, sd = _parts(psi, self.free)
        num_random, mask = len(factor), observed.support_mask.unsqueeze(-1)
        x, y, query = observed.support_x.double() * mask, observed.support_y.double() * mask, observed.query_x.double()
        reach = x[..., :num_random] @ factor / sd
        residual = (y - x @ coefficients.unsqueeze(-1)) / sd
        precision = torch.eye(num_random, dtype=psi.dtype) + reach.mT @ reach
        own = query[..., :num_random] @ factor
        mean = query @ coefficients.unsqueeze(-1) + own @ torch.linalg.solve(precision, reach.mT @ residual)
        variance = (own * torch.linalg.solve(precision, own.mT).mT).sum(-1, keepdim=True) + noise * sd**2
        return torch.cat((mean, variance), -1)


def estimation_errors(groups: Episodes, num_random: int, diagonal: bool = False) -> EstimationErrors | None:
    """Estimate the parameters, and the covariance of the estimation errors, from all points of the training groups.

    Args:
        groups: groups as tasks, with all points as queries and one number per label.
        num_random: number R of leading features with group-specific effects.
        diagonal: whether covariances between effects are fixed at 0.

    Returns:
        The estimates; None if a likelihood is unbounded or there are too few points.
    """
    maximum = maximum_of(groups, num_random, diagonal)
    restricted = maximum_of(groups, num_random, diagonal, restricted=True, penalised=True)
    if maximum is None or restricted is None:
        return None
    every = torch.ones(num_random, num_random, dtype=torch.bool)
    free = torch.eye(num_random, dtype=torch.bool) if diagonal else every.tril()
    psi = _parameters(restricted, free)
    return EstimationErrors(maximum, psi, free, _inverse_information(psi, free, sums_of(groups, num_random)))


def _inverse_information(psi: Tensor, free: Tensor, sums: Sums) -> Tensor:
    """Compute the inverse of the observed information, -d^2 / d psi^2 of the penalised log-likelihood.

    Directions of psi in which the likelihood is flat get variance 0. An example: the correlations of an effect with sd
    0, which do not change predictions.
    """

    def loss(at: Tensor) -> Tensor:
        coefficients, factor, noise = _parts(at, free)
        penalty = (factor.diagonal() / noise).abs().log().sum()
        return -log_likelihood(sums, coefficients, factor, noise) - penalty

    curvature: Callable[[Tensor], Tensor] = hessian(loss)
    values, directions = torch.linalg.eigh(curvature(psi))
    inverse = torch.where(values > FLAT * values[-1], values.reciprocal(), 0.0)
    return directions * inverse @ directions.mT


def _parts(psi: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split psi into the coefficients, a Cholesky factor of the covariance of the effects, and the noise sd."""
    rows, columns = free.nonzero(as_tuple=True)
    elements, noise = psi[-1 - len(rows) : -1], psi[-1].exp()
    factor = torch.zeros(free.shape, dtype=psi.dtype).index_put((rows, columns), elements)
    return psi[: -1 - len(rows)], noise * factor, noise


def _parameters(fitted: MixedEffects, free: Tensor) -> Tensor:
    """Concatenate the fitted parameters to the vector psi; `free` marks the estimated elements of the factor."""
    least = LEAST_VARIANCE * fitted.noise**2 * torch.eye(len(free), dtype=fitted.noise.dtype)
    factor = torch.linalg.cholesky(fitted.covariance + least) / fitted.noise
    return torch.cat((fitted.coefficients, factor[free], fitted.noise.log().view(1)))
