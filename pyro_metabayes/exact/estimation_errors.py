"""Standard errors of a linear mixed model, and predictive intervals widened for these estimation errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import hessian, jacfwd

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.exact.effect_structure import EffectStructure
from pyro_metabayes.exact.mixed_effects import LEAST_VARIANCE, MixedEffects, log_likelihood, maximum_of
from pyro_metabayes.exact.sums import Sums, sums_of

FLAT = 1e-9  # curvature, relative to the largest, below which the likelihood does not determine a direction


@dataclass(frozen=True)
class Widening:
    """Spread of Student-t predictions for Q queries of T groups, with estimation errors.

    Attributes:
        sd: [T, Q], scale of Student's t, in the unit of the label.
        ratio: [T, Q], sd divided by the predictive standard deviation at maximum likelihood, without estimation errors.
        freedom: [T, Q], degrees of freedom of Student's t, at least 1.
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
    and C is the inverse of the observed information of psi (penalised likelihood).

    psi is estimated by restricted maximum likelihood, with a penalty that keeps each sd of an effect above 0. (Kackar
    and Harville 1984, "Approximations for standard errors of estimators of fixed and random effects"; Satterthwaite
    1946.)

    Attributes:
        maximum: the maximum-likelihood estimates, for predictions that ignore the estimation errors.
        psi: vector of the coefficients, the parameters of L, and log noise; noise^2 L L^T is the covariance of effects.
        structure: which effects there are, and which elements of L are parameters.
        covariance: C, a matrix of the size of psi.
    """

    maximum: MixedEffects
    psi: Tensor
    structure: EffectStructure
    covariance: Tensor

    def of_queries(self, observed: Observed, noise: bool = True) -> Widening:
        """Compute the predictive spread for the queries given the support points.

        Args:
            observed: groups as tasks.
            noise: True: predict labels, with noise. False: predict the regression function.
        """
        best = self.maximum
        plug_in = parameters_of(best.coefficients, best.covariance, best.noise, self.structure)
        before = self._moments(plug_in, observed, noise)[..., 1]
        variance = self._moments(self.psi, observed, noise)[..., 1]
        by_psi: Callable[[Tensor], Tensor] = jacfwd(lambda psi: self._moments(psi, observed, noise))
        slopes = by_psi(self.psi)  # [T, Q, 2, P]
        of_mean, of_variance = ((slopes @ self.covariance) * slopes).sum(-1).unbind(-1)
        freedom = (2 * variance.square() / of_variance).clamp(min=1.0)
        sd = (variance + of_mean).sqrt()
        return Widening(sd, sd / before.sqrt(), freedom)

    def _moments(self, psi: Tensor, observed: Observed, noise: bool) -> Tensor:
        """Compute mean and variance of the prediction given psi, per group and query [T, Q, 2]."""
        coefficients, factor, sd = parts_of(psi, self.structure)
        coefficients = self.structure.with_inner(coefficients)
        num_random, mask = len(factor), observed.support_mask.unsqueeze(-1)
        x, y, query = observed.support_x.double() * mask, observed.support_y.double() * mask, observed.query_x.double()
        reach = x[..., :num_random] @ factor / sd
        residual = (y - x @ coefficients.unsqueeze(-1)) / sd
        precision = torch.eye(num_random, dtype=psi.dtype) + reach.mT @ reach
        own = query[..., :num_random] @ factor
        mean = query @ coefficients.unsqueeze(-1) + own @ torch.linalg.solve(precision, reach.mT @ residual)
        variance = (own * torch.linalg.solve(precision, own.mT).mT).sum(-1, keepdim=True) + noise * sd**2
        return torch.cat((mean, variance), -1)


def estimation_errors(
    groups: Episodes, num_random: int, diagonal: bool = False, num_inner: int = 0
) -> EstimationErrors | None:
    """Estimate the parameters and the covariance of their errors from all points of the training groups.

    Args:
        groups: groups as tasks, with all points as queries and one number per label.
        num_random: number R of leading features with group-specific effects.
        diagonal: whether covariances between effects are fixed at 0.
        num_inner: C; the last C of the R features mark the inner groups of nested groups.

    Returns:
        The estimates; None if a likelihood is unbounded or there are too few points.
    """
    maximum = maximum_of(groups, num_random, diagonal, num_inner=num_inner)
    restricted = maximum_of(groups, num_random, diagonal, restricted=True, penalised=True, num_inner=num_inner)
    if maximum is None or restricted is None:
        return None
    structure = EffectStructure(num_random, num_inner, diagonal)
    psi = parameters_of(restricted.coefficients, restricted.covariance, restricted.noise, structure)
    inverse = inverse_information(psi, structure, sums_of(groups, num_random, num_inner))
    return EstimationErrors(maximum, psi, structure, inverse)


def inverse_information(psi: Tensor, structure: EffectStructure, sums: Sums) -> Tensor:
    """Compute the inverse of the observed information of psi under the penalised likelihood.

    Directions of psi in which the likelihood is flat get variance 0. For example, the correlations of an effect with sd
    0 do not change predictions.
    """
    values, directions = torch.linalg.eigh(information(psi, structure, sums, penalised=True))
    inverse = torch.where(values > FLAT * values[-1], values.reciprocal(), 0.0)
    return directions * inverse @ directions.mT


def information(psi: Tensor, structure: EffectStructure, sums: Sums, penalised: bool = False) -> Tensor:
    """Compute the observed information of psi, -d^2 / d psi^2 of the log-likelihood, or of the penalised one."""

    def loss(at: Tensor) -> Tensor:
        coefficients, factor, noise = parts_of(at, structure)
        penalty = (structure.diagonal_of(factor) / noise).abs().log().sum() if penalised else 0.0
        return -log_likelihood(sums, coefficients, factor, noise) - penalty

    curvature: Callable[[Tensor], Tensor] = hessian(loss)
    return curvature(psi)


def parts_of(psi: Tensor, structure: EffectStructure) -> tuple[Tensor, Tensor, Tensor]:
    """Split psi into coefficients (without inner groups), a root of the covariance of effects, and the noise sd."""
    num_elements, noise = int(structure.pattern.max()), psi[-1].exp()
    return psi[: -1 - num_elements], noise * structure.factor(psi[-1 - num_elements : -1]), noise


def parameters_of(coefficients: Tensor, covariance: Tensor, noise: Tensor, structure: EffectStructure) -> Tensor:
    """Concatenate coefficients [D], covariance of the effects [R, R] and noise sd to one vector psi."""
    least = LEAST_VARIANCE * noise**2 * torch.eye(structure.num_random, dtype=noise.dtype)
    factor = torch.linalg.cholesky(covariance + least) / noise
    return torch.cat((structure.without_inner(coefficients), structure.parameters(factor), noise.log().view(1)))


def standard_errors(
    groups: Episodes, structure: EffectStructure, psi: Tensor, function: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Compute standard errors of functions of the covariance of effects and of the noise sd, by the delta method.

    The standard errors are the roots of the diagonal of J C J^T. C is the inverse of the observed information of psi,
    and J is the Jacobian of the function.

    Args:
        groups: groups as tasks, with all points as queries and one number per label.
        structure: the structure of the covariance.
        psi: the estimates, from `parameters_of`.
        function: a function of the covariance of effects [R, R] and the noise sd that returns a vector.

    Returns:
        The standard errors; NaN if the estimates are at the edge of the parameter space, where an sd is 0 or a
        correlation is 1 or -1, or if the information is not positive definite.
    """

    def of_psi(at: Tensor) -> Tensor:
        _, factor, noise = parts_of(at, structure)
        return function(factor @ factor.mT, noise)

    found = information(psi, structure, sums_of(groups, structure.num_random, structure.num_inner))
    by_psi: Callable[[Tensor], Tensor] = jacfwd(of_psi)
    jacobian, (_, factor, noise) = by_psi(psi), parts_of(psi, structure)
    at_edge = (structure.diagonal_of(factor) / noise).abs().min() < 2 * LEAST_VARIANCE**0.5
    if at_edge or torch.linalg.cholesky_ex(found)[1]:
        return jacobian.new_full((len(jacobian),), torch.nan)
    return (jacobian * torch.linalg.solve(found, jacobian.mT).mT).sum(-1).sqrt()
