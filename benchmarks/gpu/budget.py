"""The time budget of a run and of its sections."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

USED = 0.92  # share of the time; the rest is for imports and for the last row


@dataclass(frozen=True)
class Deadline:
    """When the last row of a section may begin; clock: seconds."""

    end: float
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds; negative once the section is over."""
        return self.end - self.clock()


def deadlines(
    minutes: float, shares: dict[str, float], clock: Callable[[], float] = time.monotonic
) -> dict[str, Deadline]:
    """The deadline of each section, in order; unused time of a section is available to later sections."""
    now, used, ends = clock(), 0.0, {}
    for name, share in shares.items():
        used += share / sum(shares.values())
        ends[name] = Deadline(now + 60 * minutes * USED * used, clock)
    return ends
