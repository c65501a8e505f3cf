"""The commands: `metabayes NAME`, or `python -m experiments.NAME` from the root of the repository."""

import os
import signal
import sys
from importlib.util import find_spec

STOP = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}  # what Python starts with


def _leave(number: int, frame: object) -> None:
    """While a command still imports what it needs, there is nothing to clear away."""
    os.write(2, b"\ninterrupted; nothing was begun\n")
    os._exit(128 + number)


def require_extra() -> None:
    """One line where the packages of the commands are not installed."""
    needed = {"hydra": "hydra-core", "matplotlib": "matplotlib", "yaml": "pyyaml", "filelock": "filelock"}
    if missing := [package for name, package in needed.items() if find_spec(name) is None]:
        remedy = "pip install 'pyro_metabayes[experiments]', on Python 3.11 to 3.13"  # Hydra starts on no later one
        sys.exit(f"error: expected the packages of the commands, {', '.join(missing)} not found; {remedy}")


if sys.argv[0] == "-m":  # the interpreter looks for the command; whoever imports us otherwise keeps their handlers
    for _number, _handler in STOP.items():
        if signal.getsignal(_number) is _handler:
            signal.signal(_number, _leave)
    require_extra()
