"""Timing of several variants of a computation in turn, in one process on one thread, by CPU time.

Other load on the machine affects all variants alike, and ratios are taken within a round. The order rotates from round
to round. Garbage collection is disabled, as in timeit: it would be charged to an arbitrary variant.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

Way = Callable[[], object]
WARM_UP = 3


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, _, upper = quantiles(values, n=4, method="inclusive")
        return cls(median(values), lower, upper)


@dataclass(frozen=True)
class Row:
    """One line of the table. ratio: to `against`, paired within the rounds; goal: limit of the ratio."""

    case: str
    way: str
    value: Spread
    unit: str
    against: str = ""
    ratio: Spread | None = None
    goal: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def time_interleaved(
    ways: Mapping[str, Way], rounds: int, in_a_row: int = 1, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each variant, round by round; a round runs each `in_a_row` times, as training does.

    clock: by default CPU time of this process; the clock of a device waits until the device has finished.
    """
    names, seconds = list(ways), {name: [] for name in ways}
    warm_up = WARM_UP if rounds > 1 else 0
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds + warm_up):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                started = clock()
                for _ in range(in_a_row):
                    ways[name]()
                if turn >= warm_up:
                    seconds[name].append((clock() - started) / in_a_row)
    finally:
        gc.enable()
    return seconds


def ratios(seconds: Mapping[str, list[float]], way: str, against: str) -> Spread:
    """way / against, paired within the rounds."""
    return Spread.of([a / b for a, b in zip(seconds[way], seconds[against], strict=True)])


def rows_of(
    case: str,
    seconds: Mapping[str, list[float]],
    pairs: Mapping[str, str],
    goals: Mapping[str, str] | None = None,
    per: float = 1.0,
) -> list[Row]:
    """A row in milliseconds for each way; pairs: what each is compared with. per: the times are divided by it."""
    rows = []
    for way, times in seconds.items():
        against = pairs.get(way, "")
        ratio = ratios(seconds, way, against) if against else None
        value = Spread.of([1e3 * value / per for value in times])
        rows.append(Row(case, way, value, "ms", against, ratio, (goals or {}).get(way, "")))
    return rows
