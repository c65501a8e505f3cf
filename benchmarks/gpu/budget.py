"""The time budget of a run and of its sections."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

USED = 0.92  # share of the time budget that deadlines use; the rest is for imports and for the end of the last row


@dataclass(frozen=True)
class Deadline:
    """The latest time `end` at which a row of a section may start, in seconds of `clock`."""

    end: float
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.end - self.clock()


def deadlines(
    minutes: float, shares: dict[str, float], clock: Callable[[], float] = time.monotonic
) -> dict[str, Deadline]:
    """Return the deadline of each section, in order. Later sections may use the time that a section leaves.

    Args:
        minutes: time budget of all sections.
        shares: share of the time of each section, up to a common factor.
        clock: function that returns seconds.
    """
    now, used, ends = clock(), 0.0, {}
    for name, share in shares.items():
        used += share / sum(shares.values())
        ends[name] = Deadline(now + 60 * minutes * USED * used, clock)
    return ends
