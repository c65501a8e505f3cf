"""Full Bayesian inference by NUTS in a generalised linear mixed model with priors on all parameters."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import HalfNormal, LKJCholesky, Normal
from torch import Tensor

from pyro_metabayes.exact.generalised import Points, likelihood_of
from pyro_metabayes.exact.hierarchical_nuts import Draws, chains_of, diagnosed


def generalised(points: Points, num_random: int, family: str) -> None:
    """Pyro program of a generalised linear mixed model.

        y_i ~ family(x_i . coefficients + offset_i + z_i . u_g)
        u_g = S R^(1/2) e_g,   e_g ~ N(0, I)
        coefficients ~ N(0, 10^2),   S ~ half-normal(1),   R ~ LKJ(1)

    where z_i are the features of x_i with effects u_g of group g, S the diagonal matrix of the standard deviations and
    R the correlation matrix of the effects. The priors are weak for standardised features. The latent sites are e_g,
    because u_g has a funnel geometry for groups with few points.

    Args:
        points: the points of all groups.
        num_random: number of leading features with group-specific effects.
        family: "bernoulli" or "poisson".
    """
    like = points.x
    coefficients = pyro.sample("coefficients", Normal(like.new_zeros(like.shape[1]), 10.0).to_event(1))
    sd = pyro.sample("sd", HalfNormal(like.new_ones(num_random)).to_event(1))
    factor = like.new_ones(1, 1)
    if num_random > 1:
        factor = pyro.sample("correlation", LKJCholesky(num_random, like.new_ones(())))
    unit = pyro.sample("unit", Normal(like.new_zeros(points.num_groups, num_random), 1.0).to_event(2))
    effects = unit @ (sd.unsqueeze(-1) * factor).mT
    eta = like @ coefficients + points.offset + (like[:, :num_random] * effects[points.group]).sum(-1)
    pyro.factor("points", likelihood_of(eta, family).log_prob(points.y).sum())


def sampled_generalised(
    points: Points, num_random: int, family: str, samples: int, warmup: int, seed: int = 0
) -> Draws:
    """Draw from the posterior of a generalised linear mixed model by NUTS, in float64.

    `Draws.noise` is NaN, because the likelihood has no noise parameter.

    Args:
        points: the points of all groups.
        num_random: number of leading features with group-specific effects.
        family: "bernoulli" or "poisson".
        samples: draws of each of the two chains.
        warmup: warm-up steps of each chain.
        seed: seed of both chains.

    Raises:
        UsageError: there are fewer than 4 samples or no warm-up steps.
    """
    sites = chains_of(generalised, (points, num_random, family), samples, warmup, seed, compiled=True)
    r_hat, size = diagnosed([sites["coefficients"], sites["sd"]])
    coefficients, factor = sites["coefficients"].flatten(0, 1), sites["sd"].flatten(0, 1).unsqueeze(-1)
    if num_random > 1:
        factor = factor * sites["correlation"].flatten(0, 1)
    effects = coefficients[:, None, :num_random] + sites["unit"].flatten(0, 1) @ factor.mT
    noise: Tensor = torch.full_like(coefficients[:, 0], torch.nan)
    return Draws(coefficients, factor, noise, effects, r_hat, size)
