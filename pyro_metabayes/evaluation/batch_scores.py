"""The values of a batch of tasks, and the evaluation that follows from those of all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_metabayes.diagnostics.collapse_metrics import Spread, summary
from pyro_metabayes.evaluation.inner_steps import means_by_step
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.evaluation.score import TaskScores
from pyro_metabayes.evaluation.scores import SCORES


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    metrics: the entries of results.json: one per score (a number or {mean, ci95}), by_step, information, seconds and
        the collapse metrics; null where a setting does not have them.
    per_task: [T] by the name of the score, the content of tasks.npz, for paired comparisons.

    str() is a table of the numbers among the metrics, with the 95% interval of those that are means over tasks.
    """

    metrics: dict[str, Any]
    per_task: dict[str, np.ndarray]

    def __str__(self) -> str:
        units = {score.name: score.unit for score in SCORES}
        rows = [("metric", "value", "95% interval", "unit")]
        for name, entry in self.metrics.items():
            value = entry.get("mean") if isinstance(entry, Mapping) else entry
            if isinstance(value, float):
                interval = f"+- {ci95_of(self.per_task[name]):.4f}" if name in self.per_task else ""
                rows.append((name, f"{value:.4f}", interval, units.get(name, "")))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True, eq=False)
class BatchScores:
    """Values of T tasks, on one device.

    scores: by the name of a score, [T], of ece [T, Q, 3].
    spreads: by name, [T] or [T, weights], from which the collapse metrics are computed.
    by_step: `step_scores` [T, K + 1, scores] after each inner step; None where there are none.
    """

    scores: TaskScores
    spreads: Spread
    by_step: Tensor | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[BatchScores]) -> BatchScores:
        """The values of all tasks of the batches, in their order.

        Args:
            parts: at least one batch, all with the same names.

        Returns:
            The values of all tasks, on the device of the batches.
        """
        by_step = [part.by_step for part in parts if part.by_step is not None]
        return cls(
            _concatenated([part.scores for part in parts]),
            _concatenated([part.spreads for part in parts]),
            torch.cat(by_step) if by_step else None,
        )

    def cpu(self) -> BatchScores:
        """The same values on the host."""
        by_step = None if self.by_step is None else self.by_step.cpu()
        return BatchScores(_on_host(self.scores), _on_host(self.spreads), by_step)

    def evaluation(self, others: dict[str, Any]) -> Evaluation:
        """Metrics over the tasks, and the scores of each.

        Args:
            others: metrics that are not computed from these values.

        Returns:
            The evaluation, read on the host; null for the scores of another kind of label.
        """
        values = self.scores
        metrics = {score.name: score.summary(values[score.name]) if score.name in values else None for score in SCORES}
        means = {score.name for score in SCORES if score.is_mean}
        return Evaluation(
            metrics | {"by_step": means_by_step(self.by_step)} | others | summary(self.spreads),
            {name: value.numpy() for name, value in values.items() if name in means},
        )


def _on_host(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in values.items()}


def _concatenated(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
