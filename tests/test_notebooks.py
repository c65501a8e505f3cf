"""Do the notebooks run? Their cells in order, in this process; commands and scores at a size for tests.

`make docs` executes them at their own size.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.test_docs import compose, run_line

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)


def code_cells(path: Path) -> list[str]:
    _, *parts = CELL.split(path.read_text(encoding="utf-8"))
    return [code for kind, code in zip(parts[::2], parts[1::2], strict=True) if "[markdown]" not in kind]


def small(code: str) -> str:
    """Scores of a few tasks."""
    return re.sub(r"EvalSettings\(tasks=\d+", "EvalSettings(tasks=4", code)


def commands(code: str) -> list[str]:
    """Lines that a notebook hands to a shell: `# !python -m ...` in its text."""
    return re.findall(r"^# !(.*)$", code, re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for code in code_cells(path):
        for command in commands(code):
            run_line(command)
        exec(compile(small(code), path.name, "exec"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_commands_compose_at_their_own_size(path: Path) -> None:
    for command in (its for code in code_cells(path) for its in commands(code)):
        _, _, name, *arguments = shlex.split(command)
        compose(name.removeprefix("experiments."), arguments)
