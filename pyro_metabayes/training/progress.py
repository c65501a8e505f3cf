"""Progress of long computations: a bar on a terminal, or else plain lines at intervals."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Self, TypeAlias, TypeVar

from tqdm import tqdm

Value = TypeVar("Value")
INTERVAL = 5.0  # seconds between plain lines


class PlainLines:
    """Progress display that prints a line "TITLE: N of TOTAL UNIT" with the latest values, once per interval.

    Work that takes less than one interval prints nothing. Lines go to the standard output, not to the standard error
    output.

    Args:
        title: name of the work.
        unit: name of the counted units, in the plural.
        total: number of units.
        initial: number of units that are already finished.
        interval: seconds between lines.
    """

    def __init__(self, title: str, unit: str, total: int, initial: int = 0, interval: float = INTERVAL) -> None:
        self.title, self.unit, self.total, self.done, self.interval = title, unit, total, initial, interval
        self.values = ""
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, number: int = 1) -> None:
        """Count `number` finished units, and print a line if the interval has passed."""
        self.done += number
        if time.monotonic() - self._last >= self.interval:
            self._last = time.monotonic()
            print(f"{self.title}: {self.done} of {self.total} {self.unit}{self.values}", flush=True)

    def set_postfix(self, **values: str) -> None:
        """Set the values for the following lines, such as loss="0.5"."""
        self.values = "".join(f", {name} {value}" for name, value in values.items())


Progress: TypeAlias = "tqdm[Any] | PlainLines"


def progress(
    title: str, unit: str, total: int, initial: int = 0, leave: bool = True, interval: float = INTERVAL
) -> Progress:
    """Construct a progress bar (tqdm) if the standard error output is a terminal, otherwise `PlainLines`.

    Args:
        title: name of the work.
        unit: name of the counted units, in the plural.
        total: number of units.
        initial: number of units that are already finished.
        leave: whether the finished bar stays on the terminal.
        interval: seconds between plain lines.
    """
    if not sys.stderr.isatty():
        return PlainLines(title, unit, total, initial, interval)
    return tqdm(desc=title, unit=f" {unit}", total=total, initial=initial, leave=leave)


def counted(
    values: Iterable[Value], title: str, unit: str, total: int | None = None, leave: bool = True
) -> Iterator[Value]:
    """Iterate over values and show the progress.

    Args:
        values: the values. If they have no length, pass `total`.
        title: name of the work.
        unit: name of the counted units, in the plural.
        total: number of values; None: the length of `values`.
        leave: whether the finished bar stays on the terminal.
    """
    if total is None:
        assert isinstance(values, Sized)
        total = len(values)
    with progress(title, unit, total, leave=leave) as bar:
        for value in values:
            yield value
            bar.update()
