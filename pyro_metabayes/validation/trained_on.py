"""The range of the training tasks of a learner, and a warning if a transductive guide leaves this range."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UnfamiliarTasks, how_many
from pyro_metabayes.guide import Guide

FACTOR = 2  # there is no warning if the number of queries is smaller or larger by at most this factor
MARGIN = 0.1  # no warning if largest_share is larger by at most this: three standard errors of a mean over 16 tasks

Span = tuple[int, int]  # smallest and largest number


@dataclass(frozen=True)
class TaskRange:
    """Range of way, shot, number of queries and class imbalance in a batch of tasks.

    `learner.trained_on = TaskRange.of(episodes)` records the range of the training tasks of a learner.

    Attributes:
        way: number of classes; 0 if labels are numbers.
        shot: smallest and largest number of support points per class (per task if labels are numbers).
        query: smallest and largest number of queries per task.
        largest_share: share of the most frequent class among the queries of a task, mean over tasks. Balanced query
            sets have 1 / way, imbalanced query sets have more. None if the labels are unknown or numbers.
    """

    way: int
    shot: Span
    query: Span
    largest_share: float | None

    @classmethod
    def of(cls, data: Observed) -> TaskRange:
        """Compute the range of a batch of tasks. This reads labels and masks on the host."""
        way, query_y = data.num_classes, getattr(data, "query_y", None)
        shots = _class_counts(data.support_y, data.support_mask, way) if way else data.support_mask.sum(1)
        share = None
        if way and query_y is not None:
            counts = _class_counts(query_y, data.query_mask, way)
            share = (counts.amax(1) / counts.sum(1).clamp(min=1)).mean().item()
        return cls(way, _span(shots), _span(data.seen_queries.sum(1)), share)

    @classmethod
    def restored(cls, saved: Mapping[str, Any] | None) -> TaskRange | None:
        """Return the range saved in a checkpoint. Checkpoints of earlier versions have no range: None."""
        if saved is None:
            return None
        (least_shot, most_shot), (least_query, most_query) = saved["shot"], saved["query"]
        share = saved["largest_share"]
        return cls(
            int(saved["way"]),
            (int(least_shot), int(most_shot)),
            (int(least_query), int(most_query)),
            None if share is None else float(share),
        )

    def differences(self, met: TaskRange) -> list[str]:
        """Describe how tasks with the range `met` leave this range; [] if they are inside."""
        found = []
        if met.way != self.way:
            found.append(f"{how_many(met.way, 'class', 'classes')} (trained on {self.way})")
        if met.shot[0] < self.shot[0] or met.shot[1] > self.shot[1]:
            found.append(f"{_counted(met.shot, 'shot', 'shots')} (trained on {_words(self.shot)})")
        if met.query[0] * FACTOR < self.query[0] or met.query[1] > self.query[1] * FACTOR:
            found.append(f"{_counted(met.query, 'query', 'queries')} (trained on {_words(self.query)})")
        shares = met.largest_share, self.largest_share
        if met.way == self.way and None not in shares and shares[0] > shares[1] + MARGIN:  # type: ignore[operator]
            found.append(f"a share of {shares[0]:.0%} of the most frequent class (trained on {shares[1]:.0%})")
        return found


def warn_if_unfamiliar(guide: Guide, trained_on: TaskRange | None, data: Observed, level: int = 4) -> None:
    """Warn if a transductive guide is used on tasks outside the range of its training tasks.

    Args:
        guide: the guide; there is no warning for inductive guides.
        trained_on: the range of the training tasks of the guide; None: not recorded, so there is no warning.
        data: the tasks on which the guide is used.
        level: `stacklevel` of the warning, which selects the line of code that the warning names. 4 is right if this
            function is called by a function f with the decorator torch.no_grad: the warning names the caller of f.
    """
    if trained_on is None or not guide.transductive:
        return
    if different := trained_on.differences(TaskRange.of(data)):
        warnings.warn(
            "expected tasks like those that this transductive guide was trained on, got "
            f"{', '.join(different)}; predictions may be worse than those of class means, or overconfident: train on "
            "such tasks, or use an inductive guide such as proto",
            UnfamiliarTasks,
            stacklevel=level,
        )


def _class_counts(y: Tensor, mask: Tensor, way: int) -> Tensor:
    """Count the unmasked points of each of `way` classes in each of T tasks [T, way]."""
    return ((y.unsqueeze(-1) == torch.arange(way, device=y.device)) & mask.unsqueeze(-1)).sum(1)


def _span(counts: Tensor) -> Span:
    least, most = torch.stack(counts.aminmax()).tolist()
    return least, most


def _counted(span: Span, one: str, several: str) -> str:
    return f"{_words(span)} {one if span == (1, 1) else several}"


def _words(span: Span) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]} to {span[1]}"
