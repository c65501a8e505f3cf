"""The time that a run may take, and what each section may take of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

USED = 0.92  # of the time; the rest is for imports, and for the row that is under way when the last section ends


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
    """The deadline of each section, in their order: time that a section leaves goes to those after it."""
    now, before, found = clock(), 0.0, {}
    for name, share in shares.items():
        before += share / sum(shares.values())
        found[name] = Deadline(now + 60 * minutes * USED * before, clock)
    return found
