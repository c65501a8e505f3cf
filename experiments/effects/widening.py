"""Prediction intervals and intervals of effects that account for errors of the estimated parameters of a run."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.episodes import Observed
from pyro_metabayes.exact.estimation_errors import EstimationErrors, Widening
from pyro_metabayes.experiments.partial_pooling.methods import GroupEstimates, LinearMixedModel, StandardisedEstimates
from pyro_metabayes.experiments.runs.grouped_data import has_independent_effects
from pyro_metabayes.inference.capabilities import has
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.prediction.numbers import INTERVAL, NumberPrediction

LEVEL = f"lower and upper are the ends of {INTERVAL:.0%} intervals (no option changes this level)"


def errors_of_run(groups: Groups, learner: MetaLearner) -> EstimationErrors | None:
    """Estimate the errors of the parameters of the linear mixed model of a run, from its training groups.

    Returns:
        The errors; None for another model, or if the likelihood has no maximum. With None, intervals ignore errors.
    """
    model = learner.model
    if not (model.canonical and has(learner.model, LinearMixedModel)):
        return None
    return groups.estimation_errors(diagonal=has_independent_effects(learner, groups))


def widened_effects(groups: Groups, standard: StandardisedEstimates, errors: EstimationErrors | None) -> GroupEstimates:
    """Return estimates in the units of the file, whose 90% intervals account for errors of the estimated parameters.

    Args:
        groups: the groups of the file.
        standard: the estimates for standardised columns.
        errors: the errors of the estimated parameters; None for intervals that ignore errors.
    """
    estimates = standard.in_units(groups)
    if errors is None:
        return estimates
    known = groups.with_equal_precision(groups.all_points().pooled())
    return replace(estimates, half_widths=_half_widths(errors, groups, known))


def _half_widths(errors: EstimationErrors, groups: Groups, observed: Observed) -> Tensor:
    """Return the half widths of the 90% intervals of the effects, in the units of the file, [tasks, effects].

    An effect in the units of the file is a linear function of the weights for standardised columns. The coefficients of
    this function serve as the inputs of a query, so the effect is predicted like a label without noise.

    Args:
        errors: the errors of the estimated parameters.
        groups: the groups of the file.
        observed: tasks from `with_equal_precision`, whose support sets hold all points of the groups.
    """
    rows = groups.scales.to_units[: groups.num_random].to(observed.support_x)
    queries = rows.expand(observed.num_tasks, *rows.shape)
    every = torch.ones(queries.shape[:2], dtype=torch.bool)
    found = errors.of_queries(replace(observed, query_x=queries, query_mask=every), noise=False)
    return found.sd * found.quantile(INTERVAL)


def widened(prediction: NumberPrediction, by: Widening) -> NumberPrediction:
    """Return a prediction with a larger sd and interval, which account for errors of the estimated parameters.

    Args:
        prediction: the prediction that ignores the errors.
        by: the factor of the sd, and the degrees of freedom of the interval.
    """
    mean, sd = prediction.mean, by.ratio.mT * prediction.sd
    reach = by.quantile(INTERVAL).mT * sd
    return NumberPrediction(*(value.to(mean) for value in (mean, sd, mean - reach, mean + reach)))
