"""A batch of tasks with the inputs of networks: statistics, and whether queries are known to be balanced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pyro_metabayes.episodes import Observed
from pyro_metabayes.transductive.amortized.leave_one_out import NUM_LEFT_OUT, left_out_statistics
from pyro_metabayes.transductive.amortized.task_context import NUM_STATISTICS, task_context
from pyro_metabayes.transductive.amortized.task_geometry import NUM_FRAME, TaskGeometry, frame_statistics
from pyro_metabayes.transductive.assignments import LEAST_SHARE
from pyro_metabayes.transductive.sinkhorn import class_term

NUM_CONTEXT = NUM_STATISTICS + NUM_LEFT_OUT + NUM_FRAME + 1  # the last: whether queries are known to be balanced
IN_A_STEP = 10  # Sinkhorn iterations


@dataclass(frozen=True, eq=False)
class Task:
    """Points and statistics of T tasks, and whether the queries of a task are known to be balanced.

    Attributes:
        points: inner products, labels and class means of the points.
        context: [T, NUM_CONTEXT], statistics of the tasks.
        known: [T], 1 for tasks with queries that are known to be balanced, else 0; None: 0 for all tasks.
    """

    points: TaskGeometry
    context: Tensor
    known: Tensor | None

    @classmethod
    def of(cls, observed: Observed, known: Tensor | None) -> Self:
        points = TaskGeometry.of(observed)
        cosines, lengths = points.cosines(points.means)
        statistics = task_context(cosines, points.between, lengths, points.counts, points.mask)
        left_out = left_out_statistics(observed.support_x, points.labels, points.means)
        is_known = torch.zeros_like(statistics[:, :1]) if known is None else known.unsqueeze(-1)
        return cls(points, torch.cat((statistics, left_out, frame_statistics(observed), is_known), -1), known)

    def term(self, logits: Tensor, iterations: int, start: Tensor | None) -> Tensor | None:
        """Compute Sinkhorn's class term, which makes the mean prediction of the queries uniform.

        The term is 0 for tasks with queries that are not known to be balanced.

        Returns:
            Tensor [T, 1, C]; None if `known` is None.
        """
        if self.known is None:
            return None
        term = class_term(logits, self.points.mask, num_iterations=iterations, start=start)
        return term * self.known[:, None, None]

    def assigned(self, log_odds: Tensor) -> Tensor:
        """Compute soft assignments of the queries to the classes from logits.

        If the queries are known to be balanced, the mean assignment is uniform (Sinkhorn's projection).

        Returns:
            Tensor [T, Q, C].
        """
        term = self.term(log_odds, IN_A_STEP, None)
        return (log_odds if term is None else log_odds + term).softmax(-1)

    def log_shares(self, assignments: Tensor) -> Tensor:
        """Compute log(C pi) [T, 1, C] of the class shares pi; 0 if the queries are known to be balanced."""
        log_shares = (assignments.shape[-1] * self.points.mean(assignments).clamp(min=LEAST_SHARE)).log()
        return log_shares if self.known is None else log_shares * (1 - self.known[:, None, None])
