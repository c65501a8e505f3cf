"""Long case: a hundred thousand steps of small tasks, as a run takes them: is its memory flat?

`experiments.run` in a process of its own, logging, validating and saving on the way. The figures are the slopes of its
own memory, of what is in use of it, and of the number of Python's blocks, over the steps after the first tenth, with a
95% interval from leaving out each tenth of the looks in turn (looks that lie side by side are not independent; whole
stretches nearly are). A leak is a slope of what is in use; the rest are holes between pieces of other sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t

from benchmarks.measure import Row, Spread
from benchmarks.setting import Size
from benchmarks.watch import MEGABYTE, Look, watched

STRETCHES = 10
FEATURES = ("data=gaussian_features", "data.num_features=16", "task.query=5", "train.tasks_per_step=4")
RUNS = {
    "sib": ("guide=sib", *FEATURES),
    "savi": ("guide=savi", "prior.num_hidden=32", *FEATURES),
}
SLOPES: tuple[tuple[str, str, Callable[[Look], int]], ...] = (
    ("own memory", "bytes", lambda look: look.own),
    ("memory in use", "bytes", lambda look: look.in_use),
    ("Python's blocks", "blocks", lambda look: look.blocks),
)
OFTEN = ("train.log_every=100", "train.validate_every=1000", "train.validation_tasks=32", "eval.tasks=64")


def rows(size: Size) -> list[Row]:
    steps = 400 if size.toy else 100_000
    return [row for name, settings in RUNS.items() for row in _of(name, settings, steps)]


def _of(name: str, settings: Sequence[str], steps: int) -> list[Row]:
    run = watched(*settings, f"train.steps={steps}", *OFTEN)
    case, tenth, table = f"soak, {name}, {steps:,} steps", steps // 10, []
    for end in range(tenth, steps + 1, tenth):
        own = [look.own / MEGABYTE for look in run.looks if end - tenth < look.step <= end]
        if own:
            table.append(Row(case, f"own memory up to step {end:,}", Spread.of(own), "MB"))
    late = [look for look in run.looks if tenth < look.step < steps]
    if len(late) >= 2 * STRETCHES:
        for way, unit, its in SLOPES:
            figure = slope([look.step for look in late], [its(look) for look in late])
            table.append(
                Row(case, f"slope of {way} (95% interval)", figure, f"{unit} a step", goal="0 within the interval")
            )
    return [*table, Row(case, "a step, CPU", Spread.of([run.step_milliseconds]), "ms")]


def slope(steps: Sequence[int], values: Sequence[int]) -> Spread:
    """By least squares, with its 95% interval by the jackknife over stretches."""
    x, y, places = np.array(steps), np.array(values), np.arange(len(steps))
    every = float(np.polyfit(x, y, 1)[0])
    kept = [np.delete(places, gone) for gone in np.array_split(places, STRETCHES)]
    without = np.array([np.polyfit(x[some], y[some], 1)[0] for some in kept])
    half_width = float(t.ppf(0.975, STRETCHES - 1) * np.sqrt((STRETCHES - 1) * without.var()))
    return Spread(every, every - half_width, every + half_width)
