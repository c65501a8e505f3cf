"""Paired differences between our method and the best of the others, and what counts as level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.transductive.cells import Cell

POINTS, NATS = -0.5, 0.01  # level: the interval of the accuracy lies above, that of the NLL below


@dataclass(frozen=True)
class Difference:
    """Ours less a peer's, over the tasks that both have answered.

    Attributes:
        peer: name of the peer.
        mean: percentage points of accuracy, or nats per query.
        ci95: half width of the 95% interval over tasks.
        tasks: number of tasks.
        seeds: lowest and highest mean of a training run.
    """

    peer: str
    mean: float
    ci95: float
    tasks: int
    seeds: tuple[float, float]

    def level_in_accuracy(self) -> bool:
        return self.mean - self.ci95 > POINTS

    def level_in_nll(self) -> bool:
        return self.mean + self.ci95 < NATS


def to_best(ours: Cell, peers: Mapping[str, Cell], score: str) -> Difference:
    """The difference to the peer that is best in `score`, accuracy or nll, on the tasks that it shares with ours."""
    factor, sign = (100.0, 1) if score == "accuracy" else (1.0, -1)
    found = [_difference(ours, name, peer, score, factor) for name, peer in peers.items()]
    return min(found, key=lambda difference: sign * difference.mean)


def _difference(ours: Cell, name: str, peer: Cell, score: str, factor: float) -> Difference:
    number = min(len(ours.nll), len(peer.nll))
    gain = factor * (getattr(ours, score)[:number].astype(np.float64) - getattr(peer, score)[:number])
    means = [float(gain[ours.seed[:number] == seed].mean()) for seed in np.unique(ours.seed[:number])]
    return Difference(name, float(gain.mean()), ci95_of(gain), number, (min(means), max(means)))
