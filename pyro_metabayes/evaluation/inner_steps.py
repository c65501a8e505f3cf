"""Scores of a regression after 0, 1, ..., K inner steps, for guides and models with an inner loop."""

from __future__ import annotations

import copy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.evaluation.score import Weights
from pyro_metabayes.evaluation.scores import step_scores, values_of
from pyro_metabayes.evaluation.task_scores import predictions_under
from pyro_metabayes.guide import Guide
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.numbers import NumberPredictions
from pyro_metabayes.model import Model
from pyro_metabayes.seeding import noise_of


@runtime_checkable
class TakesSteps(Protocol):
    """Interface of a guide or a model with an inner loop of `num_steps` steps."""

    num_steps: int


def stepping_part(learner: MetaLearner) -> TakesSteps | None:
    """Return the part of the learner with an inner loop, guide or model; None without an inner loop."""
    return next((part for part in (learner.guide, learner.model) if isinstance(part, TakesSteps)), None)


def with_num_steps(learner: MetaLearner, num_steps: int) -> tuple[Guide, Model]:
    """Copy guide and model with another number of inner steps; the copies share all parameters with the learner.

    Args:
        learner: a learner whose guide or model has an inner loop.
        num_steps: number of inner steps of the copies.

    Returns:
        Copies of the guide and of the model.
    """
    guide, model = copy.copy(learner.guide), copy.copy(learner.model)
    changed = guide if isinstance(guide, TakesSteps) else model
    assert isinstance(changed, TakesSteps)
    changed.num_steps = num_steps
    return guide, model


def scores_by_step(learner: MetaLearner, episodes: Episodes, samples: int) -> Tensor | None:
    """Compute the scores of a regression after 0, 1, ..., K inner steps; the random state is preserved.

    Args:
        learner: any learner.
        episodes: T tasks with features as inputs.
        samples: draws of w per task; one draw is taken for a point estimate.

    Returns:
        Tensor [T, K + 1, J] of the J scores in `step_scores`; None without an inner loop, and for classification.
    """
    part = stepping_part(learner)
    if part is None or episodes.num_classes:
        return None
    with noise_of(0):
        values = (_scores_after(learner, number, episodes, samples) for number in range(part.num_steps + 1))
        steps = [value for value in values if value is not None]
    return torch.stack(steps, 1) if steps else None


def _scores_after(learner: MetaLearner, num_steps: int, episodes: Episodes, samples: int) -> Tensor | None:
    """Compute the J scores [T, J] in `step_scores` after num_steps inner steps; None for classification."""
    scores = step_scores()
    guide, model = with_num_steps(learner, num_steps)
    predictions = predictions_under(guide.posterior(episodes.observed()), model, episodes, samples)
    if not isinstance(predictions, NumberPredictions):
        return None
    values = values_of(predictions, Weights.DRAWS, scores)
    return torch.stack([values[score.name] for score in scores], -1)
