"""Predictions of query labels, by the family of the likelihood: what the scores are functions of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Normal

from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.prediction.averages import log_mean_exp, most_probable


@dataclass(frozen=True, eq=False)
class Predictions(ABC):
    """p(y | x, w_l) for L samples w_l and the queries of T tasks, with their labels; quantities are computed once."""

    labels: Tensor  # [T, Q] classes, or [T, Q, Y] numbers
    mask: Tensor  # [T, Q], True for a query that counts

    @property
    @abstractmethod
    def log_prob(self) -> Tensor:
        """log p(y_i | x_i, w_l) [L, T, Q], in nats; the density of a number."""

    @property
    def joint_log_prob(self) -> Tensor:
        """log (1/L) sum_l prod_i p(y_i | x_i, w_l) [T], over the queries that count, in nats."""
        return log_mean_exp((self.log_prob * self.mask).sum(-1))


@dataclass(frozen=True, eq=False)
class ClassPredictions(Predictions):
    """Predictions of a Categorical likelihood."""

    log_probs: Tensor  # log p(y = c | x, w_l) [L, T, Q, C], normalised, in nats

    @cached_property
    def log_prob(self) -> Tensor:
        """log p(y_i | x_i, w_l) [L, T, Q], in nats."""
        labels = self.labels.expand(self.log_probs.shape[:-1]).unsqueeze(-1)
        return self.log_probs.gather(-1, labels).squeeze(-1)

    @cached_property
    def averaged(self) -> Tensor:
        """log (1/L) sum_l p(y = c | x, w_l) [T, Q, C], in nats: probabilities are averaged, never logits."""
        return log_mean_exp(self.log_probs)

    @cached_property
    def hits(self) -> Tensor:
        """1 where the most probable class of the averaged prediction is right, else 0 [T, Q]."""
        return (most_probable(self.averaged) == self.labels).to(self.log_probs.dtype)

    @property
    def is_point(self) -> bool:
        """Whether there is one sample, as of a point estimate."""
        return len(self.log_probs) == 1


@dataclass(frozen=True, eq=False)
class BaseNovelPredictions(ClassPredictions):
    """Predictions among novel classes, the first num_novel of the C, and base classes, the others."""

    num_novel: int

    @cached_property
    def is_novel(self) -> Tensor:
        """Whether the label of a query is a novel class [T, Q]."""
        return self.labels < self.num_novel


@dataclass(frozen=True, eq=False)
class RealPredictions(Predictions):
    """Predictions of a Normal likelihood: of samples, or with w integrated out, which is one sample."""

    mean: Tensor  # of y | x, w_l [L, T, Q, Y], in the unit of y
    sd: Tensor  # of y | x, w_l [L, T, Q, Y], in the unit of y
    joint: Tensor | None = None  # log p(y_1, ..., y_Q | x) [T] where w is integrated out, in nats

    @cached_property
    def log_prob(self) -> Tensor:
        """log p(y_i | x_i, w_l) [L, T, Q], the log density, in nats."""
        return Normal(self.mean, self.sd).log_prob(self.labels).sum(-1)

    @property
    def joint_log_prob(self) -> Tensor:
        """log p(y_1, ..., y_Q | x) [T], over the queries that count, in nats."""
        return super().joint_log_prob if self.joint is None else self.joint


def predictions_of(likelihood: TorchDistribution, y: Tensor, mask: Tensor) -> Predictions:
    """The predictions that a likelihood makes.

    Args:
        likelihood: p(y | x, w_l), batch [L, T, Q].
        y: labels of the queries, [T, Q] classes or [T, Q, Y] numbers.
        mask: [T, Q], True for a query that counts.

    Returns:
        ClassPredictions of a Categorical, RealPredictions of a Normal.

    Raises:
        UsageError: for a likelihood of another family.
    """
    family: Any = innermost(likelihood)
    if isinstance(family, Categorical):
        return ClassPredictions(y, mask, family.logits)  # Categorical normalises its logits
    if isinstance(family, Normal):
        return RealPredictions(y, mask, family.mean, family.stddev)
    raise UsageError(f"expected a Categorical or Normal likelihood to score, got {type(family).__name__}")
