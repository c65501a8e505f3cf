"""Case 9: how the cost of a training step of sib grows with way, shot, query, features, inner steps and tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.measure import Row, Spread, interleaved
from benchmarks.setting import Size, learner, stepping, tasks

BASE = {"number": 16, "way": 5, "shot": 1, "query": 15, "features": 640, "num_steps": 3}
SWEPT = {
    "number": (8, 16, 32, 64),
    "way": (2, 5, 10, 20),
    "shot": (1, 5, 10, 20),
    "query": (5, 15, 30, 60),
    "features": (160, 320, 640, 1280),
    "num_steps": (0, 1, 3, 7),
}
NAMES = {"number": "tasks T", "features": "features D", "num_steps": "inner steps K"}


def rows(size: Size) -> list[Row]:
    """For each setting its milliseconds a unit: the slope of a straight line through four sizes, others as in BASE."""
    table = []
    for name, values in SWEPT.items():
        values = values[:2] if size.toy else values
        seconds = interleaved({str(value): _step(**{**BASE, name: value}) for value in values}, size.rounds(8))
        lines = [np.polyfit(values, [1e3 * times[i] for times in seconds.values()], 1) for i in range(size.rounds(8))]
        slope, start = (Spread.of([line[i] for line in lines]) for i in (0, 1))
        of = f"sib, training step, T={BASE['number']}, cost of {NAMES.get(name, name)}"
        table += [Row(of, "one more", slope, "ms"), Row(of, "at none, by the line", start, "ms")]
    return table


def _step(num_steps: int, **shape: Any) -> Any:
    episodes = tasks(**shape).episodes
    settings = {"posterior": "delta", "num_steps": num_steps}
    ours = learner("sib", "Gaussian", of_guide=settings, way=shape["way"], features=shape["features"])
    return stepping(ours.parameters(), lambda: ours(episodes)["loss"])
