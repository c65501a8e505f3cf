"""The expected calibration error (ECE). It is over the queries of all tasks, since one task has too few queries."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.vision import torchvision

CALIBRATION_BINS = 15


def confidence_and_hits(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the most probable class of each query, and whether that class is correct.

    Args:
        probabilities: [..., C].
        labels: [...] classes.

    Returns:
        Confidence [...], 0 to 1, and hits [...], boolean.
    """
    confidence, predicted = probabilities.max(-1)
    return confidence, predicted == labels


def calibration_error(confidence: Tensor, hits: Tensor) -> float:
    """sum_b (n_b / M) |accuracy_b - confidence_b| over 15 equal bins b. (Naeini et al. 2015; Guo et al. 2017)

    Args:
        confidence: [M], probability of the most probable class of each query.
        hits: [M], whether that class is correct.

    Returns:
        The error, 0 to 1, read on the host.
    """
    torchvision()  # torchmetrics imports torchvision; a CUDA build of it fails with a CPU build of torch otherwise
    from torchmetrics.functional.classification import binary_calibration_error

    return binary_calibration_error(confidence.clamp(max=1), hits.long(), n_bins=CALIBRATION_BINS).item()


def values_for_calibration(predictions: ClassPredictions) -> Tensor:
    """Confidence and hit of the averaged prediction, and mask, of each query.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T, Q, 3]; hit and mask are 0 or 1.
    """
    confidence, hits = confidence_and_hits(predictions.log_probs.exp().mean(0), predictions.labels)
    return torch.stack((confidence, hits.to(confidence), predictions.mask.to(confidence)), -1)


def pooled_calibration_error(values: Tensor) -> float:
    """The calibration error over the queries of all tasks.

    Args:
        values: [T, Q, 3], from values_for_calibration.

    Returns:
        The error, 0 to 1, read on the host.
    """
    confidence, hits, mask = values.unbind(-1)
    return calibration_error(confidence[mask.bool()], hits[mask.bool()])
