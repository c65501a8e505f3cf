"""Temperatures and settings, chosen on tasks of other banks than those of the comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from benchmarks.few_shot.banks import TUNING, source_of
from benchmarks.few_shot.tasks import Cell, batches, has_tasks, stream_of
from pyro_metabayes.episodes import Observed

LOWEST, HIGHEST, ITERATIONS = 0.02, 50.0, 30  # range of the inverse temperature, and steps of the search
GOLDEN = (math.sqrt(5) - 1) / 2
Row = Callable[[Observed], Tensor]
Answers = tuple[Tensor, Tensor]  # log probabilities [N, C] and labels [N] of one bank


@dataclass(frozen=True)
class Tuning:
    """The tasks on which settings are chosen.

    Attributes:
        banks: names of the banks. A bank without tasks of a cell is left out.
        tasks: number of tasks per bank and cell.
        seed: seed of the tasks.
    """

    banks: tuple[str, ...] = tuple(TUNING)
    tasks: int = 32
    seed: int = 0

    def answers(self, row_of: Callable[[int, Cell], Row], cells: Sequence[Cell]) -> list[Answers]:
        """Return log probabilities and labels for every cell and bank with tasks of the cell.

        `row_of` returns the predictor for a dimension and a cell.
        """
        pairs = [(bank, cell) for cell in cells for bank in self.banks if has_tasks(bank, cell)]
        return [self._answers(row_of(source_of(bank).input_shape[0], cell), bank, cell) for bank, cell in pairs]

    def _answers(self, row: Row, bank: str, cell: Cell) -> Answers:
        parts = [
            (row(episodes.observed()).flatten(0, 1), episodes.query_y.flatten())
            for episodes in batches(stream_of(bank, cell, self.seed), self.tasks)
        ]
        log_probs, labels = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(labels)


def tempered(log_probs: Tensor, inverse: float) -> Tensor:
    """Compute log softmax(inverse * log p) [..., C]. The most probable class remains the same."""
    return (inverse * log_probs).log_softmax(-1)


def mean_nll(answers: Sequence[Answers], inverse: float) -> float:
    """Return the mean over banks and cells of the negative log-likelihood, in nats per query."""
    losses = [nll_loss(tempered(log_probs, inverse), labels) for log_probs, labels in answers]
    return float(torch.stack(losses).mean())


def best_inverse(answers: Sequence[Answers]) -> float:
    """Find the inverse temperature with the smallest `mean_nll`, which has one minimum, by golden-section search."""
    lower, upper = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(ITERATIONS):
        left, right = upper - GOLDEN * (upper - lower), lower + GOLDEN * (upper - lower)
        if mean_nll(answers, math.exp(left)) < mean_nll(answers, math.exp(right)):
            upper = right
        else:
            lower = left
    return math.exp((lower + upper) / 2)
