"""Scores of open-set recognition: AUROC and FPR at 95% TPR of entropy, mutual information and log evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pyro_metabayes.evaluation.score import Score
from pyro_metabayes.open_set.predictions import OpenSetPredictions
from pyro_metabayes.open_set.separation import auroc, false_positive_rate, threshold


@dataclass(frozen=True)
class OpenSetScore:
    """A function of the predictive distribution of a query that is larger for queries of unknown classes.

    Args:
        name: short name; the keys in results.json are unknown_auroc_NAME and unknown_fpr95_NAME.
        title: name of the score in plots and tables.
        values: function that returns the score of each of Q queries of T tasks, [T, Q] in nats; None: not defined.
    """

    name: str
    title: str
    values: Callable[[OpenSetPredictions], Tensor | None]


def entropy(predictions: OpenSetPredictions) -> Tensor:
    """Compute the entropy H[p(y | x, support)] of the averaged prediction of Q queries of T tasks [T, Q], in nats."""
    return predictions.entropy


def information(predictions: OpenSetPredictions) -> Tensor | None:
    """Compute the mutual information I(y; w | x, support) of label and weights, for Q queries of T tasks [T, Q].

    It is in nats; None for a point estimate.
    """
    return None if predictions.is_point else predictions.information


def minus_log_evidence(predictions: OpenSetPredictions) -> Tensor | None:
    """Compute -log p(x | support), in nats up to a constant, for the features x of Q queries of T tasks [T, Q].

    The result is None if the model has no density of the features.
    """
    return None if predictions.log_evidence is None else -predictions.log_evidence


OPEN_SET_SCORES = (
    OpenSetScore("entropy", "entropy", entropy),
    OpenSetScore("information", "mutual information", information),
    OpenSetScore("evidence", "-log evidence", minus_log_evidence),
)


def auroc_of(predictions: OpenSetPredictions, score: OpenSetScore) -> Tensor:
    """Compute the AUROC [T] of a score for T tasks: queries of unknown classes against queries of known classes."""
    return auroc(_values(predictions, score), predictions.mask, predictions.unknown)


def fpr95_of(predictions: OpenSetPredictions, score: OpenSetScore) -> Tensor:
    """Compute the FPR at 95% TPR [T] of a score for T tasks.

    This is the share of queries of unknown classes that are accepted by the threshold that accepts 95% of the queries
    of known classes.
    """
    return false_positive_rate(_values(predictions, score), predictions.mask, predictions.unknown)


def entropy_threshold(predictions: OpenSetPredictions) -> Tensor:
    """Compute, for each of T tasks, the smallest entropy threshold [T] that accepts 95% of queries of known classes.

    A query is accepted if its entropy in nats is at most the threshold.
    """
    return threshold(predictions.entropy, predictions.mask)


def _values(predictions: OpenSetPredictions, score: OpenSetScore) -> Tensor:
    values = score.values(predictions)
    assert values is not None  # `_defined` of the entry in the registry
    return values


def _defined(predictions: OpenSetPredictions, score: OpenSetScore) -> bool:
    return score.values(predictions) is not None


FAMILY = (OpenSetPredictions,)
OPEN_SET = (
    *(
        Score(
            f"unknown_{metric}_{score.name}",
            partial(function, score=score),
            FAMILY,
            "share",
            interval=True,
            defined=partial(_defined, score=score),
        )
        for score in OPEN_SET_SCORES
        for metric, function in (("auroc", auroc_of), ("fpr95", fpr95_of))
    ),
    Score("unknown_entropy_threshold", entropy_threshold, FAMILY, "nats", interval=True),
)
