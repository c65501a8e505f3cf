"""Scores of open-set recognition, with AUROC and false positive rate (FPR) at 95% true positive rate (TPR)."""

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
    """A function of the predictive distribution of a query, larger for queries of unknown classes.

    Args:
        name: short name; the keys in results.json are unknown_auroc_NAME and unknown_fpr95_NAME.
        title: name of the score in plots and tables.
        values: function that returns the scores [T, Q] of the queries in nats, or None if the score is not defined.
    """

    name: str
    title: str
    values: Callable[[OpenSetPredictions], Tensor | None]


def entropy(predictions: OpenSetPredictions) -> Tensor:
    """Compute the entropy H[p(y | x, support)] [T, Q] of the averaged prediction of each query, in nats."""
    return predictions.entropy


def information(predictions: OpenSetPredictions) -> Tensor | None:
    """Compute the mutual information I(y; w | x, support) [T, Q] of label and weights, in nats.

    The result is None for a point estimate.
    """
    return None if predictions.is_point else predictions.information


def minus_log_evidence(predictions: OpenSetPredictions) -> Tensor | None:
    """Compute -log p(x | support) [T, Q] of the features x of each query, in nats up to a constant.

    The result is None if the model has no density of the features.
    """
    return None if predictions.log_evidence is None else -predictions.log_evidence


OPEN_SET_SCORES = (
    OpenSetScore("entropy", "entropy", entropy),
    OpenSetScore("information", "mutual information", information),
    OpenSetScore("evidence", "-log evidence", minus_log_evidence),
)


def auroc_of(predictions: OpenSetPredictions, score: OpenSetScore) -> Tensor:
    """Compute the AUROC [T] of a score: queries of unknown classes against queries of known classes."""
    return auroc(_values(predictions, score), predictions.mask, predictions.unknown)


def fpr95_of(predictions: OpenSetPredictions, score: OpenSetScore) -> Tensor:
    """Compute the FPR at 95% TPR [T] of a score.

    A threshold accepts 95% of the queries of known classes. The FPR is the share of queries of unknown classes that the
    threshold accepts.
    """
    return false_positive_rate(_values(predictions, score), predictions.mask, predictions.unknown)


def entropy_threshold(predictions: OpenSetPredictions) -> Tensor:
    """Compute the smallest entropy threshold [T] that accepts 95% of the queries of known classes of a task.

    A query is accepted if the entropy of its prediction, in nats, is at most the threshold.
    """
    return threshold(predictions.entropy, predictions.mask)


def _values(predictions: OpenSetPredictions, score: OpenSetScore) -> Tensor:
    values = score.values(predictions)
    assert values is not None  # only defined scores are computed (`Score.defined`)
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
