"""Case `processes`: tasks per second of training steps of sib in one process, and in two at once, by wall time."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import pyro
import torch

from benchmarks.measure import Row, Spread
from benchmarks.setting import Size, learner, make_step, tasks
from pyro_metabayes.device import keep_freed_memory

TASKS, SECONDS = 64, 5.0


def rows(size: Size) -> list[Row]:
    """Measure the rate of one process, and of two independent processes at once.

    The ratio of total rates is 2 on two idle cores.
    """
    (number,) = size.tasks(TASKS)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(size.rounds(3)):
        for count in rates:
            rates[count].append(sum(_at_once(count, number, 0.2 if size.toy else SECONDS)))
    ratio = Spread.of([two / one for one, two in zip(rates[1], rates[2], strict=True)])
    case = f"processes, sib (ordered, normal), T={number}, D=256"
    return [
        Row(case, "1 process", Spread.of(rates[1]), "tasks/s"),
        Row(case, "2 processes", Spread.of(rates[2]), "tasks/s", "1 process", ratio, "2 on idle cores"),
    ]


def _at_once(count: int, number: int, seconds: float) -> list[float]:
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(count), context.Queue()
    workers = [context.Process(target=_work, args=(number, seconds, ready, results)) for _ in range(count)]
    for worker in workers:
        worker.start()
    rates = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return rates


def _work(number: int, seconds: float, ready: Any, results: Any) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    with pyro.validation_enabled(False):
        module, episodes = learner("sib", "Gaussian", features=256), tasks(number, features=256).episodes
        step = make_step(module.parameters(), lambda: module(episodes)["loss"])
        step()
        ready.wait()
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            step()
            steps += 1
        results.put(steps * number / (time.perf_counter() - started))
