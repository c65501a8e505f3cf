"""Timing of several variants of a computation in one process on one thread, by CPU time.

A round measures every variant once, and the order of the variants rotates from round to round. Ratios are taken within
a round, since other load on the machine then affects all variants alike. Garbage collection is disabled, as in timeit,
since its time would be added to an arbitrary variant.
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
    """One row of the table.

    case, way: what was measured, and the variant.
    value: the measurement, in `unit`.
    against: the variant to compare with; empty for none.
    ratio: value of this variant divided by the value of `against`, paired within rounds.
    goal: limit of the ratio; of the value if there is no ratio.
    """

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
    """Measure the seconds of each variant in each round.

    Args:
        ways: the variants, by name.
        rounds: number of rounds.
        in_a_row: number of repetitions of each variant within a round. Training also repeats steps.
        clock: returns seconds; by default CPU time of this process. A clock for a GPU must wait until the GPU is idle.
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
    """Return the time of `way` divided by that of `against`, paired within rounds."""
    return Spread.of([a / b for a, b in zip(seconds[way], seconds[against], strict=True)])


def rows_of(
    case: str,
    seconds: Mapping[str, list[float]],
    pairs: Mapping[str, str],
    goals: Mapping[str, str] | None = None,
    per: float = 1.0,
) -> list[Row]:
    """Return one row per variant, in milliseconds.

    Args:
        case: what was measured.
        seconds: the times of each variant, round by round.
        pairs: for each variant that is compared, the variant to compare with.
        goals: limits of the ratios, by variant.
        per: divisor of the times.
    """
    rows = []
    for way, times in seconds.items():
        against = pairs.get(way, "")
        ratio = ratios(seconds, way, against) if against else None
        value = Spread.of([1e3 * value / per for value in times])
        rows.append(Row(case, way, value, "ms", against, ratio, (goals or {}).get(way, "")))
    return rows
