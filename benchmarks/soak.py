"""Long case: a hundred thousand steps of small tasks, as a run takes them: is its memory flat?

`experiments.run` in a process of its own, logging, validating and saving on the way. The figure is the slope of its own
memory over the steps after the first tenth, with a 95% interval from leaving out each tenth of the looks in turn
(looks that lie side by side are not independent; whole stretches nearly are).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.measure import Row, Spread
from benchmarks.setting import Size
from benchmarks.watched import MEGABYTE, Look, watched

STRETCHES = 10
T_9 = 2.262  # 97.5% quantile of Student's t with as many degrees of freedom as there are stretches, less one
FEATURES = ("data=gaussian_features", "data.num_features=16", "task.query=5", "train.tasks_per_step=4")
RUNS = {
    "sib": ("guide=sib", *FEATURES),
    "savi": ("guide=savi", "prior.num_hidden=32", *FEATURES),
}
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
        table.append(Row(case, "slope (95% interval)", slope(late), "bytes a step", goal="0 within the interval"))
    return [*table, Row(case, "a step, CPU", Spread.of([run.step_milliseconds]), "ms")]


def slope(looks: Sequence[Look]) -> Spread:
    """Bytes a step by least squares, with its 95% interval by the jackknife over stretches."""
    steps, own = np.array([look.step for look in looks]), np.array([look.own for look in looks])
    every = float(np.polyfit(steps, own, 1)[0])
    kept = [np.delete(np.arange(len(looks)), gone) for gone in np.array_split(np.arange(len(looks)), STRETCHES)]
    without = np.array([np.polyfit(steps[some], own[some], 1)[0] for some in kept])
    error = float(np.sqrt((STRETCHES - 1) * without.var()))
    return Spread(every, every - T_9 * error, every + T_9 * error)
