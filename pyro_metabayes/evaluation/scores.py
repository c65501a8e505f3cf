"""Scores of predictions per task: of class probabilities, and of real numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Normal

from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.vision import torchvision

CALIBRATION_BINS = 15


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over points with mask True: values and mask [..., Q] -> [...]."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """log (1/L) sum_l exp(values_l)."""
    if values.shape[dim] == 1:  # exact for one sample, and saves a tenth of the time of an evaluation
        return values.squeeze(dim)
    return values.logsumexp(dim) - math.log(values.shape[dim])


def most_probable(log_probs: Tensor) -> Tensor:
    """The class of the largest log probability, the first of equals: [..., C] -> [...]; 20 times as fast as argmax."""
    return log_probs.max(-1).indices


def scores_of(likelihood: TorchDistribution, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Scores [T] of p(y | x, w_l), batch [L, T, Q]; the family of the likelihood determines which scores."""
    family: Any = innermost(likelihood)
    if isinstance(family, Categorical):
        return classification_scores(family.logits, y, mask)  # Categorical normalises its logits
    if isinstance(family, Normal):
        return regression_scores(family.mean, family.stddev, y, mask)
    raise UsageError(f"expected a Categorical or Normal likelihood to score, got {type(family).__name__}")


def classification_scores(log_probs: Tensor, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Scores [T], from log p(y = c | x, w_l) [L, T, Q, C], labels and mask [T, Q].

    The prediction is the average of the probabilities over samples of w, never of the logits.
    accuracy: share of queries whose most probable class is right.
    accuracy_of_sample: the same for one draw of w, mean over draws.
    nll: -log p(y_i | x_i, D), mean over queries, in nats.
    joint_nll: -(1/Q) log (1/L) sum_l prod_i p(y_i | x_i, w_l), in nats per query: unlike nll it
        rewards predictions that model the dependence between the labels of a task.
    brier: sum_c (p_c - [y = c])^2, mean over queries, 0 to 2.
    mutual_information: H[E_w p(y | x, w)] - E_w H[p(y | x, w)], mean over queries, in nats: the
        information about a label that w would add.
    """
    predictive = log_mean_exp(log_probs)  # [T, Q, C]
    one_sample = len(log_probs) == 1  # a point estimate: no mutual information
    of_label = log_probs.gather(-1, labels.expand(log_probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    hits = (most_probable(predictive) == labels).to(log_probs.dtype)
    hits_of_sample = hits if one_sample else (most_probable(log_probs) == labels).to(log_probs.dtype).mean(0)
    index = labels.unsqueeze(-1)
    error = predictive.exp().scatter_add(-1, index, -torch.ones_like(index, dtype=predictive.dtype))
    information = 0.0 * predictive[..., 0] if one_sample else _entropy(predictive) - _entropy(log_probs).mean(0)
    return {
        "accuracy": masked_mean(hits, mask),
        "accuracy_of_sample": masked_mean(hits_of_sample, mask),
        **_log_scores(of_label, mask),
        "brier": masked_mean(error.square().sum(-1), mask),
        "mutual_information": masked_mean(information.clamp(min=0), mask),
    }


def base_novel_scores(log_probs: Tensor, labels: Tensor, mask: Tensor, num_novel: int) -> dict[str, Tensor]:
    """Scores [T] of learning without forgetting: the three of Gidaris and Komodakis (2018), and base_over_all.

    log p(y = c | x, w_l) [L, T, Q, C], the first num_novel of the C classes novel and all others base classes.
    novel: share of the queries of novel classes predicted correctly when only novel classes are candidates.
    base: the same for base classes. both: share of all queries predicted correctly among all classes.
    base_over_all: share of the queries of base classes predicted correctly among all classes.
    """
    is_novel = labels < num_novel

    def accuracy(candidates: slice, queries: Tensor) -> Tensor:
        """Accuracy on these queries [T, Q] when only these classes are candidates."""
        predicted = most_probable(log_mean_exp(log_probs[..., candidates].log_softmax(-1))) + (candidates.start or 0)
        return masked_mean((predicted == labels).to(log_probs.dtype), queries & mask)

    every, novel, base = slice(None), slice(num_novel), slice(num_novel, None)
    return {
        "novel": accuracy(novel, is_novel),
        "base": accuracy(base, ~is_novel),
        "both": accuracy(every, torch.ones_like(mask)),
        "base_over_all": accuracy(every, ~is_novel),
    }


def regression_scores(mean: Tensor, sd: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Scores [T], from means and sds of y | x, w_l [L, T, Q, Y], y [T, Q, Y] and mask [T, Q].

    nll, joint_nll: as for classes, of the density of y.
    mse: squared error of the mean prediction, mean over queries and outputs.
    coverage90: share of the labels inside the central 90% of the predictive distribution, the mixture over
        the samples: inside where 0.05 <= (1/L) sum_l Phi((y - mean_l) / sd_l) <= 0.95.
    """
    of_label = Normal(mean, sd).log_prob(y).sum(-1)
    below = torch.special.ndtr((y - mean) / sd).mean(0)
    inside = ((below >= 0.05) & (below <= 0.95)).to(y.dtype)
    return {
        **_log_scores(of_label, mask),
        "mse": masked_mean((mean.mean(0) - y).square().mean(-1), mask),
        "coverage90": masked_mean(inside.mean(-1), mask),
    }


def _log_scores(of_label: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """nll and joint_nll of log p(y_i | x_i, w_l) [L, T, Q]."""
    num_queries = mask.sum(-1).clamp(min=1)
    return {
        "nll": -masked_mean(log_mean_exp(of_label), mask),
        "joint_nll": -log_mean_exp((of_label * mask).sum(-1)) / num_queries,
    }


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


def confidence_and_hits(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the most probable class of each query, and whether it is right; [..., C], [...] -> 2 x [...]."""
    confidence, predicted = probabilities.max(-1)
    return confidence, predicted == labels


def calibration_error(confidence: Tensor, hits: Tensor) -> float:
    """Expected calibration error with 15 equal bins, from the confidence and correctness of M queries: [M] and [M]."""
    torchvision()  # torchmetrics imports torchvision, which fails beside a CPU-only torch unless prepared
    from torchmetrics.functional.classification import binary_calibration_error

    return binary_calibration_error(confidence.clamp(max=1), hits.long(), n_bins=CALIBRATION_BINS).item()
