"""Case `sib`: a training step of sib (delta posterior), by the learner, in raw PyTorch and as in the released code."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from benchmarks.measure import Row, Spread, rows_of, time_interleaved
from benchmarks.setting import FEATURES, STEPS, WAY, Size, Tasks, learner, make_step, tasks
from benchmarks.sib_raw import RawSib

OVER_RAW = {1: "", 8: "<= 1.20", 64: "<= 1.12"}
ROUNDS = {1: 60, 8: 40, 64: 20}
IN_A_ROW = {1: 8, 8: 2, 64: 1}


def rows(size: Size) -> list[Row]:
    return [row for number in size.tasks(1, 8, 64) for row in _measure(number, size)]


def ways(number: int) -> dict[str, Callable[[], None]]:
    """Return the three variants of a training step, with the same tasks and the same objective."""
    data, module, raw = tasks(number), learner("sib", "Gaussian", of_guide={"posterior": "delta"}), _raw()
    episodes, reference_raw = data.episodes, _raw()
    return {
        "raw batched": make_step(raw.parameters(), lambda: raw.loss(data.support, data.query, data.labels)),
        "learner": make_step(module.parameters(), lambda: module(episodes)["loss"]),
        "reference way": reference(reference_raw, data),
    }


def _raw() -> RawSib:
    return RawSib(FEATURES, WAY, STEPS)


def reference(raw: RawSib, data: Tasks) -> Callable[[], None]:
    """Return a function that takes one training step on each task in turn, as the released code does."""
    steps_of_tasks = [
        make_step(raw.parameters(), lambda t=t: raw.one_loss(data.support[t], data.query[t], data.labels[t]))
        for t in range(len(data.query))
    ]

    def steps() -> None:
        for step in steps_of_tasks:
            step()

    return steps


def _measure(number: int, size: Size) -> list[Row]:
    seconds = time_interleaved(ways(number), size.rounds(ROUNDS.get(number, 1)), IN_A_ROW.get(number, 1))
    case = f"sib, training step, T={number}"
    pairs = {"learner": "raw batched", "reference way": "learner"}
    goals = {"learner": OVER_RAW.get(number, ""), "reference way": ">= 5" if number == 64 else ""}
    rows = rows_of(case, seconds, pairs, goals)
    if number == 1:
        extra = [1e3 * (a - b) for a, b in zip(seconds["learner"], seconds["raw batched"], strict=True)]
        rows.append(Row(case, "learner less raw", Spread.of(extra), "ms", goal="<= 1 ms" if median(extra) else ""))
    return rows
