"""The open-set scores in the registry: AUROC and FPR at 95% TPR of entropy, mutual information and log evidence."""

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
    """A score of the predictive distribution of a query, which is larger if its class is less likely a known one.

    Args:
        name: the end of the keys in results.json, unknown_auroc_NAME and unknown_fpr95_NAME.
        title: the score in words.
        values: the score of every query [T, Q], in nats; None: not defined.
    """

    name: str
    title: str
    values: Callable[[OpenSetPredictions], Tensor | None]


def entropy(predictions: OpenSetPredictions) -> Tensor:
    """H[p(y | x, support)] [T, Q], the entropy of the averaged prediction."""
    return predictions.entropy


def information(predictions: OpenSetPredictions) -> Tensor | None:
    """I(y; w | x, support) [T, Q], the mutual information of prediction and weights; None for a point estimate."""
    return None if predictions.is_point else predictions.information


def minus_log_evidence(predictions: OpenSetPredictions) -> Tensor | None:
    """-log p(x | support) [T, Q] up to a constant (`predictions.log_evidence`); None without a density of features."""
    return None if predictions.log_evidence is None else -predictions.log_evidence


OPEN_SET_SCORES = (
    OpenSetScore("entropy", "entropy", entropy),
    OpenSetScore("information", "mutual information", information),
    OpenSetScore("evidence", "-log evidence", minus_log_evidence),
)


def auroc_of(predictions: OpenSetPredictions, score: OpenSetScore) -> Tensor:
    """AUROC [T] of unknown against known queries."""
    return auroc(_values(predictions, score), predictions.mask, predictions.unknown)


def fpr95_of(predictions: OpenSetPredictions, score: OpenSetScore) -> Tensor:
    """Share [T] of the unknown queries that are accepted if 95% of the known ones are."""
    return false_positive_rate(_values(predictions, score), predictions.mask, predictions.unknown)


def entropy_threshold(predictions: OpenSetPredictions) -> Tensor:
    """The smallest entropy [T] in nats that at least 95% of the known queries of a task do not exceed."""
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
