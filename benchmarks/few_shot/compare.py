"""Scores of all methods on the same tasks of one bank and cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.few_shot.banks import source_of
from benchmarks.few_shot.rows import Method
from benchmarks.few_shot.scores import Scores
from benchmarks.few_shot.tasks import Cell, batches, stream_of
from benchmarks.few_shot.tuning import Tuning
from pyro_metabayes.errors import UsageError


@dataclass(frozen=True)
class Comparison:
    """Comparison of methods on the same tasks.

    Attributes:
        methods: the methods. Differences are to the first method that has a result.
        tasks: number of tasks per bank and cell.
        seed: seed of the tasks.
        tuning: the tasks on which settings are chosen.
    """

    methods: Sequence[Method]
    tasks: int
    seed: int
    tuning: Tuning

    def results(self, bank: str, cell: Cell) -> list[dict[str, Any]]:
        """Return one result per method: bank, way, shot, marginal, method, scores and milliseconds of CPU per task.

        If a method raises a UsageError for a bank, the message is printed and the method has no result.
        """
        where = {"bank": bank, "way": cell.way, "shot": cell.shot, "marginal": cell.marginal}
        found, reference = [], None
        for method in self.methods:
            try:
                scores, seconds = self._scores(method, bank, cell)
            except UsageError as error:
                print(f"{bank}, {cell}: no result of {method.name}: {error}", file=sys.stderr)
                continue
            reference = scores if reference is None else reference
            speed = {"milliseconds": 1000 * seconds / self.tasks}
            found.append(where | {"method": method.name} | scores.summary(reference) | speed)
        return found

    @torch.no_grad()
    def _scores(self, method: Method, bank: str, cell: Cell) -> tuple[Scores, float]:
        """Return the scores, and the CPU seconds of the predictions without the time to choose settings."""
        row = method.row(source_of(bank).input_shape[0], cell, self.tuning)
        parts, seconds = [], 0.0
        for episodes in batches(stream_of(bank, cell, self.seed), self.tasks):
            started = time.process_time()
            log_probs = row(episodes.observed())
            seconds += time.process_time() - started
            parts.append(Scores.of(log_probs, episodes))
        return Scores.concatenate(parts), seconds
