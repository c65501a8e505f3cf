"""The tasks and learners of the benchmarks: 5-way 1-shot, 15 queries per class, 640 features, no backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyro_metabayes import Episodes, MetaLearner

WAY, SHOT, QUERY, FEATURES, STEPS = 5, 1, 15, 640, 3


@dataclass(frozen=True)
class Size:
    """The sizes of docs/performance.md, or with toy=True one round of the smallest sizes, as a test."""

    toy: bool = False

    def rounds(self, number: int) -> int:
        return 1 if self.toy else number

    def tasks(self, *numbers: int) -> tuple[int, ...]:
        return (2,) if self.toy else numbers


@dataclass(frozen=True)
class Tasks:
    """Class-ordered tasks: support [T, C, shot, D], query [T, Q, D] of unit length, labels [T, Q]."""

    support: Tensor
    query: Tensor
    labels: Tensor

    @property
    def episodes(self) -> Episodes:
        num_tasks, way, shot, _ = self.support.shape
        return Episodes(
            support_x=self.support.flatten(1, 2),
            support_y=_labels(num_tasks, way, shot, self.support.device),
            query_x=self.query,
            query_y=self.labels,
            num_classes=way,
        )


def tasks(
    number: int,
    way: int = WAY,
    shot: int = SHOT,
    query: int = QUERY,
    features: int = FEATURES,
    device: torch.device | str = "cpu",
) -> Tasks:
    """Draw tasks with random class means, unit noise and a ReLU, as data=gaussian_features does."""
    means = 0.3 + 0.27 * torch.randn(number, way, 1, features, device=device)
    support, queries = (
        functional.normalize((means + torch.randn(number, way, n, features, device=device)).relu(), dim=-1)
        for n in (shot, query)
    )
    return Tasks(support, queries.flatten(1, 2).contiguous(), _labels(number, way, query, device))


def _labels(number: int, way: int, per_class: int, device: torch.device | str) -> Tensor:
    """Return class-ordered labels [T, C * per_class]."""
    return torch.arange(way, device=device).repeat_interleave(per_class).expand(number, -1).contiguous()


def learner(
    guide: str,
    prior: str,
    objective: str = "elbo.Elbo",
    of_guide: dict[str, Any] | None = None,
    of_objective: dict[str, Any] | None = None,
    way: int = WAY,
    features: int = FEATURES,
    particles: int = 1,
    device: torch.device | str = "cpu",
    head: str = "Cosine",
) -> MetaLearner:
    """Build a few-shot classifier on features; of_guide, of_objective: settings of guide and objective."""
    module = MetaLearner.from_specification(
        {
            "backbone": {"_target_": "models.backbones.identity.Backbone", "normalise": False},
            "head": {"_target_": f"models.heads.{head}"},
            "prior": {"_target_": f"models.priors.{prior}"},
            "model": {"_target_": "models.few_shot_classifier.Model"},
            "guide": {"_target_": f"guides.{guide}.Guide", **(of_guide or {})},
            "objective": {"_target_": f"pyro_metabayes.objectives.{objective}", **(of_objective or {})},
            "input_shape": [features],
            "num_classes": way,
            "particles": particles,
        }
    )
    return module.to(device)


def make_step(parameters: Iterable[Tensor], loss: Callable[[], Tensor], adam: bool = False) -> Callable[[], None]:
    """Return a training step: forward and backward pass, and a step of SGD with Nesterov momentum, or of Adam."""
    trainable = [value for value in parameters if value.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(trainable, lr=1e-6, momentum=0.9, nesterov=True)
    if adam:
        optimizer = torch.optim.Adam(trainable, lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
