"""Containers for the scores of a batch of tasks and for the result of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_metabayes.diagnostics.collapse_metrics import Spread, summary
from pyro_metabayes.evaluation.expected_calibration_error import calibration_interval
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.evaluation.score import TaskScores
from pyro_metabayes.evaluation.scores import SCORES, step_scores

GROUP = "group"  # the entry of tasks.npz with the group of each task


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation over T tasks; print() shows a table of the metrics with 95% intervals.

    Args:
        metrics: the metrics of results.json by name: the scores (a number or {mean, ci95}), the interval and floor of
            the ECE, by_step, information, temperature, the number of learners, seconds and the collapse metrics. A
            metric is None if it is not defined for the model or the data.
        per_task: arrays [T] by name of the score, the content of tasks.npz, for paired comparisons. "group" is the
            group of each task, for tasks with groups.
    """

    metrics: dict[str, Any]
    per_task: dict[str, np.ndarray]

    def __str__(self) -> str:
        units = {score.name: score.unit for score in SCORES}
        rows = [("metric", "value", "95% interval", "unit")]
        for name, entry in self.metrics.items():
            value = entry.get("mean") if isinstance(entry, Mapping) else entry
            if isinstance(value, float):
                interval = f"+- {self._ci95(name):.4f}" if name in self.per_task else ""
                rows.append((name, f"{value:.4f}", interval, units.get(name, "")))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def _ci95(self, name: str) -> float:
        return ci95_of(self.per_task[name], self.per_task.get(GROUP))


@dataclass(frozen=True, eq=False)
class BatchScores:
    """Scores of T tasks, and spreads of prior and posterior, on one device.

    Args:
        scores: tensors [T] by name of the score. The expected calibration error (ece) has [T, Q, 3] for Q queries.
        spreads: tensors [T] or [T, weights] by name; the collapse metrics are functions of the spreads.
        by_step: [T, K + 1, J], the J scores in `step_scores` after 0, ..., K inner steps; None without an inner loop.
        groups: [T], the group of each task; tasks of one group are dependent. None: all tasks are independent.
    """

    scores: TaskScores
    spreads: Spread
    by_step: Tensor | None = None
    groups: Tensor | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[BatchScores]) -> BatchScores:
        """Concatenate the scores and spreads of several batches along the task axis.

        Args:
            parts: at least one batch. All batches have the same scores and spreads.

        Returns:
            The scores and spreads of all tasks, on the device of the batches.
        """
        by_step = [part.by_step for part in parts if part.by_step is not None]
        groups = [part.groups for part in parts if part.groups is not None]
        return cls(
            _concatenated([part.scores for part in parts]),
            _concatenated([part.spreads for part in parts]),
            torch.cat(by_step) if by_step else None,
            torch.cat(groups) if groups else None,
        )

    def cpu(self) -> BatchScores:
        """Copy all values to the CPU."""
        by_step, groups = (None if value is None else value.cpu() for value in (self.by_step, self.groups))
        return BatchScores(_on_host(self.scores), _on_host(self.spreads), by_step, groups)

    def evaluation(self, others: dict[str, Any]) -> Evaluation:
        """Summarise the scores and spreads over the tasks; all values must be on the CPU.

        Args:
            others: further metrics by name, added to the result without change.

        Returns:
            Metrics over the tasks, and the scores of each task. A score is None if it is not defined for the labels.
        """
        values, groups = self.scores, None if self.groups is None else self.groups.numpy()
        metrics: dict[str, Any] = {
            score.name: score.summary(values[score.name], groups) if score.name in values else None for score in SCORES
        }
        undefined = {"ece_ci95": None, "ece_floor": None}
        metrics |= calibration_interval(values["ece"], self.groups) if "ece" in values else undefined
        means = {score.name for score in SCORES if score.is_mean}
        return Evaluation(
            metrics | {"by_step": means_by_step(self.by_step)} | others | summary(self.spreads),
            {name: value.numpy() for name, value in values.items() if name in means}
            | ({} if groups is None else {GROUP: groups}),
        )


def _on_host(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in values.items()}


def _concatenated(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(_of_one_width([part[name] for part in parts])) for name in parts[0]}


def _of_one_width(parts: Sequence[Tensor]) -> list[Tensor]:
    """Pad calibration values [tasks, queries, 3] of several batches to the same number of queries.

    The last of the 3 values is the mask: 0 for the added queries. Tensors with fewer axes are returned unchanged.
    """
    if parts[0].dim() < 3:
        return list(parts)
    most = max(part.shape[1] for part in parts)
    return [pad(part, (0, 0, 0, most - part.shape[1])) for part in parts]


def means_by_step(by_step: Tensor | None) -> dict[str, dict[str, float | None]] | None:
    """Compute the mean over tasks of the scores after each number of inner steps.

    Args:
        by_step: [T, K + 1, J], the J scores in `step_scores` of T tasks after 0, ..., K steps; None without an inner
            loop.

    Returns:
        {number of inner steps: {score: mean}}; None without an inner loop. A mean that is not finite is None.
    """
    if by_step is None:
        return None
    names = [score.name for score in step_scores()]
    return {
        str(step): {name: mean if math.isfinite(mean) else None for name, mean in zip(names, means, strict=True)}
        for step, means in enumerate(by_step.mean(0).tolist())
    }
