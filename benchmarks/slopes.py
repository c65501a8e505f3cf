"""Case `slopes`: growth of the cost of a step of sib with way, shot, query, features, inner steps and tasks."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.measure import Row, Spread, rows_of, time_interleaved
from benchmarks.setting import Size, learner, make_step, tasks

BASE = {"number": 16, "way": 5, "shot": 1, "query": 15, "features": 640, "num_steps": 3}
SWEPT = {
    "number": (8, 16, 32, 64),
    "way": (2, 5, 10, 20),
    "shot": (1, 5, 10, 20),
    "query": (5, 15, 30, 60),
    "features": (160, 320, 640, 1280),
    "num_steps": (1, 3, 5, 10),
}
NAMES = {"number": "tasks T", "features": "features D", "num_steps": "inner steps K"}


def rows(size: Size) -> list[Row]:
    """Measure the milliseconds for each value of one setting, with the other settings in BASE.

    "power" is the growth exponent at the last doubling.
    """
    table = []
    for name, values in SWEPT.items():
        values = values[:2] if size.toy else values
        seconds = time_interleaved({str(value): _step(**{**BASE, name: value}) for value in values}, size.rounds(8))
        case = f"sib, training step, {NAMES.get(name, name)}"
        table += rows_of(case, seconds, {})
        before, last = (seconds[str(value)] for value in values[-2:])
        powers = [
            math.log(b / a) / math.log(values[-1] / max(values[-2], 0.5)) for a, b in zip(before, last, strict=True)
        ]
        table.append(Row(case, "power", Spread.of(powers), ""))
    return table


def _step(num_steps: int, **shape: Any) -> Any:
    episodes = tasks(**shape).episodes
    settings = {"posterior": "delta", "num_steps": num_steps}
    module = learner("sib", "Gaussian", of_guide=settings, way=shape["way"], features=shape["features"])
    return make_step(module.parameters(), lambda: module(episodes)["loss"])
