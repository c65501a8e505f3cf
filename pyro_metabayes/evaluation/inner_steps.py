"""Scores of a regression after each number of inner steps, for guides and models that take them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.evaluation.scores import scores_of
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.seeding import noise_of

STEP_SCORES = ("mse", "nll", "coverage90")


def inner_stepper(learner: MetaLearner) -> Any:
    """The guide or the model, whichever takes inner steps (has `num_steps`); None if neither does."""
    return next((part for part in (learner.guide, learner.model) if hasattr(part, "num_steps")), None)


def scores_by_step(learner: MetaLearner, stepper: Any, episodes: Episodes, samples: int) -> Tensor:
    """STEP_SCORES [T, K + 1, scores] after 0, 1, ..., K inner steps; the random state is preserved."""
    num_steps, observed, step_scores = stepper.num_steps, episodes.observed(), []
    with noise_of(0):
        for stepper.num_steps in range(num_steps + 1):
            _, likelihood = learner.posterior_predictive(observed, samples)
            scores = scores_of(likelihood, episodes.query_y, episodes.query_mask)
            step_scores.append(torch.stack([scores[name] for name in STEP_SCORES], -1))
    stepper.num_steps = num_steps
    return torch.stack(step_scores, 1)


def means_by_step(by_step: Tensor | None) -> dict[str, dict[str, float | None]] | None:
    """Means over tasks by number of steps; null for a score that diverges."""
    if by_step is None:
        return None
    return {
        str(step): {name: mean if math.isfinite(mean) else None for name, mean in zip(STEP_SCORES, means, strict=True)}
        for step, means in enumerate(by_step.mean(0).tolist())
    }
