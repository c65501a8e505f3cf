"""Full Bayesian inference by NUTS in a linear mixed model with priors on all parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import HalfNormal, LKJCholesky, MultivariateNormal, Normal
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.exact.mixed_effects import log_likelihood
from pyro_metabayes.exact.sums import Sums, sums_of
from pyro_metabayes.seeding import seeded

CHAINS = 2


@dataclass(frozen=True)
class Draws:
    """L draws by NUTS from the posterior of a mixed model, for T groups with R effects each."""

    coefficients: Tensor  # [L, D]
    factor: Tensor  # [L, R, R], a root of the covariance of the group effects
    noise: Tensor  # standard deviation of the noise [L]; NaN for a likelihood without noise
    effects: Tensor  # weights w = coefficients[:R] + u_g of each group g [L, T, R]
    r_hat: float  # the largest split R-hat of coefficients, standard deviations of effects, and noise
    effective_size: float  # the smallest effective sample size of these parameters

    @property
    def covariance(self) -> Tensor:
        """Covariance [L, R, R] of the R group effects in each draw."""
        return self.factor @ self.factor.mT


def hierarchical(sums: Sums) -> None:
    """Pyro program of a linear mixed model, with the group effects u_g integrated out.

        y_i ~ N(x_i . coefficients + z_i . u_g, noise^2),   u_g ~ N(0, S R S)
        coefficients ~ N(0, 10^2),   S and noise ~ half-normal(1),   R ~ LKJ(1)

    where z_i are the features of x_i with effects u_g of group g, S the diagonal matrix of the standard deviations and
    R the correlation matrix of the effects. The priors are weak for standardised features. Integration over u_g leaves
    few dimensions, without a funnel geometry.

    Args:
        sums: sufficient statistics of the points of each group.
    """
    like, num_random = sums.pp, sums.zz.shape[-1]
    coefficients = pyro.sample("coefficients", Normal(like.new_zeros(len(like) - 1), 10.0).to_event(1))
    sd = pyro.sample("sd", HalfNormal(like.new_ones(num_random)).to_event(1))
    noise = pyro.sample("noise", HalfNormal(like.new_ones(())))
    factor = like.new_ones(1, 1)
    if num_random > 1:
        factor = pyro.sample("correlation", LKJCholesky(num_random, like.new_ones(())))
    pyro.factor("points", log_likelihood(sums, coefficients, sd.unsqueeze(-1) * factor, noise))


def sampled(episodes: Episodes, num_random: int, samples: int, warmup: int, seed: int = 0) -> Draws:
    """Draw from the posterior of a linear mixed model given all query points by NUTS, in float64.

    Given a draw of the other parameters, the group effects are Gaussian and drawn exactly.

    Args:
        episodes: groups as tasks, with all points as queries.
        num_random: number R of leading features with group-specific effects.
        samples: draws of each of the two chains.
        warmup: warm-up steps of each chain.
        seed: seed of both chains and of the effects.

    Raises:
        UsageError: there are fewer than 4 samples, no warm-up steps, or support points in `episodes`.
    """
    sums = sums_of(episodes, num_random)
    sites = chains_of(hierarchical, (sums,), samples, warmup, seed)
    varying = [sites[name] for name in ("coefficients", "sd", "noise")]  # R-hat is undefined for constant entries
    r_hat, size = diagnosed(varying)
    coefficients, sd, noise = (value.flatten(0, 1) for value in varying)
    factor = sd.unsqueeze(-1)
    if num_random > 1:
        factor = factor * sites["correlation"].flatten(0, 1)
    with seeded(seed):
        effects = drawn_effects(sums, coefficients, factor, noise)
    return Draws(coefficients, factor, noise, effects, r_hat, size)


def chains_of(
    model: Callable[..., None],
    arguments: tuple[Any, ...],
    samples: int,
    warmup: int,
    seed: int,
    compiled: bool = False,
) -> dict[str, Tensor]:
    """Run NUTS on a Pyro model.

    Args:
        model: the Pyro program.
        arguments: arguments of the program.
        samples: draws of each chain; there are CHAINS (2) chains.
        warmup: warm-up steps of each chain.
        seed: seed of all chains.
        compiled: whether torch.jit traces the density. The draws are the same.

    Returns:
        Draws [chains, samples, ...] by name of the site.
    """
    if samples < 4 or warmup < 1:
        raise UsageError(
            f"expected samples >= 4 and warmup >= 1 for NUTS, got samples={samples} and warmup={warmup}; "
            "increase the number that is too small"
        )
    chains = []
    for chain in range(CHAINS):
        with seeded(CHAINS * seed + chain):
            kernel = NUTS(model, jit_compile=compiled, ignore_jit_warnings=True)
            mcmc = MCMC(kernel, num_samples=samples, warmup_steps=warmup, disable_progbar=True)
            mcmc.run(*arguments)
            chains.append(mcmc.get_samples())
    return {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}


def diagnosed(varying: Sequence[Tensor]) -> tuple[float, float]:
    """Compute the largest split R-hat and the smallest effective sample size over tensors [chains, samples, ...]."""
    r_hat = max(split_gelman_rubin(value).max().item() for value in varying)
    return r_hat, min(effective_sample_size(value).min().item() for value in varying)


def drawn_effects(sums: Sums, coefficients: Tensor, factor: Tensor, noise: Tensor) -> Tensor:
    """Draw the weights w = coefficients[:R] + F e of each group, given the points and L draws of the parameters.

    Given the points of a group with features z, e is Gaussian with precision I + F^T z^T z F / noise^2.

    Args:
        sums: sufficient statistics of the points of each of T groups.
        coefficients: [L, D], for D features.
        factor: [L, R, R], a root F of the covariance F F^T of the R effects.
        noise: [L], standard deviation of the noise.

    Returns:
        The weights w [L, T, R].
    """
    num_random = factor.shape[-1]
    contrast = torch.cat((-coefficients, torch.ones_like(coefficients[:, :1])), -1)
    residual = torch.einsum("trd,ld->ltr", sums.zp, contrast) / noise.view(-1, 1, 1) ** 2
    wide = factor.unsqueeze(1)  # [L, 1, R, R]
    eye = torch.eye(num_random, dtype=factor.dtype)
    precision = eye + wide.mT @ sums.zz @ wide / noise.view(-1, 1, 1, 1) ** 2
    evidence = wide.mT @ residual.unsqueeze(-1)
    loc = torch.cholesky_solve(evidence, torch.linalg.cholesky(precision)).squeeze(-1)
    unit = MultivariateNormal(loc, precision_matrix=precision).sample()
    return coefficients[:, None, :num_random] + (wide @ unit.unsqueeze(-1)).squeeze(-1)
