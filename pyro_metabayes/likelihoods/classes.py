"""Predictions of classes, and those under Categorical likelihoods."""

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
from pyro_metabayes.prediction.averages import log_mean_exp, most_probable, standard_error

TIED = 0.1  # nats between the logits of two classes up to which a sample does not predict another class


@register(Categorical)
@dataclass(frozen=True, eq=False)
class ClassPredictions(Predictions):
    """Predictions of classes without an order. A new family of classes defines `log_probs_of`."""

    log_probs: Tensor  # log p(y = c | x, w_l) [L, T, Q, C], normalised, in nats

    @classmethod
    def of(cls, family: Any, labels: Tensor, mask: Tensor) -> Self:
        """As `Predictions.of`; labels may also be one number per query [T, Q, 1]."""
        one_per_query = labels.squeeze(-1).long() if labels.dim() == 3 else labels
        return cls(one_per_query, mask, cls.log_probs_by_query(family))

    @classmethod
    def log_probs_of(cls, family: Any) -> Tensor:
        """log p(y = c | x, w_l) [*batch, C], normalised, of a distribution with any batch shape."""
        return family.logits  # Categorical normalises its logits

    @classmethod
    def log_probs_by_query(cls, family: Any) -> Tensor:
        """log p(y = c | x, w_l) [L, T, Q, C], normalised.

        Raises:
            UsageError: the likelihood has more than one class per query.
        """
        log_probs = cls.log_probs_of(family)
        if log_probs.dim() < 5:
            return log_probs
        if log_probs.shape[3] != 1:
            raise UsageError(
                f"expected one label per query of a {type(family).__name__} likelihood, got {log_probs.shape[3]}; "
                "use a source with one target"
            )
        return log_probs.squeeze(3)

    @classmethod
    def spread(cls, family: Any) -> dict[str, Tensor]:
        """As `Predictions.spread`: logit_variance, disagreement, information and information_error [T, Q].

        logit_variance is the variance over samples of the log probabilities, centred over classes. disagreement is the
        share of samples that predict another class than the averaged prediction (ties excluded).
        information is I(y; w) = (1 / (L - 1)) sum_l KL(p(y | w_l), mean of these), without the bias of the mean over L.
        """
        logits = cls.log_probs_by_query(family)
        centred = logits - logits.mean(-1, keepdim=True)
        ensemble = most_probable(log_mean_exp(logits)).unsqueeze(-1)
        ensemble_logit = logits.gather(-1, ensemble.expand(*logits.shape[:-1], 1)).squeeze(-1)
        disagrees = logits.amax(-1) - ensemble_logit > TIED
        finite = logits.clamp(min=torch.finfo(logits.dtype).min)  # a class of probability 0 adds 0
        divergence = (logits.exp() * (finite - log_mean_exp(finite))).sum(-1)
        return {
            "logit_variance": centred.var(0).mean(-1),
            "disagreement": disagrees.to(logits.dtype).mean(0),
            "information": divergence.sum(0) / (len(logits) - 1),
            "information_error": standard_error(divergence),
        }

    @cached_property
    def log_prob(self) -> Tensor:
        """log p(y_i | x_i, w_l) [L, T, Q], in nats."""
        labels = self.labels.expand(self.log_probs.shape[:-1]).unsqueeze(-1)
        return self.log_probs.gather(-1, labels).squeeze(-1)

    @cached_property
    def averaged(self) -> Tensor:
        """log (1/L) sum_l p(y = c | x, w_l) [T, Q, C], in nats: the average of probabilities, not of logits."""
        return log_mean_exp(self.log_probs)

    @cached_property
    def hits(self) -> Tensor:
        """1 where the most probable class of the averaged prediction is correct, else 0 [T, Q]."""
        return (most_probable(self.averaged) == self.labels).to(self.log_probs.dtype)

    @cached_property
    def entropy(self) -> Tensor:
        """H[(1/L) sum_l p(y | x, w_l)] [T, Q], in nats."""
        return entropy_of(self.averaged)

    @cached_property
    def information(self) -> Tensor:
        """H[(1/L) sum_l p(y | x, w_l)] - (1/L) sum_l H[p(y | x, w_l)] [T, Q], in nats; 0 if L = 1.

        This is the mutual information of a label and w. (Houlsby et al. 2011)
        """
        if self.is_point:
            return 0.0 * self.averaged[..., 0]
        return (self.entropy - entropy_of(self.log_probs).mean(0)).clamp(min=0)

    @property
    def is_point(self) -> bool:
        """Whether there is only one sample, as for a point estimate."""
        return len(self.log_probs) == 1


@dataclass(frozen=True, eq=False)
class BaseNovelPredictions(ClassPredictions):
    """Predictions among C classes, of which the first num_novel are novel classes and the others base classes."""

    num_novel: int

    @cached_property
    def is_novel(self) -> Tensor:
        """Whether the label of a query is a novel class [T, Q]."""
        return self.labels < self.num_novel


def entropy_of(log_probs: Tensor) -> Tensor:
    """Entropy [...] of log p(c) [..., C], in nats; a class of probability 0 adds 0."""
    return -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


def class_probabilities(likelihood: TorchDistribution) -> Tensor:
    """p(y = c | x, w_l) [L, T, Q, C] of a likelihood of classes, batch [L, T, Q]. Raises: as `class_log_probs`."""
    return class_log_probs(likelihood).softmax(-1)


def class_log_probs(likelihood: TorchDistribution) -> Tensor:
    """log p(y = c | x, w_l) [L, T, Q, C] of a likelihood of classes, batch [L, T, Q].

    Raises:
        UsageError: the family is not registered, or its labels are not classes.
    """
    family = innermost(likelihood)
    predictions = registered(family)
    if not issubclass(predictions, ClassPredictions):
        raise UsageError(f"expected a likelihood of classes, got {type(family).__name__}; use posterior_predictive")
    return predictions.log_probs_by_query(family)
