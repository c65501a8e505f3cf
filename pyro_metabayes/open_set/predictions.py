"""Predictions for tasks with queries of unknown classes. An unknown class has no support points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.likelihoods.classes import BaseNovelPredictions, ClassPredictions
from pyro_metabayes.likelihoods.predictions import Predictions
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.averages import log_mean_exp
from pyro_metabayes.prediction.moments import extra_draws


@runtime_checkable
class HasFeatureDensity(Protocol):
    """Interface of a classifier that models the density p(x | w) of the features as a mixture over classes."""

    def log_density(self, w: Tensor, x: Tensor) -> Tensor | None:
        """Compute log p(x_i | w) = log sum_c p(y = c | w) p(x_i | y = c, w), up to a constant.

        The constant is the same for all x and w.

        Args:
            w: weights [..., T, *W] of T tasks.
            x: features [T, N, D] of N points per task.

        Returns:
            Tensor [..., T, N], in nats; None if the model has no such density.
        """


@dataclass(frozen=True, eq=False)
class OpenSetPredictions(ClassPredictions):
    """Class predictions for tasks in which some queries belong to unknown classes and have no label.

    `mask` marks the queries with a label. `unknown` marks the queries of unknown classes.
    """

    unknown: Tensor  # [T, Q]
    log_evidence: Tensor | None = None  # log p(x | support) [T, Q] in nats, up to a constant; None: not defined


def open_set_predictions(
    predictions: Predictions, unknown: Tensor, log_evidence: Tensor | None = None
) -> OpenSetPredictions:
    """Combine class predictions with the mask of the queries of unknown classes.

    Args:
        predictions: class predictions for all Q queries of T tasks. The mask marks the queries with a label.
        unknown: [T, Q], the `unknown_mask` of the tasks.
        log_evidence: [T, Q], log p(x | support) of each query, in nats up to a constant; None: not defined.

    Raises:
        UsageError: the predictions are no class predictions, or include base classes of the training.
    """
    if not isinstance(predictions, ClassPredictions) or isinstance(predictions, BaseNovelPredictions):
        raise UsageError(
            "expected predictions of only the support classes for tasks with unknown classes, got "
            f"{type(predictions).__name__}; set task.unknown=0"
        )
    return OpenSetPredictions(predictions.labels, predictions.mask, predictions.log_probs, unknown, log_evidence)


def log_evidence(model: Model, posterior: TorchDistribution, episodes: Episodes, samples: int) -> Tensor | None:
    """Estimate log p(x_i | support) of every query x_i. The random state is preserved.

        log p(x_i | support) = log (1/L) sum_l p(x_i | w_l),   w_l ~ q(w | support)

    where p(x_i | w) is the density of the features (`HasFeatureDensity`).

    Args:
        model: the model.
        posterior: approximate posterior q of w, batch [T].
        episodes: T tasks with features as inputs, and Q queries per task.
        samples: number L of draws of w per task; a point estimate has one draw.

    Returns:
        Tensor [T, Q], in nats up to a constant; None if the model has no density of the features.
    """
    if not isinstance(model, HasFeatureDensity):
        return None
    density = model.log_density(extra_draws(posterior, samples), episodes.query_x)
    return None if density is None else log_mean_exp(density)
