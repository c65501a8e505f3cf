"""The data of a batch of tasks. All files use these names of axes:

    T  tasks            S  support points      Q  query points     N  support or query points
    C  classes (way)    D  features            *X  axes of one input
    *W  axes of the latent of one task, in most models [C, W] or [Y, W]: W weights for each class or output
    Y  numbers in one label of a regression

Leading axes `...` are samples of the latent. The order of the points of a task has no meaning. Masked points have no
effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_metabayes.errors import UsageError
from pyro_metabayes.validation.structure import check_structure, check_tensors

OF_QUERIES = ("query_x", "query_y", "query_mask", "unknown_mask")  # fields [T, Q, ...]


@dataclass(eq=False, kw_only=True)
class Observed:
    """Batch of tasks as a guide sees it: labelled support sets and unlabelled query inputs.

    Raises:
        UsageError: shapes, dtypes or devices of the tensors do not agree (`validation/structure.py`). The values of the
            tensors are checked later, by the learner (`validation/values.py`).
    """

    support_x: Tensor  # [T, S, *X]
    support_y: Tensor  # [T, S] classes, or [T, S, Y] numbers
    query_x: Tensor  # [T, Q, *X]
    num_classes: int = 0  # 0: the labels are numbers
    support_mask: Tensor = None  # type: ignore[assignment]  # [T, S], default all true
    query_mask: Tensor = None  # type: ignore[assignment]  # [T, Q], default all true
    classes: Tensor | None = None  # [T, C], ids of the classes in their data set (`Bank`)
    # Further tensors [T, ...] by name. "turned": rotated queries [T, Q, 3, *X] (domains.py). "base": numbers [T, B] of
    # the base classes (base_novel.py).
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tensors(self)
        for mask, points in (("support_mask", self.support_x), ("query_mask", self.query_x)):
            if getattr(self, mask) is None:
                every = torch.ones((), dtype=torch.bool, device=points.device)
                setattr(self, mask, every.expand(points.shape[:2]))
        check_structure(self)

    @property
    def num_tasks(self) -> int:
        return self.query_x.shape[0]

    @property
    def seen_queries(self) -> Tensor:
        """Mask [T, Q] of the queries that a guide sees (T tasks, Q queries per task)."""
        return self.query_mask

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the same tasks with `function` applied to every tensor."""
        changed: dict[str, Any] = {
            item.name: function(value) for item in fields(self) if isinstance(value := getattr(self, item.name), Tensor)
        }
        auxiliary = {name: function(value) for name, value in self.auxiliary.items()}
        return replace(self, **changed, auxiliary=auxiliary)

    def change_queries(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the same tasks with `function` applied to every tensor of queries [T, Q, ...]."""
        names = [name for name in OF_QUERIES if getattr(self, name, None) is not None]
        changed: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        views = {name: function(value) for name, value in self.auxiliary.items() if self._is_of_queries(value)}
        return replace(self, **changed, auxiliary=self.auxiliary | views)

    def _is_of_queries(self, auxiliary: Tensor) -> bool:
        """Return whether a tensor has the axes [T, Q, ..., *X]: inputs for each query, such as rotated queries."""
        return auxiliary.dim() >= self.query_x.dim() and auxiliary.shape[1] == self.query_x.shape[1]

    def tasks(self, index: slice | Tensor) -> Self:
        """Return the tasks at `index`, in the order of the index."""
        return self.map_tensors(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on a device, made without host synchronisation."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(eq=False, kw_only=True)
class Episodes(Observed):
    """Batch of tasks with query labels, for objectives and scores: an `Observed` and `query_y`.

    A task may have queries of unknown classes, i.e. of classes without support points. These queries have no label.
    Objectives and scores do not count them: `query_mask` is false for them. A guide sees them: in `observed`,
    `query_mask` is true for them.
    """

    query_y: Tensor  # [T, Q] classes (arbitrary for a query of an unknown class), or [T, Q, Y] numbers
    unknown_mask: Tensor | None = None  # [T, Q], true for queries of unknown classes; None: there are none

    @property
    def seen_queries(self) -> Tensor:
        """Mask [T, Q] of the queries that a guide sees: those with a label, and those of unknown classes."""
        return self.query_mask if self.unknown_mask is None else self.query_mask | self.unknown_mask

    def observed(self) -> Observed:
        """Return the same tasks without the query labels."""
        kept = {item.name: getattr(self, item.name) for item in fields(Observed)}
        return Observed(**kept | {"query_mask": self.seen_queries})

    def pooled(self) -> Observed:
        """Return the tasks without query labels, with support set and labelled queries together as support set.

        The guide savi (shared amortized variational inference) computes its training posterior from these tasks.
        """
        return replace(
            self.observed(),
            support_x=torch.cat((self.support_x, self.query_x), dim=1),
            support_y=torch.cat((self.support_y, self.query_y), dim=1),
            support_mask=torch.cat((self.support_mask, self.query_mask), dim=1),
        )

    def labelled(self, labels: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, labels and mask of the set `labels`: "support", "query" or "all" (both sets)."""
        if labels == "query":
            return self.query_x, self.query_y, self.query_mask
        source = self.pooled() if labels == "all" else self
        return source.support_x, source.support_y, source.support_mask

    def as_support(self, labels: str) -> Observed:
        """Return an Observed whose support set is the set `labels`: "support", "query" or "all" (both sets)."""
        x, y, mask = self.labelled(labels)
        return replace(self.observed(), support_x=x, support_y=y, support_mask=mask)


def concatenate(parts: Sequence[Episodes]) -> Episodes:
    """Join batches of tasks, in order, into one batch. Smaller sets of points are padded with masked points."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if len(shapes := {(part.num_classes, *part.query_x.shape[2:]) for part in parts}) > 1:
        raise UsageError(
            f"expected tasks of one way and one input shape in a batch, got (way, *input shape) = {sorted(shapes)}; "
            "make separate batches (with data=mixture, set train.tasks_per_step to 12 or a divisor of 12)"
        )
    if len({part.unknown_mask is None for part in parts}) > 1:
        raise UsageError(
            "expected unknown_mask in all Episodes of a batch or in none, got some with and some without; set "
            "unknown_mask in all Episodes"
        )
    joined: dict[str, Any] = {}
    for item in fields(first):
        if isinstance(getattr(first, item.name), Tensor):
            joined[item.name] = _joined([getattr(part, item.name) for part in parts])
    auxiliary = {name: torch.cat([part.auxiliary[name] for part in parts]) for name in first.auxiliary}
    return replace(first, **joined, auxiliary=auxiliary)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors [T_i, N_i, ...] over tasks. They are padded to the largest N_i with zeros or false."""
    most = max(part.shape[1] for part in parts)

    def filled(part: Tensor) -> Tensor:
        missing = most - part.shape[1]
        return pad(part, (*(0, 0) * (part.dim() - 2), 0, missing)) if missing else part

    return torch.cat([filled(part) for part in parts])


def class_sums(x: Tensor, y: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum [T, C, D] and the number [T, C, 1] of the unmasked points of each class of each task.

    Args:
        x: N points with D features for each of T tasks [T, N, D].
        y: class of each point [T, N].
        mask: true for the points that count [T, N].
        num_classes: number of classes C.
    """
    member = (y.unsqueeze(-1) == torch.arange(num_classes, device=y.device)) & mask.unsqueeze(-1)
    weight = member.to(x.dtype).mT  # [T, C, N]
    return weight @ x, weight.sum(-1, keepdim=True)


def class_means(observed: Observed) -> Tensor:
    """Return the mean feature vector of the support points of each class [T, C, D]; 0 for a class without points.

    Raises:
        UsageError: the labels are numbers.
    """
    if observed.support_y.is_floating_point():
        raise UsageError("expected class labels for class means, got numeric labels; use data with classes")
    sums, counts = class_sums(observed.support_x, observed.support_y, observed.support_mask, observed.num_classes)
    return sums / counts.clamp(min=1)
