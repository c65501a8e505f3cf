"""The commands: `metabayes NAME`, or `python -m experiments.NAME` from the root of the repository."""

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

STOP = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}  # Python's default handlers


def commands() -> dict[str, Path]:
    """Return the file of each command by its name: experiments/NAME.py or experiments/NAME/__main__.py."""
    files = {path.stem: path for path in Path(__file__).parent.glob("[a-z]*.py")}
    files |= {path.parent.name: path for path in Path(__file__).parent.glob("*/__main__.py")}
    return dict(sorted(files.items()))


def _leave(number: int, frame: object) -> None:
    """Exit at once after a signal. There is nothing to clean up while a command still imports packages."""
    os.write(2, b"\ninterrupted; nothing was started\n")
    os._exit(128 + number)


def require_extra() -> None:
    """Exit with a one-line message if a package that the commands need is not installed."""
    needed = {"hydra": "hydra-core", "matplotlib": "matplotlib", "yaml": "pyyaml"}
    if missing := [package for name, package in needed.items() if find_spec(name) is None]:
        remedy = "pip install 'pyro_metabayes[experiments]', on Python 3.11 to 3.13"  # Hydra supports no later version
        sys.exit(f"error: expected the packages of the commands, {', '.join(missing)} not installed; {remedy}")


if sys.argv[0] == "-m":  # run as a command, not imported by another program
    for _number, _handler in STOP.items():
        if signal.getsignal(_number) is _handler:
            signal.signal(_number, _leave)
    require_extra()
