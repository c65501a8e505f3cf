"""Handling of SIGINT (Ctrl-C) and SIGTERM in training: the training stops at the end of the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Context manager in which the first SIGINT or SIGTERM only sets `requested`, so that a training step can finish.

    A second signal raises KeyboardInterrupt at once. If `requested` is set, a normal exit of the context raises
    KeyboardInterrupt too.
    """

    requested: bool = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # in other threads Python allows no handlers
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        else:
            self._previous = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.requested and kind is None:  # the signal arrived after the last check of `requested`
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
