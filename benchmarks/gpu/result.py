"""Rows of the report. A row has passed, has failed, or was not run for lack of time or of CUDA."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.budget import Deadline
from benchmarks.gpu.device import clock_of, free_unused, peak_megabytes, reset_peak
from benchmarks.measure import WARM_UP, Spread, Way, time_interleaved

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("pyro_metabayes", "models", "guides")
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
OUT_OF_TIME = "out of time"
BLOCKS, BLOCK_SECONDS, MOST_IN_A_ROW = 7, 0.05, 50


@dataclass(frozen=True)
class Result:
    """One row of the report.

    case, way: what was measured, and the variant.
    status: passed, failed or not run.
    value: the measurement, in `unit`.
    peak: peak memory of the device in MB.
    note: reason of a failure, or why the row was not run.
    section: section of the report.
    """

    case: str
    way: str
    status: str = PASSED
    value: Spread | None = None
    unit: str = ""
    peak: float | None = None
    note: str = ""
    section: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> dict[str, str]:
        """Return the row of the table, without the reason of a failure."""
        spread = self.value
        return {
            "section": self.section,
            "case": self.case,
            "way": self.way,
            "status": f"{NOT_RUN}: {self.note}" if self.status == NOT_RUN else self.status,
            "median": "" if spread is None else f"{spread.median:.4g} {self.unit}",
            "quartiles": ""
            if spread is None or spread.lower == spread.upper
            else f"{spread.lower:.4g} to {spread.upper:.4g}",
            "peak MB": "" if self.peak is None else f"{self.peak:.0f}",
        }


@dataclass(frozen=True)
class Run:
    """The setting of a section.

    device: the measured device.
    toy: whether to run one round of the smallest sizes, as a test.
    deadline: the time after which no row starts.
    """

    device: torch.device
    toy: bool
    deadline: Deadline = field(default_factory=lambda: Deadline(float("inf")))

    def attempt(self, case: str, way: str, measure: Callable[[], list[Result]], needs: float = 0.0) -> list[Result]:
        """Return the rows of a measurement; one row with the reason if it fails, or is not run.

        A measurement is not run if less than `needs` seconds are left.
        """
        if self.deadline.left < (0.0 if self.toy else needs):
            return [Result(case, way, NOT_RUN, note=OUT_OF_TIME)]
        try:
            return measure()
        except Exception as error:  # any error, so that the other rows are measured
            return [Result(case, way, FAILED, note=reason(error))]
        finally:
            free_unused(self.device)


def reason(error: Exception) -> str:
    """Return the first line of an error, and the last place in the traceback that is in the folders PRODUCT."""
    first = next(iter(str(error).strip().splitlines()), "")
    files = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    places = [
        f"{file.relative_to(ROOT)}:{line}"
        for file, line in files
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PRODUCT
    ]
    return f"{type(error).__name__}: {first}" + (f" ({places[-1]})" if places else "")


@dataclass(frozen=True)
class Warm:
    """A variant after its first step, which loads kernels and allocates moments.

    way: runs one step.
    seconds: wall time of a step.
    peak: peak memory of a step in MB.
    """

    way: Way
    seconds: float
    peak: float | None

    @classmethod
    def of(cls, build: Callable[[], Way], device: torch.device) -> Warm:
        way, now = build(), clock_of(device)
        way()
        started = now()
        reset_peak(device)
        way()
        return cls(way, now() - started, peak_megabytes(device))


def compare_ways(
    run: Run, case: str, build: Mapping[str, Callable[[], Way]], amount: int, unit: str, needs: float = 0.0
) -> list[Result]:
    """Measure rate and peak memory of each variant, timed in turn. A step has `amount` units of work.

    If a variant fails in its first step, the row of the variant states the reason. The others are measured.
    """
    warm: dict[str, Warm] = {}

    def add(name: str) -> list[Result]:
        warm[name] = Warm.of(build[name], run.device)
        return []

    table = [row for name in build for row in run.attempt(case, name, partial(add, name), needs)]
    rates = partial(_rates, run, case, warm, amount, unit)
    return table + (
        run.attempt(case, "in turn", rates, needs=-math.inf) if warm else []
    )  # measure all variants that are ready


def _rates(run: Run, case: str, warm: Mapping[str, Warm], amount: int, unit: str) -> list[Result]:
    rates = {name: Spread.of([amount / value for value in times]) for name, times in _seconds(run, warm).items()}
    return [Result(case, name, value=rate, unit=unit, peak=warm[name].peak) for name, rate in rates.items()]


def _seconds(run: Run, warm: Mapping[str, Warm]) -> dict[str, list[float]]:
    """Measure the seconds per step of each variant, in BLOCKS blocks of steps, or in fewer if little time is left."""
    ways, now = {name: warmed.way for name, warmed in warm.items()}, clock_of(run.device)
    if run.toy:
        return time_interleaved(ways, 1, clock=now)
    slowest = max(warmed.seconds for warmed in warm.values())
    in_a_row = int(min(max(BLOCK_SECONDS / slowest, 1), MOST_IN_A_ROW))
    affordable = max(run.deadline.left, 0.0) / (slowest * in_a_row * len(ways)) - WARM_UP
    return time_interleaved(ways, int(min(max(affordable, 1), BLOCKS)), in_a_row, now)
