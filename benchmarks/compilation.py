"""Case `compiled`: speed-up by train.compile=true, which compiles the networks of a learner that do not call Pyro."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import Row, Spread, rows_of, time_interleaved
from benchmarks.setting import Size, learner, make_step, tasks

GUIDES = {
    "sib": ("sib", "Gaussian", {"of_guide": {"posterior": "delta"}}),
    "savi": ("savi", "Conditional", {"of_objective": {"kl": "analytic"}}),
}


def rows(size: Size) -> list[Row]:
    return [row for number in size.tasks(8, 64) for guide in GUIDES for row in _measure(guide, number, size)]


def _measure(guide: str, number: int, size: Size) -> list[Row]:
    case = f"{guide}, training step, T={number}, compiled"
    torch._dynamo.reset()
    eager, compiled = _step(guide, number), _step(guide, number, "eager" if size.toy else "inductor")
    started = time.perf_counter()
    compiled()
    first = Spread.of([time.perf_counter() - started])
    seconds = time_interleaved({"learner": eager, "networks compiled": compiled}, size.rounds(20))
    return [
        *rows_of(case, seconds, {"networks compiled": "learner"}),
        Row(case, "the first compiled step, wall time", first, "s"),
    ]


def _step(guide: str, number: int, backend: str = "") -> Callable[[], None]:
    name, prior, settings = GUIDES[guide]
    module, episodes = learner(name, prior, **settings), tasks(number).episodes
    if backend:
        compile_pure(module, backend)
    return make_step(module.parameters(), lambda: module(episodes)["loss"])


def compile_pure(learner: nn.Module, backend: str) -> None:
    """Compile the networks like compile_networks of pyro_metabayes/training/optimisation.py, with a chosen backend."""
    for module in learner.modules():
        if getattr(module, "pure", False):
            module.compile(backend=backend)
