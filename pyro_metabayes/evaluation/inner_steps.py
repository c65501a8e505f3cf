"""Scores of a regression after each number of inner steps, for guides and models that take them."""

from __future__ import annotations

import copy
import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.evaluation.scores import scores_of
from pyro_metabayes.guide import Guide
from pyro_metabayes.learner import MetaLearner, draws_of
from pyro_metabayes.model import Model
from pyro_metabayes.seeding import noise_of

STEP_SCORES = ("mse", "nll", "coverage90")


@runtime_checkable
class TakesSteps(Protocol):
    """A guide, or a model, with an inner loop of num_steps steps."""

    num_steps: int


def stepping_part(learner: MetaLearner) -> TakesSteps | None:
    """The guide or the model, whichever takes inner steps; None if neither does."""
    return next((part for part in (learner.guide, learner.model) if isinstance(part, TakesSteps)), None)


def with_num_steps(learner: MetaLearner, num_steps: int) -> tuple[Guide, Model]:
    """Guide and model with another number of inner steps, which share the parameters of the learner's, unchanged."""
    guide, model = copy.copy(learner.guide), copy.copy(learner.model)
    changed = guide if isinstance(guide, TakesSteps) else model
    assert isinstance(changed, TakesSteps)
    changed.num_steps = num_steps
    return guide, model


def scores_by_step(learner: MetaLearner, num_steps: int, episodes: Episodes, samples: int) -> Tensor:
    """STEP_SCORES [T, K + 1, scores] after 0, 1, ..., K = num_steps inner steps; the random state is preserved."""
    observed, step_scores = episodes.observed(), []
    with noise_of(0):
        for number in range(num_steps + 1):
            guide, model = with_num_steps(learner, number)
            w = draws_of(guide.posterior(observed), samples)
            likelihood = model.likelihood(w, observed.query_x, observed)
            scores = scores_of(likelihood, episodes.query_y, episodes.query_mask)
            step_scores.append(torch.stack([scores[name] for name in STEP_SCORES], -1))
    return torch.stack(step_scores, 1)


def means_by_step(by_step: Tensor | None) -> dict[str, dict[str, float | None]] | None:
    """Means over tasks by number of steps; null for a score that diverges."""
    if by_step is None:
        return None
    return {
        str(step): {name: mean if math.isfinite(mean) else None for name, mean in zip(STEP_SCORES, means, strict=True)}
        for step, means in enumerate(by_step.mean(0).tolist())
    }
