"""The commands: run as `python -m experiments.NAME` from the repository root."""

import os
import signal
import sys

STOP = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}  # what Python starts with


def _leave(number: int, frame: object) -> None:
    """While a command still imports what it needs, there is nothing to clear away."""
    os.write(2, b"\ninterrupted; nothing was begun\n")
    os._exit(128 + number)


if sys.argv[0] == "-m":  # the interpreter looks for the command; whoever imports us otherwise keeps their handlers
    for _number, _handler in STOP.items():
        if signal.getsignal(_number) is _handler:
            signal.signal(_number, _leave)
