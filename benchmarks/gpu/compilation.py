"""Steps per second of sib with and without compiled networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.compilation import compile_pure
from benchmarks.gpu.result import Result, Run, compare_ways
from benchmarks.measure import Way
from benchmarks.setting import Size, learner, make_step, tasks
from pyro_metabayes import Episodes, MetaLearner
from pyro_metabayes.training.optimisation import compile_networks

COMPILATION = 60.0  # seconds that must be left, since the first step cannot be interrupted
TASKS = 16  # as in a run; kernel launches dominate such a small step


def rows(run: Run) -> Iterator[list[Result]]:
    (number,) = Size(run.toy).tasks(TASKS)
    case = f"sib, T={number}, networks compiled"
    yield run.attempt(case, "training step", partial(_measure, case, number, run), COMPILATION)


def _measure(case: str, number: int, run: Run) -> list[Result]:
    torch._dynamo.reset()
    episodes = tasks(number, device=run.device).episodes
    ways: dict[str, Callable[[], Way]] = {"eager": lambda: training_step(sib_learner(run), episodes)}
    ways["compiled"] = lambda: training_step(_with_compiled_networks(sib_learner(run), run.toy), episodes)
    return compare_ways(run, case, ways, 1, "steps/s")


def sib_learner(run: Run) -> MetaLearner:
    return learner("sib", "Gaussian", of_guide={"posterior": "normal"}, device=run.device)


def training_step(sib: MetaLearner, episodes: Episodes) -> Way:
    return make_step(sib.parameters(), lambda: sib(episodes)["loss"], adam=True)


def _with_compiled_networks(sib: MetaLearner, toy: bool) -> MetaLearner:
    """Return the learner with compiled networks; with `toy`, networks are only traced."""
    if toy:
        compile_pure(sib, "eager")
    else:
        compile_networks(sib)
    return sib
