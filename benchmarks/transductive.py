"""Case `transductive`: training steps of transductive guides, compared with the published network of sib."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import Row, rows_of, time_interleaved
from benchmarks.setting import Size, learner, make_step, tasks
from pyro_metabayes import MetaLearner

NUM_FEATURES = 256
ROUNDS = 10
MANY_WAYS = 20
GOAL = "<= 2.5"  # of the marginal-aware network, 5-way


def rows(size: Size) -> list[Row]:
    (number,), (fewer,) = size.tasks(64), size.tasks(8)
    return _measure(number, 5, size, GOAL) + _measure(fewer, MANY_WAYS, size, "")


def _learners(way: int) -> dict[str, MetaLearner]:
    networks = ("ordered", "equivariant", "marginal_aware")
    of_sib = {
        name: learner(
            "sib",
            "Gaussian",
            of_guide={"posterior": "delta", "synthetic_gradient": name},
            way=way,
            features=NUM_FEATURES,
        )
        for name in networks
    }
    return of_sib | {
        "amortized_em": learner(
            "amortized_em", "Flat", "mean_score.MeanScore", way=way, features=NUM_FEATURES, head="Linear"
        )
    }


def _measure(number: int, way: int, size: Size, goal: str) -> list[Row]:
    """Measure one training step of `number` 1-shot tasks with 15 queries per class."""
    episodes = tasks(number, way=way, features=NUM_FEATURES).episodes
    ways: dict[str, Callable[[], None]] = {
        name: make_step(module.parameters(), lambda module=module: module(episodes)["loss"])
        for name, module in _learners(way).items()
    }
    seconds = time_interleaved(ways, size.rounds(ROUNDS))
    pairs = {name: "ordered" for name in ways if name != "ordered"}
    return rows_of(f"{way}-way, training step, T={number}", seconds, pairs, {"marginal_aware": goal})
