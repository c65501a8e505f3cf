"""The generalised linear mixed model with priors on all parameters, by NUTS."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import HalfNormal, LKJCholesky, Normal
from torch import Tensor

from pyro_metabayes.exact.generalised import Points, likelihood_of
from pyro_metabayes.exact.hierarchical_nuts import Draws, chains_of, diagnosed


def generalised(points: Points, num_random: int, family: str) -> None:
    """y_i ~ family(x_i . coefficients + offset_i + z_i . u_g), u_g = S R^(1/2) e_g, e_g ~ N(0, I).

    Weak priors for standardised columns: coefficients ~ N(0, 10^2), sds S ~ half-normal(1), correlations
    R ~ LKJ(1). The e_g, not the u_g, are sampled, which avoids the funnel of the u_g where a group has few points.
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
    """Draws from the posterior, in float64; their noise is NaN, since the family has none.

    Args:
        points: of all groups.
        num_random: R, the number of leading features with effects that vary by group.
        family: "bernoulli" or "poisson".
        samples: draws of each of the two chains.
        warmup: steps of adaptation of each chain.
        seed: of both chains.

    Raises:
        UsageError: fewer than 4 samples, or no warm-up.
    """
    sites = chains_of(generalised, (points, num_random, family), samples, warmup, seed, compiled=True)
    r_hat, size = diagnosed([sites["coefficients"], sites["sd"]])
    coefficients, factor = sites["coefficients"].flatten(0, 1), sites["sd"].flatten(0, 1).unsqueeze(-1)
    if num_random > 1:
        factor = factor * sites["correlation"].flatten(0, 1)
    effects = coefficients[:, None, :num_random] + sites["unit"].flatten(0, 1) @ factor.mT
    noise: Tensor = torch.full_like(coefficients[:, 0], torch.nan)
    return Draws(coefficients, factor, noise, effects, r_hat, size)
