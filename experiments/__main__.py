"""metabayes NAME ...: run the command NAME of the package. Without a name, list the commands."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from difflib import get_close_matches
from pathlib import Path

from pyro_metabayes.experiments import commands, require_extra

MORE = (
    "metabayes NAME --help explains a command; metabayes completion makes Tab complete commands and settings",
    "METABAYES_PLOTS=pdf (or svg, or both: pdf,svg) before a command also saves its plots in that format",
)


def summary(path: Path) -> str:
    """Return the first line of a command's docstring, without the usage. The file is parsed, since imports are slow."""
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return line.rpartition(": ")[2] if ": " in line else line


def main() -> None:
    files = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {command:20}{summary(path)}" for command, path in files.items()]
        _print("\n".join(["usage: metabayes NAME ...", "", *lines, "", *MORE]))
        return
    if name not in files:
        near = get_close_matches(name, files, 1)
        guess = f"did you mean '{near[0]}'? " if near else ""
        sys.exit(f"error: unknown command '{name}'; {guess}choose one of: {', '.join(files)}")
    require_extra()
    del sys.argv[1]
    runpy.run_module(f"pyro_metabayes.experiments.{name}", run_name="__main__", alter_sys=True)


def _print(text: str) -> None:
    """Print a text. If a reader such as `head` closes the pipe early, exit without a traceback."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it exits


if __name__ == "__main__":
    main()
