"""Paired differences between our method and the best peer, and the margins within which the two count as equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.transductive.cells import Cell

# Our method is level with a peer in accuracy if the 95% interval of the difference lies above POINTS (in percentage
# points), and in NLL if the 95% interval lies below NATS.
POINTS, NATS = -0.5, 0.01


@dataclass(frozen=True)
class Difference:
    """Score of our method minus the score of a peer, over the tasks that both have predicted.

    Attributes:
        peer: name of the peer.
        mean: mean difference, in percentage points of accuracy or nats per query.
        ci95: half width of the 95% interval over tasks.
        tasks: number of tasks.
        seeds: lowest and highest mean difference over training runs.
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
    """Return the difference between our method and the best peer, on the tasks that both have predicted.

    Args:
        ours: scores of our method.
        peers: scores of each peer, by name.
        score: the compared score, accuracy or nll.
    """
    factor, sign = (100.0, 1) if score == "accuracy" else (1.0, -1)
    found = [_difference(ours, name, peer, score, factor) for name, peer in peers.items()]
    return min(found, key=lambda difference: sign * difference.mean)


def _difference(ours: Cell, name: str, peer: Cell, score: str, factor: float) -> Difference:
    number = min(len(ours.nll), len(peer.nll))
    gain = factor * (getattr(ours, score)[:number].astype(np.float64) - getattr(peer, score)[:number])
    means = [float(gain[ours.seed[:number] == seed].mean()) for seed in np.unique(ours.seed[:number])]
    return Difference(name, float(gain.mean()), ci95_of(gain), number, (min(means), max(means)))
