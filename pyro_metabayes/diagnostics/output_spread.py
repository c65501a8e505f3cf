"""Variation of the predictions over draws of w from a prior or a posterior."""

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
    """Measure the variation of the predictions over L draws of w, one value per task [T].

    The L draws may form a Latin square (distributions/latin_square.py). Such draws are dependent, which changes three
    estimates. `logit_variance` and `information` are divided by L instead of L - 1, because the mean of the draws has
    no first-order error. `information_error` is multiplied by (L - 1) / L and by sqrt(2 C) for C rows of w, which gives
    an upper bound.

    Args:
        drawn: the likelihood under the draws of w, batch [L, T, Q], and how the draws share noise.
        mask: [T, Q], False for queries that are left out.

    Returns:
        Tensors [T] by name, for each spread that the likelihood defines. `information` is the sum over the queries,
            any other spread the mean over the queries.
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
    """Return the factors, by name, that correct the estimates of `output_spread` for draws of a Latin square."""
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
    """Measure the variation of the predictions over draws of w from a posterior.

    Args:
        learner: the learner whose model makes the predictions.
        observed: T tasks with features as inputs.
        q: the posterior over w, batch [T].
        num_samples: number of draws of w; at least 2 are taken.
        square: the Latin square from which `draws` was computed; None: `draws` is ignored.
        draws: predictions under earlier draws of q, to be reused; None: new draws are taken.

    Returns:
        Tensors [T] of `output_spread` with the prefix posterior_; {} for a point estimate.
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
