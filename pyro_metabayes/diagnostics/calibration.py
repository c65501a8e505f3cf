"""Does the predictive know how often it is right? Reliability, coverage, and entropy on classes it was not told of.

Intervals are over tasks, which are independent; queries of one task share its support set and are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Normal

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.scores import CALIBRATION_BINS, log_mean_exp, masked_mean
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.learner import MetaLearner

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure and the half width of its 95% interval, of any shape."""

    mean: Tensor
    ci95: Tensor

    @classmethod
    def over_tasks(cls, values: Tensor) -> Estimate:
        """Of the mean over tasks of values [T, ...]."""
        return cls(values.mean(0), 1.96 * values.std(0, correction=0) / len(values) ** 0.5)


@dataclass(frozen=True)
class Reliability:
    """Of the queries whose most probable class has a probability in each of 15 equal bins [B].

    confidence: their mean probability; accuracy: the share of them that is right; share: of all queries.
    ece = sum_b share_b |accuracy_b - confidence_b|. Intervals: 1.96 sd over resamples of tasks. Empty bins are NaN.
    (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017.)
    """

    confidence: Tensor
    accuracy: Estimate
    share: Tensor
    ece: Estimate


def bin_sums(probabilities: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Queries, sum of confidences and number right in each bin [T, B, 3]; probabilities [T, Q, C]."""
    confidence, answer = probabilities.max(-1)
    each = torch.stack((torch.ones_like(confidence), confidence, (answer == labels).to(confidence.dtype)), -1)
    place = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # bins are open on the left
    member = torch.nn.functional.one_hot(place, CALIBRATION_BINS).to(confidence.dtype) * mask.unsqueeze(-1)
    return member.mT @ each


def reliability(sums: Tensor, seed: int = 0) -> Reliability:
    """From the sums of all tasks."""
    sums = sums.double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
    times = torch.zeros(drawn.shape, dtype=torch.double).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
    resampled = (times @ sums.cpu().flatten(1)).view(RESAMPLES, *sums.shape[1:])
    count, confidence, hits = sums.sum(0).cpu().unbind(-1)
    of_resamples = resampled[..., 2] / resampled[..., 0]
    spread = (of_resamples - (hits / count)).square().nanmean(0).sqrt()
    ece = _ece(sums.sum(0).cpu())
    return Reliability(
        confidence / count,
        Estimate(hits / count, 1.96 * spread),
        count / count.sum(),
        Estimate(ece, 1.96 * _ece(resampled).std()),
    )


def _ece(sums: Tensor) -> Tensor:
    return (sums[..., 2] - sums[..., 1]).abs().sum(-1) / sums[..., 0].sum(-1)


def prediction_sets(probabilities: Tensor, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The smallest sets of classes whose probability reaches each level: figures [T, levels], means over queries.

    coverage: share of the labels inside. size: classes in a set. mass: the probability that a set has by its own
    account, no less than its level since classes are whole: what coverage is to be compared with.
    """
    ordered, order = probabilities.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    levels = torch.tensor(LEVELS, dtype=ordered.dtype, device=ordered.device)
    inside = before.unsqueeze(-2) < levels.unsqueeze(-1)  # [T, Q, levels, C]
    is_label = (order == labels.unsqueeze(-1)).unsqueeze(-2)
    each = {
        "coverage": (inside & is_label).any(-1).to(ordered.dtype),
        "size": inside.sum(-1).to(ordered.dtype),
        "mass": (inside * ordered.unsqueeze(-2)).sum(-1),
    }
    return {name: masked_mean(value.movedim(-1, 0), mask).mT for name, value in each.items()}


def interval_coverage(likelihood: Any, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Coverage [T, levels] of the central intervals of the predictive, the mixture of N(mean_l, sd_l^2), [L, T, Q, Y].

    y is inside the interval of level a where |(1/L) sum_l Phi((y - mean_l) / sd_l) - 1/2| <= a / 2.
    """
    below = torch.special.ndtr((y - likelihood.mean) / likelihood.stddev).mean(0)
    levels = torch.tensor(LEVELS, dtype=y.dtype, device=y.device)
    inside = (2 * (below - 0.5).abs()).unsqueeze(-1) <= levels  # [T, Q, Y, levels]
    return {"coverage": masked_mean(inside.to(y.dtype).mean(-2).movedim(-1, 0), mask).mT}


def predictive_probabilities(likelihood: TorchDistribution) -> Tensor:
    """p(y = c | x, D) [T, Q, C]: the mean over samples of w of the probabilities, batch [L, T, Q]."""
    family: Any = innermost(likelihood)
    if not isinstance(family, Categorical):
        raise UsageError(f"expected a likelihood of classes, got {type(family).__name__}")
    return log_mean_exp(family.logits.log_softmax(-1)).exp()


def of_batch(learner: MetaLearner, episodes: Episodes, num_samples: int) -> dict[str, Tensor]:
    """Everything above that suits the labels, task by task."""
    _, likelihood = learner.posterior_predictive(episodes.observed(), num_samples)
    if isinstance(family := innermost(likelihood), Normal):
        return interval_coverage(family, episodes.query_y, episodes.query_mask)
    given = predictive_probabilities(likelihood), episodes.query_y, episodes.query_mask
    return {"bins": bin_sums(*given), **prediction_sets(*given)}


@torch.no_grad()
def calibration(learner: MetaLearner, batches: Iterable[Episodes], num_samples: int) -> dict[str, Tensor]:
    """Figures [T, ...] of guide.posterior on all tasks of the batches."""
    gathered: dict[str, list[Tensor]] = {}
    for episodes in batches:
        for name, value in of_batch(learner, learner.featured(episodes), num_samples).items():
            gathered.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in gathered.items()}


# ---------------------------------------------------------------- classes that the support set does not have


def without_classes(episodes: Episodes, way: int) -> tuple[Observed, Tensor]:
    """Tasks that are told of their first `way` classes alone, and which queries are of the others [T, Q].

    Support points of the others and their queries are masked: no posterior sees them, but w still predicts them.
    """
    told, unseen = episodes.support_y < way, (episodes.query_y >= way) & episodes.query_mask
    observed = replace(
        episodes.observed(),
        num_classes=way,
        support_y=torch.where(told, episodes.support_y, 0),
        support_mask=episodes.support_mask & told,
        query_mask=episodes.query_mask & ~unseen,
        classes=None if episodes.classes is None else episodes.classes[:, :way],
    )
    return observed, unseen


@torch.no_grad()
def unseen_classes(learner: MetaLearner, batches: Iterable[Episodes], way: int, num_samples: int) -> dict[str, Tensor]:
    """Entropy of the predictive, in nats, on queries of classes of the support set and of classes that it has not.

    known, unseen: mean over the queries of a task [T]. auroc [T]: the probability that a query of an unseen class has
    the larger entropy of a pair, ties at half; 1/2 for a predictive that cannot tell. The weights are
    inferred from the support set and the known queries, and predict both; `batches` have more classes than `way`.
    """
    each: dict[str, list[Tensor]] = {"known": [], "unseen": [], "auroc": []}
    for episodes in batches:
        observed, unseen = without_classes(learner.featured(episodes), way)
        _, likelihood = learner.posterior_predictive(observed, num_samples)
        entropy = Categorical(probs=predictive_probabilities(likelihood)).entropy()
        each["known"].append(masked_mean(entropy, observed.query_mask))
        each["unseen"].append(masked_mean(entropy, unseen))
        each["auroc"].append(auroc(entropy, observed.query_mask, unseen))
    return {name: torch.cat(values).cpu() for name, values in each.items()}


def auroc(scores: Tensor, negative: Tensor, positive: Tensor) -> Tensor:
    """P(score of a positive > score of a negative) + P(equal) / 2 of each task [T]; all [T, Q]. (Mann and Whitney.)"""
    difference = scores.unsqueeze(-1) - scores.unsqueeze(-2)
    won = (difference > 0).to(scores.dtype) + 0.5 * (difference == 0).to(scores.dtype)
    pairs = positive.unsqueeze(-1) & negative.unsqueeze(-2)
    return (won * pairs).sum((-1, -2)) / pairs.sum((-1, -2))
