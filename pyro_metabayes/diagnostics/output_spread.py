"""How much draws from a prior or a posterior change the predictions."""

from __future__ import annotations

from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.diagnostics.collapse_metrics import Spread
from pyro_metabayes.distributions.latin_square import LatinSquare
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.divergences import has_density, innermost
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.likelihoods.draws import Drawn, likelihood_of_draws
from pyro_metabayes.likelihoods.predictions import Predictions, registered
from pyro_metabayes.prediction.averages import masked_mean
from pyro_metabayes.seeding import restored_noise


def output_spread(drawn: Drawn, mask: Tensor) -> Spread:
    """Means over the queries, and sums of information, of a likelihood with batch [L, T, Q].

    The estimates of the registered families are those for independent draws. The mean of the draws of a Latin square
    has no error of first order, so that no degree of freedom is lost to it. The C classes of different draws share
    noise, and the draws of a pair too, so that 2 C times the variance is an upper bound on that of information.
    """
    family: Any = innermost(drawn.likelihood)
    return _of_tasks(registered(family).spread(family), drawn.square, mask)


def _of_tasks(values: dict[str, Tensor], square: LatinSquare | None, mask: Tensor) -> Spread:
    count = mask.sum(-1)
    factors = {} if square is None else _factors(square)
    return {
        name: masked_mean(value, mask) * (count if name.startswith("information") else 1) * factors.get(name, 1)
        for name, value in values.items()
    }


def _factors(square: LatinSquare) -> dict[str, float]:
    """Factors from estimates for independent draws to those for a Latin square."""
    of_mean = (square.num_samples - 1) / square.num_samples
    error = of_mean * (2 * square.num_rows) ** 0.5
    return {"logit_variance": of_mean, "information": of_mean, "information_error": error}


def posterior_outputs(
    learner: MetaLearner,
    observed: Observed,
    q: TorchDistribution,
    num_samples: int,
    square: LatinSquare | None = None,
    draws: Predictions | None = None,
) -> Spread:
    """logit_variance, disagreement and information of a posterior, named posterior_...; {} for a point estimate.

    Args:
        learner: its model makes the predictions.
        observed: T tasks.
        q: a distribution over w, batch [T].
        num_samples: number of draws, at least two of which are taken.
        square, draws: predictions for classes under draws of q by a Latin square, which are used again.
    """
    if not has_density(q):
        return {}
    if square is not None and isinstance(draws, ClassPredictions):
        spread = _of_tasks(draws.variation, square, observed.query_mask)
    else:
        with restored_noise():
            drawn = likelihood_of_draws(learner.model, q, observed, max(num_samples, 2))
        spread = output_spread(drawn, observed.query_mask)
    return {f"posterior_{name}": value for name, value in spread.items()}
