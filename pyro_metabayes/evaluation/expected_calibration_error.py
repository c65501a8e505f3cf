"""The expected calibration error (ECE) over the queries of all tasks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_metabayes.device import as_double
from pyro_metabayes.evaluation.intervals import SMALL_SAMPLE, quantile95
from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.vision import torchvision

CALIBRATION_BINS = 15


def confidence_and_hits(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the probability of the most probable class of each query, and whether this class is correct.

    Args:
        probabilities: [..., C], for C classes.
        labels: [...] classes.

    Returns:
        Confidence [...], 0 to 1, and hits [...], boolean.
    """
    confidence, predicted = probabilities.max(-1)
    return confidence, predicted == labels


def calibration_error(confidence: Tensor, hits: Tensor) -> float:
    """Compute the ECE sum_b (n_b / M) |accuracy_b - confidence_b| over 15 bins b of equal width.

    n_b is the number of queries in bin b, and M the number of all queries. (Naeini et al. 2015; Guo et al. 2017.)

    Args:
        confidence: [M], probability of the most probable class of each query.
        hits: [M], whether the most probable class is correct.

    Returns:
        The ECE, 0 to 1.
    """
    torchvision()  # for torchmetrics, which cannot import a CUDA build of torchvision next to a CPU build of torch
    from torchmetrics.functional.classification import binary_calibration_error

    return binary_calibration_error(confidence.clamp(max=1), hits.long(), n_bins=CALIBRATION_BINS).item()


def values_for_calibration(predictions: ClassPredictions) -> Tensor:
    """Collect three values per query for `pooled_calibration_error`.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T, Q, 3]. The three values are the probability of the most probable class, averaged over the samples;
        whether this class is correct (0 or 1); and the mask (0 for a masked query, else 1).
    """
    confidence, hits = confidence_and_hits(predictions.probs.mean(0), predictions.labels)
    return torch.stack((confidence, hits.to(confidence), predictions.mask.to(confidence)), -1)


def pooled_calibration_error(values: Tensor) -> float:
    """Compute the ECE over the queries of all tasks.

    Args:
        values: [T, Q, 3] for Q queries of T tasks, from values_for_calibration.

    Returns:
        The ECE, 0 to 1.
    """
    confidence, hits, mask = values.unbind(-1)
    return calibration_error(confidence[mask.bool()], hits[mask.bool()])


RESAMPLES = 1000


def calibration_interval(values: Tensor, groups: Tensor | None = None) -> dict[str, float]:
    """Compute the half width of the 95% bootstrap interval of the ECE, and the floor of the ECE.

    The bootstrap resamples U independent units: tasks, or groups of dependent tasks. The half width is

        1.96 sd                              for U >= 30,
        t sd sqrt(U / (U - 1))               for U < 30,

    where sd is the standard deviation of the resampled ECE, and t the quantile of Student's t (`quantile95`).

    The floor is the mean ECE, in the normal approximation, of perfectly calibrated predictions with the given
    confidences c_i of the M queries i:

        floor = (1 / M) sum_b sqrt((2 / pi) sum_{i in b} c_i (1 - c_i)),   over the bins b

    The floor is positive because the accuracy of a bin varies by chance. An ECE near the floor shows no miscalibration.
    (Efron 1979; Roelofs et al. 2022.)

    Args:
        values: [T, Q, 3] for Q queries of T tasks, from values_for_calibration.
        groups: [T], the group of each task; None: all tasks are independent.

    Returns:
        {"ece_ci95": half width, "ece_floor": floor}, both 0 to 1. The half width is infinite for a single unit.
    """
    sums = _bin_sums(as_double(values).cpu())
    number, _, _, variance = sums.sum(0).unbind(-1)
    floor = (2 / math.pi * variance).sqrt().sum() / number.sum()
    if groups is not None:
        _, unit = groups.cpu().unique(return_inverse=True)
        sums = torch.zeros_like(sums[: int(unit.max()) + 1]).index_add_(0, unit, sums)
    return {"ece_ci95": _bootstrap_ci95(sums), "ece_floor": floor.item()}


def _bootstrap_ci95(sums: Tensor) -> float:
    """Compute the half width of the 95% bootstrap interval of the ECE from `_bin_sums` [U, B, 4], summed per unit."""
    units = len(sums)
    if units < 2:
        return math.inf
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(units, (RESAMPLES, units), generator=generator)
    counts = torch.zeros(RESAMPLES, units, dtype=sums.dtype).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    resampled = (counts @ sums.flatten(1)).unflatten(1, sums.shape[1:])
    few = math.sqrt(units / (units - 1)) if units < SMALL_SAMPLE else 1.0
    return quantile95(units) * few * _error(resampled).std().item()


def _bin_sums(values: Tensor) -> Tensor:
    """Compute sums [T, B, 4] over the queries of each task and bin: of 1, confidence c, correctness and c (1 - c)."""
    confidence, hits, mask = values.unbind(-1)
    index = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # bins (a, b]
    member = torch.nn.functional.one_hot(index, CALIBRATION_BINS) * mask.unsqueeze(-1)
    spread = confidence * (1 - confidence).clamp(min=0)
    return member.mT @ torch.stack((torch.ones_like(confidence), confidence, hits, spread), -1)


def _error(sums: Tensor) -> Tensor:
    """Compute the ECE from sums [..., B, 4] of `_bin_sums`."""
    return (sums[..., 2] - sums[..., 1]).abs().sum(-1) / sums[..., 0].sum(-1)
