"""Shows the progress of long work: a bar on a terminal, otherwise plain lines at intervals."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Self, TypeAlias, TypeVar

from tqdm import tqdm

Value = TypeVar("Value")
INTERVAL = 5.0  # seconds between plain lines


class PlainLines:
    """Prints `TITLE: N of TOTAL UNITs`, with the latest values, at most once per interval; nothing for short work.

    The lines go to the standard output, so that the standard error output contains only errors.

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
        """Count units, and print a line if the interval has passed."""
        self.done += number
        if time.monotonic() - self._last >= self.interval:
            self._last = time.monotonic()
            print(f"{self.title}: {self.done} of {self.total} {self.unit}{self.values}", flush=True)

    def set_postfix(self, **values: str) -> None:
        """Set the values that the following lines show."""
        self.values = "".join(f", {name} {value}" for name, value in values.items())


Progress: TypeAlias = "tqdm[Any] | PlainLines"


def progress(
    title: str, unit: str, total: int, initial: int = 0, leave: bool = True, interval: float = INTERVAL
) -> Progress:
    """A progress bar (tqdm) if the error output is a terminal, otherwise plain lines.

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
    """Iterate over the values and show the progress; `total` is needed if they have no length."""
    if total is None:
        assert isinstance(values, Sized)
        total = len(values)
    with progress(title, unit, total, leave=leave) as bar:
        for value in values:
            yield value
            bar.update()
