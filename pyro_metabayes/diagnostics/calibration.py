"""Calibration of the predictive distribution: reliability, coverage, and entropy on unseen classes.

Confidence intervals resample whole tasks, because the queries of one task are dependent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.intervals import Estimate
from pyro_metabayes.evaluation.scores import CALIBRATION_BINS, log_mean_exp, masked_mean
from pyro_metabayes.evaluation.task_scores import predictions_under
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.likelihoods.numbers import NumberPredictions
from pyro_metabayes.likelihoods.predictions import Predictions, predictions_of
from pyro_metabayes.open_set.separation import auroc
from pyro_metabayes.prediction.pit import Bounds, central_share, pit_histogram

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
RESAMPLES = 1000
PIT_BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Reliability diagram: accuracy as a function of confidence, in B = 15 bins of equal width.

    The confidence of a query is the probability of its most probable class. The half width of a 95% interval is 1.96 sd
    over bootstrap resamples of tasks. Confidence and accuracy of an empty bin are NaN. (Naeini, Cooper and Hauskrecht
    2015; Guo et al. 2017.)

    Attributes:
        confidence: [B], mean confidence of the queries in each bin.
        accuracy: [B], accuracy on the queries in each bin, with 95% intervals.
        share: [B], share of all queries in each bin.
        ece: expected calibration error sum_b share_b |accuracy_b - confidence_b|, with a 95% interval.
    """

    confidence: Tensor
    accuracy: Estimate
    share: Tensor
    ece: Estimate


def bin_sums(probabilities: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Compute the sums [T, 15, 3] of each of 15 bins: number of queries, summed confidence, number of correct queries.

    `probabilities` are [T, Q, C] for T tasks, Q queries and C classes; `labels` and `mask` are [T, Q].
    """
    confidence, predicted = probabilities.max(-1)
    summands = torch.stack((torch.ones_like(confidence), confidence, (predicted == labels).to(confidence.dtype)), -1)
    bin_index = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # bins (a, b]
    member = torch.nn.functional.one_hot(bin_index, CALIBRATION_BINS).to(confidence.dtype) * mask.unsqueeze(-1)
    return member.mT @ summands


def reliability(sums: Tensor, seed: int = 0) -> Reliability:
    """Compute the reliability diagram from the `bin_sums` of all tasks; `seed` is the seed of the bootstrap."""
    sums = sums.double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
    counts = torch.zeros(drawn.shape, dtype=torch.double).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
    resampled = (counts @ sums.cpu().flatten(1)).view(RESAMPLES, *sums.shape[1:])
    num_queries, confidence, hits = sums.sum(0).cpu().unbind(-1)
    accuracies = resampled[..., 2] / resampled[..., 0]
    spread = (accuracies - (hits / num_queries)).square().nanmean(0).sqrt()
    ece = _ece(sums.sum(0).cpu())
    return Reliability(
        confidence / num_queries,
        Estimate(hits / num_queries, 1.96 * spread),
        num_queries / num_queries.sum(),
        Estimate(ece, 1.96 * _ece(resampled).std()),
    )


def _ece(sums: Tensor) -> Tensor:
    return (sums[..., 2] - sums[..., 1]).abs().sum(-1) / sums[..., 0].sum(-1)


def prediction_sets(probabilities: Tensor, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Compute metrics of prediction sets: the smallest sets of classes whose predicted probability reaches a level.

    `probabilities` are [T, Q, C] (T tasks, Q queries, C classes). Each metric [T, levels] is a mean over the queries:
    `coverage` is the share of queries with the true class in the set, `size` the number of classes in the set, and
    `mass` the predicted probability of the set. A calibrated predictive distribution has coverage = mass.
    """
    ordered, order = probabilities.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    levels = torch.tensor(LEVELS, dtype=ordered.dtype, device=ordered.device)
    inside = before.unsqueeze(-2) < levels.unsqueeze(-1)  # [T, Q, levels, C]
    is_label = (order == labels.unsqueeze(-1)).unsqueeze(-2)
    query_metrics = {
        "coverage": (inside & is_label).any(-1).to(ordered.dtype),
        "size": inside.sum(-1).to(ordered.dtype),
        "mass": (inside * ordered.unsqueeze(-2)).sum(-1),
    }
    return {name: masked_mean(value.movedim(-1, 0), mask).mT for name, value in query_metrics.items()}


def interval_coverage(bounds: Bounds, mask: Tensor) -> dict[str, Tensor]:
    """Compute the coverage [T, levels] of central predictive intervals; `bounds`: P(label < y) and P(label <= y)."""
    return {"coverage": _mean_over_labels(torch.stack([central_share(bounds, level) for level in LEVELS], -1), mask)}


def _mean_over_labels(values: Tensor, mask: Tensor) -> Tensor:
    """Average values [T, Q, B] or [T, Q, Y, B] over the queries Q and label components Y, for T tasks and B metrics."""
    return masked_mean((values.mean(-2) if values.dim() > 3 else values).movedim(-1, 0), mask).mT


def predictive_probabilities(predictions: Predictions) -> Tensor:
    """Average the class probabilities over the draws of w: [T, Q, C] for T tasks, Q queries and C classes."""
    if not isinstance(predictions, ClassPredictions):
        raise UsageError(f"expected predictions of classes, got {type(predictions).__name__}; use a classifier")
    return log_mean_exp(predictions.log_probs.log_softmax(-1)).exp()


def calibration_of(predictions: Predictions) -> dict[str, Tensor]:
    """Compute the calibration metrics of T tasks, as tensors [T, ...] by name; the likelihood determines which.

    Classes have bin sums and prediction sets. Numbers have the coverage of intervals. Numbers and ordered classes have
    a histogram of the probability integral transform (PIT).
    """
    mask, bounds = predictions.mask, predictions.pit_bounds
    metrics = {} if bounds is None else {"pit": _mean_over_labels(pit_histogram(bounds, PIT_BINS), mask)}
    if isinstance(predictions, NumberPredictions):
        metrics |= interval_coverage(predictions.pit_bounds, mask)
    if isinstance(predictions, ClassPredictions):
        of_classes = predictive_probabilities(predictions), predictions.labels, mask
        metrics |= {"bins": bin_sums(*of_classes), **prediction_sets(*of_classes)}
    return metrics


@torch.no_grad()
def calibration(learner: MetaLearner, batches: Iterable[Episodes], num_samples: int) -> dict[str, Tensor]:
    """Compute the calibration metrics (`calibration_of`) of guide.posterior on all T tasks of the batches.

    `num_samples` is the number of draws of w per task; a predictive distribution in closed form needs none. With L
    draws, the coverage of a 90% interval is too small by up to about 1 / L, even for the exact posterior.
    """
    gathered: dict[str, list[Tensor]] = {}
    for episodes in map(learner.featured, batches):
        q = learner.guide.posterior(episodes.observed())
        values = calibration_of(predictions_under(q, learner.model, episodes, num_samples))
        for name, value in values.items():
            gathered.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in gathered.items()}


# ---------------------------------------------------------------- unseen classes


def without_classes(episodes: Episodes, way: int) -> tuple[Observed, Tensor]:
    """Restrict tasks to their first `way` classes by masking all points of the other classes.

    Returns the restricted tasks, and a mask [T, Q] that is True for the queries of the other classes.
    """
    is_seen, unseen = episodes.support_y < way, (episodes.query_y >= way) & episodes.query_mask
    observed = replace(
        episodes.observed(),
        num_classes=way,
        support_y=torch.where(is_seen, episodes.support_y, 0),
        support_mask=episodes.support_mask & is_seen,
        query_mask=episodes.query_mask & ~unseen,
        classes=None if episodes.classes is None else episodes.classes[:, :way],
    )
    return observed, unseen


@torch.no_grad()
def unseen_classes(learner: MetaLearner, batches: Iterable[Episodes], way: int, num_samples: int) -> dict[str, Tensor]:
    """Compare the entropy of predictions for queries of seen and of unseen classes, in T tasks.

    The first `way` classes of a task are seen, the others unseen. The posterior depends on no point of unseen classes.

    Returns:
        Tensors [T] by name.
        known, unseen: mean entropy in nats over the queries of seen classes, and of unseen classes.
        auroc: probability that a query of an unseen class has a larger entropy than a query of a seen class. Ties
            count half. The value is 1/2 if the entropy does not discriminate.
    """
    metrics: dict[str, list[Tensor]] = {"known": [], "unseen": [], "auroc": []}
    for episodes in batches:
        observed, unseen = without_classes(learner.featured(episodes), way)
        likelihood = learner.predictive(observed, num_samples)
        predictions = predictions_of(likelihood, episodes.query_y, observed.query_mask)
        entropy = Categorical(probs=predictive_probabilities(predictions)).entropy()
        metrics["known"].append(masked_mean(entropy, observed.query_mask))
        metrics["unseen"].append(masked_mean(entropy, unseen))
        metrics["auroc"].append(auroc(entropy, observed.query_mask, unseen))
    return {name: torch.cat(values).cpu() for name, values in metrics.items()}
