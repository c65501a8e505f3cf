"""Scores of learning without forgetting: accuracy on novel classes, on base classes and on both.

Base classes are the training classes; a task adds novel classes. (Gidaris and Komodakis, CVPR 2018.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.evaluation.score import Score
from pyro_metabayes.likelihoods.classes import BaseNovelPredictions
from pyro_metabayes.prediction.averages import log_mean_exp, masked_mean, most_probable


def novel(predictions: BaseNovelPredictions) -> Tensor:
    """Compute the accuracy on queries of novel classes when only novel classes can be predicted.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], 0 to 1.
    """
    return _accuracy(predictions, slice(predictions.num_novel), predictions.is_novel)


def base(predictions: BaseNovelPredictions) -> Tensor:
    """Compute the accuracy on queries of base classes when only base classes can be predicted.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], 0 to 1.
    """
    return _accuracy(predictions, slice(predictions.num_novel, None), ~predictions.is_novel)


def both(predictions: BaseNovelPredictions) -> Tensor:
    """Compute the accuracy on all queries when all classes can be predicted.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], 0 to 1.
    """
    return _accuracy(predictions, slice(None), torch.ones_like(predictions.is_novel))


def base_over_all(predictions: BaseNovelPredictions) -> Tensor:
    """Compute the accuracy on queries of base classes when all classes can be predicted.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], 0 to 1.
    """
    return _accuracy(predictions, slice(None), ~predictions.is_novel)


def _accuracy(predictions: BaseNovelPredictions, candidates: slice, queries: Tensor) -> Tensor:
    """Compute the accuracy per task on some queries when only the classes `candidates` can be predicted."""
    log_probs = predictions.log_probs[..., candidates].log_softmax(-1)
    predicted = most_probable(log_mean_exp(log_probs)) + (candidates.start or 0)
    return masked_mean((predicted == predictions.labels).to(log_probs.dtype), queries & predictions.mask)


FAMILY = (BaseNovelPredictions,)
BASE_NOVEL = (
    Score("novel", novel, FAMILY, "share", interval=True),
    Score("base", base, FAMILY, "share", interval=True),
    Score("both", both, FAMILY, "share", interval=True),
    Score("base_over_all", base_over_all, FAMILY, "share", interval=True),
)
