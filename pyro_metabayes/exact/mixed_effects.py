"""Linear mixed models: maximum likelihood (empirical Bayes) and restricted maximum likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Size, Tensor

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.conjugate import posterior_of_rows
from pyro_metabayes.exact.effect_structure import EffectStructure
from pyro_metabayes.exact.sums import Sums, sums_of

LEAST_NOISE = 1e-4  # with smaller noise, in sds of the labels, the effects fit every point: unbounded likelihood
LEAST_VARIANCE = 1e-4  # added to the variance of an effect, in noise variances, since a variance of 0 has no inverse
STARTS = (1.0, 0.3, 0.1)  # start values of sd / noise; a long first step may end at L = 0, where the gradient is 0


@dataclass(frozen=True)
class MixedEffects:
    """Estimates of a linear mixed model, y_i = x_i . coefficients + z_i . u_g + noise e_i.

    z_i are the first R of the D features x_i, which have effects u_g of group g, and e_i ~ N(0, 1). The coefficients of
    inner groups (`EffectStructure`) are 0.
    """

    coefficients: Tensor  # [D]
    errors: Tensor  # covariance of the estimated coefficients [D, D]
    covariance: Tensor  # of the group effects [R, R]
    noise: Tensor  # standard deviation, a scalar
    log_likelihood: float  # of all points, in nats; the restricted log-likelihood after restricted maximisation

    def effects(self, observed: Observed) -> TorchDistribution:
        """Compute p(w | support), batch [T], event [1, R], of the weights w = coefficients[:R] + u_g of each group.

        The mean is the best linear unbiased prediction. The variance ignores the estimation errors.
        """
        num_random = len(self.covariance)
        x, y = observed.support_x.double(), observed.support_y.double()
        # A singular covariance has no precision matrix, so a negligible variance is added.
        some = 1e-12 * self.noise**2 * torch.eye(num_random, dtype=x.dtype)
        prior = MultivariateNormal(self.coefficients[:num_random], self.covariance + some)
        rows = prior.expand(Size((len(x), 1))).to_event(1)
        own = x[..., :num_random], y - self.shared(x)
        return posterior_of_rows(rows, *own, observed.support_mask, self.noise)

    def shared(self, x: Tensor) -> Tensor:
        """Compute the contribution of the features without group effects to the mean of each point [..., 1]."""
        num_random = len(self.covariance)
        return x[..., num_random:] @ self.coefficients[num_random:].unsqueeze(-1)


def fit(
    episodes: Episodes,
    num_random: int,
    restricted: bool = False,
    diagonal: bool = False,
    penalised: bool = False,
    num_inner: int = 0,
) -> MixedEffects:
    """Fit a linear mixed model to all n query points by (restricted) maximum likelihood, in float64.

        -2 log p(y) = sum_g log |M_g| + n (1 + log(2 pi r / n)),   M_g = I + L^T z^T z L
        r = |y - x b|^2 - sum_g |M_g^{-1/2} L^T z^T (y - x b)|^2,   noise^2 = r / n

    where noise^2 L L^T is the covariance, and b are the generalised least-squares coefficients. L-BFGS optimises only
    L. (Bates et al. 2015, "Fitting linear mixed-effects models using lme4", eqs. 34 and 41.)

    Args:
        episodes: groups as tasks, with all points as queries and one number per label.
        num_random: number R of leading features with group-specific effects.
        restricted: whether to use restricted maximum likelihood. -2 log p(y) then has the further term
            log |x^T V^-1 x| with V = I + z L L^T z^T, and n - D replaces n.
        diagonal: whether covariances between effects are fixed at 0.
        penalised: whether 2 log |L| is added to 2 log p(y), so that no estimated sd is 0: the prior density of L is
            proportional to |L|. The sd of inner groups counts once in |L|. `log_likelihood` of the result does not
            contain this term. (Chung et al. 2013, "A nondegenerate penalized likelihood estimator for variance
            parameters in multilevel models".)
        num_inner: C; the last C of the R features mark the inner groups of nested groups (`EffectStructure`).

    Raises:
        UsageError: there are support points, labels have several numbers, or there are at most D points.
    """
    structure = EffectStructure(num_random, num_inner, diagonal)
    sums = sums_of(episodes, num_random, num_inner)
    num_coefficients = len(sums.pp) - 1
    if sums.num_points <= num_coefficients:
        raise UsageError(
            f"expected more points than the {num_coefficients} coefficients, got {sums.num_points} points; add data"
        )
    scale = _scale(sums, structure)

    def loss(theta: Tensor) -> Tensor:
        found = scale * structure.factor(theta)
        penalty = 2 * structure.diagonal_of(found).abs().log().sum() if penalised else 0.0
        return _deviance(sums, found, restricted)[0] - penalty

    start = structure.parameters(torch.eye(num_random, dtype=scale.dtype))
    theta = min((_descended(loss, size * start) for size in STARTS), key=lambda theta: loss(theta).item())
    with torch.no_grad():
        found = scale * structure.factor(theta)
        deviance, coefficients, variance, errors = _deviance(sums, found, restricted)
    errors = structure.with_inner(structure.with_inner(variance * errors).mT)
    coefficients = structure.with_inner(coefficients)
    return MixedEffects(coefficients, errors, variance * found @ found.mT, variance.sqrt(), -0.5 * deviance.item())


def _scale(sums: Sums, structure: EffectStructure) -> Tensor:
    """Return the scale of L for features of any scale [R, 1]; features of inner groups, 0 and 1, have scale 1."""
    mean_square = sums.zz.diagonal(dim1=-2, dim2=-1).sum(0) / sums.num_points
    mean_square[structure.num_own :] = 1.0
    return mean_square.rsqrt().unsqueeze(-1)


def errors_of(episodes: Episodes, covariance: Tensor, noise: Tensor, num_inner: int = 0) -> Tensor:
    """Compute the covariance [D, D] of the estimated coefficients, given covariance of effects [R, R] and noise sd."""
    structure = EffectStructure(len(covariance), num_inner)
    factor = torch.linalg.cholesky(covariance.double()) / noise.double()
    errors = noise.double() ** 2 * _deviance(sums_of(episodes, len(covariance), num_inner), factor, False)[3]
    return structure.with_inner(structure.with_inner(errors).mT)


def maximum_of(
    episodes: Episodes,
    num_random: int,
    diagonal: bool = False,
    restricted: bool = False,
    penalised: bool = False,
    num_inner: int = 0,
) -> MixedEffects | None:
    """Call `fit` for labels with sd 1; return None if the likelihood is unbounded or there are too few points."""
    # The line search of torch's L-BFGS raises an IndexError if the likelihood is not finite.
    with suppress(UsageError, torch.linalg.LinAlgError, IndexError):
        found = fit(episodes, num_random, restricted, diagonal, penalised, num_inner)
        if found.noise > LEAST_NOISE and math.isfinite(found.log_likelihood):
            return found
    return None


def _descended(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    theta = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(theta)
        value.backward()
        return value

    optimiser.step(closure)
    return theta.detach()


def log_likelihood(sums: Sums, coefficients: Tensor, factor: Tensor, noise: Tensor) -> Tensor:
    """Compute log p(y | x) of a linear mixed model in nats, with the effects integrated out.

    Args:
        sums: sufficient statistics of the points.
        coefficients: [D], one per feature.
        factor: [R, R], a root of the covariance of the R group effects.
        noise: standard deviation of the noise, a scalar.
    """
    contrast = torch.cat((-coefficients, coefficients.new_ones(1)))  # (x, y) @ contrast = y - x . coefficients
    root = torch.linalg.cholesky(torch.eye(len(factor), dtype=factor.dtype) + factor.mT @ sums.zz @ factor / noise**2)
    explained = torch.linalg.solve_triangular(root, factor.mT @ (sums.zp @ contrast).unsqueeze(-1) / noise, upper=False)
    quadratic = (contrast @ sums.pp @ contrast - explained.square().sum()) / noise**2
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum() + sums.num_points * (2 * math.pi * noise**2).log()
    return -0.5 * (log_det + quadratic)


def _deviance(sums: Sums, factor: Tensor, restricted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the deviance -2 log p(y) at L (`factor`), with the optimal coefficients and noise variance.

    Returns the deviance, the coefficients, the noise variance, and (x^T V^-1 x)^-1 with V of `fit`.
    """
    root = torch.linalg.cholesky(torch.eye(len(factor), dtype=factor.dtype) + factor.mT @ sums.zz @ factor)
    explained = torch.linalg.solve_triangular(root, factor.mT @ sums.zp, upper=False)
    whole = sums.pp - (explained.mT @ explained).sum(0)  # (x, y)^T V^-1 (x, y)
    precision, evidence = whole[:-1, :-1], whole[:-1, -1]
    of_precision = torch.linalg.cholesky(precision)
    coefficients = torch.cholesky_solve(evidence.unsqueeze(-1), of_precision).squeeze(-1)
    freedom = sums.num_points - restricted * len(coefficients)
    variance = (whole[-1, -1] - evidence @ coefficients) / freedom
    deviance = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum() + freedom * (1 + (2 * math.pi * variance).log())
    if restricted:
        deviance = deviance + 2 * of_precision.diagonal().log().sum()
    return deviance, coefficients, variance, torch.cholesky_inverse(of_precision)
