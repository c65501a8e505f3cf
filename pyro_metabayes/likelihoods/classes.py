"""Predictions of classes: a base class for likelihoods of classes, which is used for Categorical likelihoods."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical

from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.likelihoods.predictions import Predictions, register, registered
from pyro_metabayes.prediction.averages import largest_of_samples, most_probable, variance_of_samples

TIED = 0.1  # classes count as tied in a sample if their log probabilities differ by at most this many nats


@register(Categorical)
@dataclass(frozen=True, eq=False)
class ClassPredictions(Predictions):
    """Predictions of unordered classes under L draws of w. A subclass for a new family defines `log_probs_of`."""

    log_probs: Tensor  # log p(y = c | x, w_l) [L, T, Q, C], normalised, in nats

    @classmethod
    def of(cls, family: Any, labels: Tensor, mask: Tensor) -> Self:
        """Construct the predictions, as in `Predictions.of`. `labels` may have a last axis of size 1."""
        one_per_query = labels.squeeze(-1).long() if labels.dim() == 3 else labels
        return cls(one_per_query, mask, cls.log_probs_by_query(family))

    @classmethod
    def log_probs_of(cls, family: Any) -> Tensor:
        """Return the normalised log probabilities [*batch, C] of a distribution over C classes."""
        return family.logits  # Categorical normalises its logits

    @classmethod
    def log_probs_by_query(cls, family: Any) -> Tensor:
        """Return the normalised log probabilities [L, T, Q, C] per draw, task, query and class.

        Raises:
            UsageError: the likelihood has several labels per query.
        """
        log_probs = cls.log_probs_of(family)
        if log_probs.dim() < 5:
            return log_probs
        if log_probs.shape[3] != 1:
            raise UsageError(
                f"expected one label per query for a {type(family).__name__} likelihood, got {log_probs.shape[3]} "
                "labels; use data with one target"
            )
        return log_probs.squeeze(3)

    @classmethod
    def spread(cls, family: Any) -> dict[str, Tensor]:
        """Measure the variation of the predictions over L samples w_l; values [T, Q] per task and query, by name.

        logit_variance: variance over samples of the log probabilities, centred over classes.
        disagreement: share of samples that predict another class than the averaged prediction (ties excluded).
        information: estimate (1 / (L - 1)) sum_l KL(p(y | w_l), averaged prediction) of I(y; w), in nats.
        information_error: standard error of information.
        """
        log_probs = cls.log_probs_by_query(family)
        labels = torch.zeros_like(log_probs[0, ..., 0], dtype=torch.long)  # not used
        return cls(labels, labels.bool(), log_probs).variation

    @cached_property
    def variation(self) -> dict[str, Tensor]:
        """Variation of the predictions over the samples of w, as in `spread`."""
        log_probs, averaged = self.log_probs, self.averaged
        num_samples = len(log_probs)
        centred = log_probs - log_probs.mean(-1, keepdim=True)
        disagrees = log_probs.amax(-1) - _of_class(log_probs, most_probable(averaged)) > TIED
        # a class of probability 0 adds 0
        divergence = self.negative_entropy - (self.probs * averaged.clamp(min=_least(averaged))).sum(-1)
        return {
            "logit_variance": variance_of_samples(centred).mean(-1),
            "disagreement": disagrees.to(log_probs.dtype).mean(0),
            "information": divergence.sum(0) / (num_samples - 1),
            "information_error": (variance_of_samples(divergence) / num_samples).sqrt(),
        }

    @cached_property
    def log_prob(self) -> Tensor:
        """Log-likelihood log p(y_i | x_i, w_l) [L, T, Q] per sample, task and query, in nats."""
        return _of_class(self.log_probs, self.labels)

    @cached_property
    def probs(self) -> Tensor:
        """Class probabilities p(y = c | x, w_l) [L, T, Q, C] per sample, task, query and class."""
        return self.log_probs.exp()

    @cached_property
    def negative_entropy(self) -> Tensor:
        """Negative entropy sum_c p_c log p_c [L, T, Q] of the prediction per sample, task and query, in nats."""
        return (self.probs * self.log_probs.clamp(min=_least(self.log_probs))).sum(-1)

    @cached_property
    def averaged(self) -> Tensor:
        """Log of the averaged prediction, log (1/L) sum_l p(y = c | x, w_l) [T, Q, C], per task, query and class."""
        if self.is_point:
            return self.log_probs.squeeze(0)
        largest = largest_of_samples(self.log_probs).clamp(min=_least(self.log_probs))
        return (self.log_probs - largest).exp_().mean(0).log_() + largest  # a third of the time of logsumexp

    @cached_property
    def hits(self) -> Tensor:
        """Per task and query [T, Q]: 1 if the most probable class of the averaged prediction is correct, else 0."""
        return (most_probable(self.averaged) == self.labels).to(self.log_probs.dtype)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy [T, Q] of the averaged prediction (1/L) sum_l p(y | x, w_l) per task and query, in nats."""
        return class_entropy(self.averaged)

    @cached_property
    def information(self) -> Tensor:
        """Mutual information of label and w [T, Q] per task and query, in nats; 0 for a single sample of w.

            H[(1/L) sum_l p(y | x, w_l)] - (1/L) sum_l H[p(y | x, w_l)]

        where H is the entropy. (Houlsby et al. 2011.)
        """
        if self.is_point:
            return 0.0 * self.averaged[..., 0]
        return (self.entropy + self.negative_entropy.mean(0)).clamp(min=0)

    @cached_property
    def hits_by_sample(self) -> Tensor:
        """Whether each sample of w predicts the label [L, T, Q]; of tied classes, the first is predicted."""
        classes = torch.arange(self.log_probs.shape[-1], device=self.labels.device)
        before = torch.where(classes < self.labels.unsqueeze(-1), 0.0, -torch.inf).to(self.log_probs.dtype)
        largest_before = (self.log_probs + before).amax(-1)
        return (self.log_prob >= self.log_probs.amax(-1)) & (self.log_prob > largest_before)

    @property
    def is_point(self) -> bool:
        """Whether there is only one sample of w, as for a point estimate."""
        return len(self.log_probs) == 1


def _of_class(log_probs: Tensor, classes: Tensor) -> Tensor:
    """Select the log probability of one class per query from values [L, T, Q, C] of L draws."""
    index = classes.expand(log_probs.shape[:-1]).unsqueeze(-2)
    return log_probs.mT.gather(-2, index).squeeze(-2)


def _least(values: Tensor) -> float:
    return torch.finfo(values.dtype).min


@dataclass(frozen=True, eq=False)
class BaseNovelPredictions(ClassPredictions):
    """Predictions of C classes. The first num_novel classes are novel, the others are base classes."""

    num_novel: int

    @cached_property
    def is_novel(self) -> Tensor:
        """Whether the label is a novel class, per task and query."""
        return self.labels < self.num_novel


def class_entropy(log_probs: Tensor) -> Tensor:
    """Compute the entropy [...] in nats from log probabilities [..., C]; a class with probability 0 adds 0."""
    return -(log_probs.exp() * log_probs.clamp(min=_least(log_probs))).sum(-1)


def class_log_probs(likelihood: TorchDistribution) -> Tensor:
    """Compute the log class probabilities [L, T, Q, C] of a likelihood with batch [L, T, Q].

    Raises:
        UsageError: the family is not registered or does not predict classes.
    """
    family = innermost(likelihood)
    predictions = registered(family)
    if not issubclass(predictions, ClassPredictions):
        raise UsageError(
            f"expected a likelihood over classes, got {type(family).__name__}; use learner.posterior_predictive"
        )
    return predictions.log_probs_by_query(family)
