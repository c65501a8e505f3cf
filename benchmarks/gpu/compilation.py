"""Steps per second of sib with its networks compiled, and as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.compilation import compile_pure
from benchmarks.gpu.result import Result, Run, compared
from benchmarks.measure import Way
from benchmarks.setting import Size, learner, stepping, tasks
from pyro_metabayes import Episodes, MetaLearner
from pyro_metabayes.training.optimisation import compile_networks

COMPILATION = 60.0  # seconds that have to be left: a first step cannot be stopped halfway
TASKS = 16  # as a run has them; so small a step is bound by its launches


def rows(run: Run) -> Iterator[list[Result]]:
    (number,) = Size(run.toy).tasks(TASKS)
    case = f"sib, T={number}, networks compiled"
    yield run.attempt(case, "training step", partial(_compared, case, number, run), COMPILATION)


def _compared(case: str, number: int, run: Run) -> list[Result]:
    torch._dynamo.reset()
    episodes = tasks(number, device=run.device).episodes
    ways: dict[str, Callable[[], Way]] = {"eager": lambda: eager(sib(run), episodes)}
    ways["compiled"] = lambda: eager(_compiled(sib(run), run.toy), episodes)
    return compared(run, case, ways, 1, "steps/s")


def sib(run: Run) -> MetaLearner:
    return learner("sib", "Gaussian", of_guide={"posterior": "normal"}, device=run.device)


def eager(ours: MetaLearner, episodes: Episodes) -> Way:
    return stepping(ours.parameters(), lambda: ours(episodes)["loss"], adam=True)


def _compiled(ours: MetaLearner, toy: bool) -> MetaLearner:
    """A quick try traces the networks, and leaves out the compiler."""
    if toy:
        compile_pure(ours, "eager")
    else:
        compile_networks(ours)
    return ours
