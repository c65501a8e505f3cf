"""The class Score: a function of predictions, with settings of where and how the values are reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypedDict, TypeVar

import numpy as np
from torch import Tensor

from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.evidence.joint import JointPredictive
from pyro_metabayes.likelihoods.predictions import Predictions

P = TypeVar("P", bound=Predictions | JointPredictive)
TaskScores = dict[str, Tensor]  # values of a batch of tasks, [T] or [T, ...], by the name of the score


class Weights(Enum):
    """The task weights w under which the scored predictions are computed."""

    DRAWS = "draws of the approximate posterior"
    MEAN = "mean of the approximate posterior"
    EXACT_MEAN = "mean of the exact posterior"
    INTEGRATED = "weights integrated out, over all query labels of a task together"


class Interval(TypedDict):
    """A mean over tasks and the half width of its 95% interval, for the given backbone and test classes."""

    mean: float
    ci95: float


def mean_over_tasks(values: Tensor) -> float:
    """Compute the mean of values [T] over T tasks, as a Python number."""
    return values.mean().item()


def always(predictions: Predictions | JointPredictive) -> bool:
    """Return True: the default of `Score.defined`."""
    return True


@dataclass(frozen=True)
class Score(Generic[P]):
    """A score of predictions. Every score in the list `SCORES` is written to results.json.

    Args:
        name: key of the score in every file.
        per_task: function from the predictions for T tasks to one value per task [T], without host synchronisation.
            The values may be [T, ...] if `pooled` is not the mean.
        families: types of predictions for which the score is defined; for other types, results.json has null.
        unit: unit of the values, such as "share" (0 to 1) or "nats".
        weights: the weights w under which the predictions are computed.
        pooled: function from the values of all tasks to one number; by default the mean. The values are written to
            tasks.npz only if `pooled` is the mean.
        interval: whether results.json has {mean, ci95} instead of a number.
        logged: position of the score in a line of metrics.jsonl; 0: not logged.
        by_step: position among the scores after each inner step of a regression; 0: not computed.
        defined: function from predictions of the `families` to whether the score is defined for the predictions.
    """

    name: str
    per_task: Callable[[P], Tensor]
    families: tuple[type[P], ...]
    unit: str
    weights: Weights = Weights.DRAWS
    pooled: Callable[[Tensor], float] = mean_over_tasks
    interval: bool = False
    logged: int = 0
    by_step: int = 0
    defined: Callable[[P], bool] = always

    @property
    def is_mean(self) -> bool:
        """Whether the score is a mean over tasks of one value per task."""
        return self.pooled is mean_over_tasks

    def applies_to(self, predictions: Predictions | JointPredictive, weights: Weights) -> bool:
        """Return whether the score is defined for predictions that were computed under `weights`."""
        return self.weights is weights and isinstance(predictions, self.families) and self.defined(predictions)

    def summary(self, values: Tensor, groups: np.ndarray | None = None) -> float | Interval:
        """Reduce the values of all tasks to the entry of this score in results.json.

        Args:
            values: values of all T tasks, [T] or [T, ...], on the CPU.
            groups: [T], the group of each task; tasks of one group are dependent. None: all tasks are independent.

        Returns:
            A number in `unit`, or {mean, ci95}.
        """
        pooled = self.pooled(values)
        return {"mean": pooled, "ci95": ci95_of(values.numpy(), groups)} if self.interval else pooled
