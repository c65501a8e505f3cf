"""Predictions for tasks with queries of unknown classes."""

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
    """A classifier p(y | x, w) that is the posterior of the classes under a mixture density of the features x."""

    def log_density(self, w: Tensor, x: Tensor) -> Tensor | None:
        """log p(x_i | w) = log sum_c p(y = c | w) p(x_i | y = c, w) [..., T, N] in nats, up to a constant.

        The constant depends neither on x nor on w. None: the model has no such density.
        """


@dataclass(frozen=True, eq=False)
class OpenSetPredictions(ClassPredictions):
    """Predictions of classes for known queries (`mask`), and for queries of unknown classes, which have no label."""

    unknown: Tensor  # [T, Q]
    log_evidence: Tensor | None = None  # log p(x | support) [T, Q] in nats, up to a constant; None: not defined


def open_set_predictions(
    predictions: Predictions, unknown: Tensor, log_evidence: Tensor | None = None
) -> OpenSetPredictions:
    """The predictions of T tasks with queries of unknown classes.

    Args:
        predictions: of all queries, under L samples of w; the queries with a label are unmasked.
        unknown: [T, Q], the `unknown_mask` of the tasks.
        log_evidence: [T, Q]; None: not defined.

    Raises:
        UsageError: the predictions are not those of the classes of a support set alone.
    """
    if not isinstance(predictions, ClassPredictions) or isinstance(predictions, BaseNovelPredictions):
        raise UsageError(
            f"expected predictions of the classes of the support set for tasks with unknown classes, got "
            f"{type(predictions).__name__}; set task.unknown=0"
        )
    return OpenSetPredictions(predictions.labels, predictions.mask, predictions.log_probs, unknown, log_evidence)


def log_evidence(model: Model, posterior: TorchDistribution, episodes: Episodes, samples: int) -> Tensor | None:
    """log p(x_i | support) = log (1/L) sum_l p(x_i | w_l) of every query, in nats up to a constant.

    p(x_i | w) = sum_c p(y = c | w) p(x_i | y = c, w): the class is integrated out under its prior, the weights under
    the approximate posterior. The random state is preserved.

    Args:
        model: makes the predictions.
        posterior: approximate posterior of w, batch [T].
        episodes: T tasks with features as inputs.
        samples: draws of w per task; a point estimate has one.

    Returns:
        Tensor [T, Q]; None if the model has no density of the features.
    """
    if not isinstance(model, HasFeatureDensity):
        return None
    density = model.log_density(extra_draws(posterior, samples), episodes.query_x)
    return None if density is None else log_mean_exp(density)
