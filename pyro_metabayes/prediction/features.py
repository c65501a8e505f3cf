"""Maps inputs to features by the backbone of a learner, once per batch, outside model and guide."""

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
    """A backbone whose features of a point depend on the other points of its task."""

    def embed_tasks(self, data: Data) -> Data:
        """The tasks with features [T, N, F] in place of inputs [T, N, *X]; no label enters."""


class Frame(Protocol):
    """The features of a task whose support set is encoded once.

    Attributes:
        support: the task with features of the support points, without queries.
    """

    support: Observed

    def embed(self, x: Tensor) -> Tensor:
        """Features [T, Q, F] of query inputs [T, Q, *X]."""


@runtime_checkable
class EncodesSupport(Protocol):
    """A backbone of EmbedsTasks whose features may depend on the support set alone."""

    def support_frame(self, data: Observed) -> Frame | None:
        """The features of the tasks; None if they depend on the queries."""


@runtime_checkable
class ChecksFeatures(Protocol):
    """A part of a model that accepts only some features, such as features of unit length."""

    def check_features(self, x: Tensor, learned: bool) -> None:
        """Raise a UsageError for other features x [N, D]; learned: whether x is from a network (it may be constant)."""


class Featured(nn.Module):
    """A learner with a backbone.

    Attributes:
        frozen: whether the backbone is not trained. Episodes then hold features, otherwise inputs of the backbone.
    """

    backbone: Backbone
    model: Model
    frozen: bool

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """*X, the shape of one input of the backbone; None: any size."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts except the backbone, which stays in evaluation mode.

        With batch statistics, tasks would depend on each other. So batch norm layers of the backbone keep their
        statistics, and its dropout layers have no effect, even while it is trained.
        """
        super().train(mode)
        self.backbone.eval()
        return self

    def embed(self, x: Tensor) -> Tensor:
        """Features [..., D] of inputs [..., *X]; uint8 images are scaled to [0, 1] first."""
        leading = x.shape[: x.dim() - len(self.input_shape)]
        return self.backbone(as_float(x.flatten(0, len(leading) - 1))).unflatten(0, leading)

    def featured(self, data: Data) -> Data:
        """The tasks with features in place of inputs; unsuitable inputs raise a UsageError."""
        shape = (self.backbone.num_features,) if self.frozen else self.input_shape
        check_inputs(data, shape, next(self.parameters(), None), bytes_too=not self.frozen)
        return self.checked(data) if self.frozen else self.embedded(data)

    def embedded(self, data: Data) -> Data:
        """The tasks with features in place of inputs of the backbone."""
        if has(self.backbone, EmbedsTasks):
            return self.checked(self.backbone.embed_tasks(data))
        num_support = data.support_x.shape[1]
        features = self.embed(torch.cat((data.support_x, data.query_x), dim=1))  # the backbone runs once
        views = {name: self.embed(x) for name, x in data.auxiliary.items() if holds_inputs(x, self.input_shape)}
        support, query = features[:, :num_support], features[:, num_support:]
        return self.checked(replace(data, support_x=support, query_x=query, auxiliary=data.auxiliary | views))

    def frame_of(self, data: Observed) -> Frame | None:
        """The features of tasks [T, N, *X], encoded once; None if those of the support set depend on the queries."""
        if isinstance(self.backbone, EncodesSupport):
            return self.backbone.support_frame(data)
        return None if isinstance(self.backbone, EmbedsTasks) else PointwiseFrame(self, data)

    def checked(self, data: Data) -> Data:
        """Tasks with features, checked if Pyro's validation is on, as in the first step of a training."""
        if is_validation_enabled():
            check_points(data)
            self.check_features(data)
        return data

    def check_features(self, data: Observed) -> None:
        """Raise a UsageError for features that a part of the model does not accept, such as a head for unit length."""
        learned = any(True for _ in self.backbone.parameters())
        for part in self.model.modules():
            if has(part, ChecksFeatures):
                x = torch.cat((data.support_x[data.support_mask], data.query_x[data.query_mask]))
                part.check_features(x, learned)


class PointwiseFrame:
    """The features of a task by a backbone that maps each point by itself."""

    def __init__(self, learner: Featured, data: Observed) -> None:
        features = learner.embed(data.support_x)
        none: dict[str, Any] = {"query_x": features[:, :0], "query_mask": data.query_mask[:, :0]}
        self.support = replace(data, support_x=features, **none)
        self.embed = learner.embed


def with_queries(data: Observed, features: Tensor) -> Observed:
    """The tasks with features [T, Q, F] of queries, all unmasked."""
    return replace(data, query_x=features, query_mask=None)  # type: ignore[arg-type]  # None: all true
