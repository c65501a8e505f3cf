"""The range of the tasks that a learner was trained on, and a warning if a transductive guide is used on others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UnfamiliarTasks
from pyro_metabayes.guide import Guide

FACTOR = 2  # without a warning, the number of queries may be smaller or larger by this factor
MARGIN = 0.1  # without a warning, largest_share may be larger by this much, about 3 sd of its mean over 16 tasks

Span = tuple[int, int]  # smallest and largest number


@dataclass(frozen=True)
class TaskRange:
    """The range of a batch of tasks; `learner.trained_on = TaskRange.of(episodes)` records it for a learner.

    Attributes:
        way: number of classes; 0 if labels are numbers.
        shot: smallest and largest number of support points per class (per task if labels are numbers).
        query: smallest and largest number of queries per task.
        largest_share: share of the most frequent class among the queries of a task, mean over tasks. It is 1 / way for
            balanced query sets, and larger for imbalanced ones. None if the labels are unknown or numbers.
    """

    way: int
    shot: Span
    query: Span
    largest_share: float | None

    @classmethod
    def of(cls, data: Observed) -> TaskRange:
        """The range of the given tasks; labels and masks are read on the host."""
        way, query_y = data.num_classes, getattr(data, "query_y", None)
        shots = _class_counts(data.support_y, data.support_mask, way) if way else data.support_mask.sum(1)
        share = None
        if way and query_y is not None:
            counts = _class_counts(query_y, data.query_mask, way)
            share = (counts.amax(1) / counts.sum(1).clamp(min=1)).mean().item()
        return cls(way, _span(shots), _span(data.seen_queries.sum(1)), share)

    @classmethod
    def restored(cls, saved: Mapping[str, Any] | None) -> TaskRange | None:
        """The range in a checkpoint; None for a checkpoint without a range, as in earlier versions."""
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
        """Descriptions of the respects in which other tasks, with the range `met`, are outside this range."""
        found = []
        if met.way != self.way:
            found.append(f"{met.way} classes (trained on {self.way})")
        if met.shot[0] < self.shot[0] or met.shot[1] > self.shot[1]:
            found.append(f"{_words(met.shot)} shots (trained on {_words(self.shot)})")
        if met.query[0] * FACTOR < self.query[0] or met.query[1] > self.query[1] * FACTOR:
            found.append(f"{_words(met.query)} queries (trained on {_words(self.query)})")
        shares = met.largest_share, self.largest_share
        if met.way == self.way and None not in shares and shares[0] > shares[1] + MARGIN:  # type: ignore[operator]
            found.append(f"a share of {shares[0]:.0%} of the most frequent class (trained on {shares[1]:.0%})")
        return found


def warn_if_unfamiliar(guide: Guide, trained_on: TaskRange | None, data: Observed, level: int = 4) -> None:
    """Warn if a transductive guide is used on tasks outside the range of its training, if that range is recorded.

    Args:
        guide: the guide.
        trained_on: the range of its training tasks; None: not recorded.
        data: the tasks.
        level: `stacklevel` of the warning; 4 is the caller of a function under torch.no_grad.
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
    """Number of unmasked points of each class [T, C]."""
    return ((y.unsqueeze(-1) == torch.arange(way, device=y.device)) & mask.unsqueeze(-1)).sum(1)


def _span(counts: Tensor) -> Span:
    least, most = torch.stack(counts.aminmax()).tolist()
    return least, most


def _words(span: Span) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]} to {span[1]}"
