"""Intervals of a run on data=groups that contain the errors of its estimates."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.episodes import Observed
from pyro_metabayes.exact.estimation_errors import EstimationErrors, Widening
from pyro_metabayes.experiments.partial_pooling.methods import LinearMixedModel
from pyro_metabayes.inference.capabilities import has
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.prediction.numbers import INTERVAL, NumberPrediction


def errors_of_run(groups: Groups, learner: MetaLearner) -> EstimationErrors | None:
    """The errors of the estimates of the linear mixed model of a run, from its training groups.

    None for another model, and if the likelihood has no maximum: intervals then ignore the errors.
    """
    model = learner.model
    if not (model.canonical and has(learner.model, LinearMixedModel)):
        return None
    prior = innermost(model.prior(groups.all_points().observed()))
    return groups.estimation_errors(diagonal=isinstance(prior, Normal))


def half_widths_of_effects(errors: EstimationErrors, groups: Groups, observed: Observed) -> Tensor:
    """Half widths [T, R] of the 90% intervals of the effects, in the units of the file.

    An effect in the units of the file is a linear function of all weights, so it is the regression at a row of inputs.

    Args:
        errors: the errors of the estimates.
        groups: the training groups.
        observed: tasks `with_equal_precision`, whose support points are the known points.
    """
    rows = groups.scales.to_units[: groups.num_random].to(observed.support_x)
    queries = rows.expand(observed.num_tasks, *rows.shape)
    every = torch.ones(queries.shape[:2], dtype=torch.bool)
    found = errors.of_queries(replace(observed, query_x=queries, query_mask=every), noise=False)
    return found.sd * found.quantile(INTERVAL)


def widened(prediction: NumberPrediction, by: Widening) -> NumberPrediction:
    """The prediction of a task with the sd and the interval that contain the errors."""
    mean, sd = prediction.mean, by.ratio.mT * prediction.sd
    reach = by.quantile(INTERVAL).mT * sd
    return NumberPrediction(*(value.to(mean) for value in (mean, sd, mean - reach, mean + reach)))
