"""Computation of features by the backbone of a learner: once per batch, before model and guide run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_metabayes.backbone import Backbone
from pyro_metabayes.episodes import Observed
from pyro_metabayes.inference.capabilities import has
from pyro_metabayes.model import Model
from pyro_metabayes.prediction.arrays import holds_inputs
from pyro_metabayes.prediction.images import as_float
from pyro_metabayes.validation.structure import check_inputs
from pyro_metabayes.validation.values import check_points

Data = TypeVar("Data", bound=Observed)


@runtime_checkable
class EmbedsTasks(Protocol):
    """Interface of a backbone with features that depend on all points of a task."""

    def embed_tasks(self, data: Data) -> Data:
        """Replace inputs [T, N, *X] of N points per task by features [T, N, F]; labels are not used."""


class Frame(Protocol):
    """Interface of an encoder of queries, for a batch of tasks with encoded support sets.

    Attributes:
        support: the tasks with features of the support points, without queries.
    """

    support: Observed

    def embed(self, x: Tensor) -> Tensor:
        """Compute the features [T, Q, F] of the query inputs [T, Q, *X]."""


@runtime_checkable
class EncodesSupport(Protocol):
    """Interface of a backbone (`EmbedsTasks`) that can encode support sets without the queries."""

    def support_frame(self, data: Observed) -> Frame | None:
        """Encode the support sets, and return an encoder of the queries; None if features depend on other queries."""


@runtime_checkable
class ChecksFeatures(Protocol):
    """Interface of a part of a model that accepts only some features, such as features of unit length."""

    def check_features(self, x: Tensor, learned: bool) -> None:
        """Raise a UsageError for unsuitable features.

        Args:
            x: features [N, D] of N points.
            learned: whether x comes from a backbone with parameters. Such features may be constant.
        """


class Featured(nn.Module):
    """A learner with a backbone that computes the features of tasks.

    Attributes:
        frozen: whether the backbone is frozen. A frozen backbone is not trained, and its tasks already hold features.
            Otherwise, tasks hold inputs of the backbone.
    """

    backbone: Backbone
    model: Model
    frozen: bool

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape *X of one input of the backbone; None stands for any size."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode for all parts except the backbone, which stays in evaluation mode.

        Batch norm layers of the backbone therefore keep their statistics, and dropout layers have no effect, even while
        the backbone is trained. With batch statistics, tasks would depend on each other.
        """
        super().train(mode)
        self.backbone.eval()
        return self

    def embed(self, x: Tensor) -> Tensor:
        """Compute the features [..., D] of inputs [..., *X]; uint8 images are first scaled to [0, 1]."""
        leading = x.shape[: x.dim() - len(self.input_shape)]
        features = self.backbone(as_float(x.flatten(0, len(leading) - 1)))
        return features.view(*leading, *features.shape[1:])

    def featured(self, data: Data) -> Data:
        """Check the tasks, and return the tasks with features; tasks of a frozen backbone already hold features.

        Raises:
            UsageError: shape, dtype or device of the inputs does not fit the learner; or the model refuses the
                features.
        """
        shape = (self.backbone.num_features,) if self.frozen else self.input_shape
        check_inputs(data, shape, next(self.parameters(), None), bytes_too=not self.frozen)
        return self.checked(data) if self.frozen else self.embedded(data)

    def embedded(self, data: Data) -> Data:
        """Return the tasks with features in place of inputs of the backbone."""
        if has(self.backbone, EmbedsTasks):
            return self.checked(self.backbone.embed_tasks(data))
        num_support = data.support_x.shape[1]
        features = self.embed(torch.cat((data.support_x, data.query_x), dim=1))  # the backbone runs once
        views = {name: self.embed(x) for name, x in data.auxiliary.items() if holds_inputs(x, self.input_shape)}
        support, query = features[:, :num_support], features[:, num_support:]
        return self.checked(replace(data, support_x=support, query_x=query, auxiliary=data.auxiliary | views))

    def frame_of(self, data: Observed) -> Frame | None:
        """Encode the support sets, and return an encoder of the queries; None if features depend on other queries."""
        if isinstance(self.backbone, EncodesSupport):
            return self.backbone.support_frame(data)
        return None if isinstance(self.backbone, EmbedsTasks) else PointwiseFrame(self, data)

    def checked(self, data: Data) -> Data:
        """Check masks and features if Pyro's validation is on, and return the tasks.

        Validation is on in the first step of a training.
        """
        if is_validation_enabled():
            check_points(data)
            self.check_features(data)
        return data

    def check_features(self, data: Observed) -> None:
        """Raise a UsageError for features that a part of the model refuses. Some heads require unit length."""
        learned = any(True for _ in self.backbone.parameters())
        for part in self.model.modules():
            if has(part, ChecksFeatures):
                x = torch.cat((data.support_x[data.support_mask], data.query_x[data.query_mask]))
                part.check_features(x, learned)


class PointwiseFrame:
    """Encoder of queries (`Frame`) for a backbone that encodes each point separately."""

    def __init__(self, learner: Featured, data: Observed) -> None:
        features = learner.embed(data.support_x)
        none: dict[str, Any] = {"query_x": features[:, :0], "query_mask": data.query_mask[:, :0]}
        self.support = replace(data, support_x=features, **none)
        self.embed = learner.embed


def with_queries(data: Observed, features: Tensor) -> Observed:
    """Return the tasks with new queries, given by features [T, Q, F], all unmasked."""
    return replace(data, query_x=features, query_mask=None)  # type: ignore[arg-type]  # None: all true
