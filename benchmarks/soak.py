"""Long case `soak`: memory over time in a hundred thousand steps on small tasks.

`experiments.run` runs in a separate process, with logging, validation and checkpoints. After the first tenth of the
steps, the slopes of anonymous memory, of memory in use and of the number of Python blocks are estimated. Their 95%
intervals are from a jackknife over tenths of the observations, since neighbouring observations are dependent. A
positive slope of the memory in use is a leak; other growth is fragmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t

from benchmarks.measure import Row, Spread
from benchmarks.setting import Size
from benchmarks.watch import MEGABYTE, Look, watch_run

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
    return [row for name, settings in RUNS.items() for row in _measure(name, settings, steps)]


def _measure(name: str, settings: Sequence[str], steps: int) -> list[Row]:
    run = watch_run(*settings, f"train.steps={steps}", *OFTEN)
    case, tenth, table = f"soak, {name}, {steps:,} steps", steps // 10, []
    for end in range(tenth, steps + 1, tenth):
        own = [look.own / MEGABYTE for look in run.looks if end - tenth < look.step <= end]
        if own:
            table.append(Row(case, f"own memory up to step {end:,}", Spread.of(own), "MB"))
    late = [look for look in run.looks if tenth < look.step < steps]
    if len(late) >= 2 * STRETCHES:
        for way, unit, quantity in SLOPES:
            figure = slope([look.step for look in late], [quantity(look) for look in late])
            table.append(
                Row(case, f"slope of {way} (95% interval)", figure, f"{unit} per step", goal="0 within the interval")
            )
    return [*table, Row(case, "a step, CPU", Spread.of([run.step_milliseconds]), "ms")]


def slope(steps: Sequence[int], values: Sequence[int]) -> Spread:
    """Estimate the slope by least squares, with a 95% interval by the jackknife over STRETCHES parts of the values."""
    x, y, places = np.array(steps), np.array(values), np.arange(len(steps))
    full_slope = float(np.polyfit(x, y, 1)[0])
    kept = [np.delete(places, left_out) for left_out in np.array_split(places, STRETCHES)]
    without = np.array([np.polyfit(x[some], y[some], 1)[0] for some in kept])
    half_width = float(t.ppf(0.975, STRETCHES - 1) * np.sqrt((STRETCHES - 1) * without.var()))
    return Spread(full_slope, full_slope - half_width, full_slope + half_width)
