"""The cells of the notebooks run in order in this process. Commands and scores have sizes for tests.

`make docs` executes the notebooks in full size. The notebooks with outputs, written by `make notebooks`, are compared
with their text.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from pyro_metabayes.evidence import joint
from tests.commands import ROOT
from tests.test_docs import compose, run_line

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)
ALT = re.compile(r' alt="(.{60,})"')
LARGEST = 300_000  # bytes of a notebook that a browser still opens quickly
FOLDERS = re.compile(r"/(?:home|root|tmp|work|Users|usr|var)/")  # of the machine that executed a notebook


def cells(path: Path) -> list[tuple[str, str]]:
    """Kind (code or markdown) and source of each cell of a text, as jupytext reads it."""
    _, *parts = CELL.split(path.read_text(encoding="utf-8"))
    found = zip(parts[::2], parts[1::2], strict=True)
    return [("markdown" if "[markdown]" in kind else "code", text.strip("\n")) for kind, text in found]


def code_cells(path: Path) -> list[str]:
    return [source for kind, source in cells(path) if kind == "code"]


def in_a_notebook(kind: str, source: str) -> str:
    """The source as in a notebook: Markdown without `# `, and IPython commands without the comment sign."""
    commented = r"^# ?" if kind == "markdown" else r"^# (?=[!%])"
    return re.sub(commented, "", source, flags=re.MULTILINE)


def stored(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return notebook


def small(code: str) -> str:
    """The code with few tasks, draws and training steps."""
    code = re.sub(r"EvalSettings\(tasks=\d+", "EvalSettings(tasks=4", code)
    code = re.sub(r"\bnum_samples=\d+", "num_samples=20", code)
    return re.sub(r"\bsteps( ?= ?)\d+", r"steps\g<1>4", code)


def commands(code: str) -> list[str]:
    """Shell commands of a notebook, `# !metabayes NAME`, as `python -m experiments.NAME`."""
    return [f"python -m experiments.{line}" for line in re.findall(r"^# !metabayes (.*)$", code, re.MULTILINE)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(joint, "MOST_STAGES", joint.FIRST_STAGES)
    names: dict[str, object] = {"__name__": "__main__"}
    for code in code_cells(path):
        for command in commands(code):
            run_line(command)
        exec(compile(small(code), path.name, "exec"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_commands_compose_at_their_own_size(path: Path) -> None:
    for command in (line for code in code_cells(path) for line in commands(code)):
        _, _, name, *arguments = shlex.split(command)
        compose(name.removeprefix("experiments."), arguments)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_text(path: Path) -> None:
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in stored(path)["cells"]]
    assert found == [(kind, in_a_notebook(kind, source)) for kind, source in cells(path)], "run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_outputs_without_errors(path: Path) -> None:
    assert path.with_suffix(".ipynb").stat().st_size <= LARGEST
    outputs = [output for cell in stored(path)["cells"] for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    text = "".join("".join(output.get("text", ())) for output in outputs)
    assert text and not FOLDERS.search(text) and "%|" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_does_not_say_when_and_where_it_was_executed(path: Path) -> None:
    notebook = stored(path)
    assert [cell["id"] for cell in notebook["cells"]] == [
        f"cell-{number:02d}" for number in range(1, len(notebook["cells"]) + 1)
    ]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["language_info"] == {"name": "python"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_with_a_plot_says_what_it_shows(path: Path) -> None:
    texts = [ALT.fullmatch(kind) for kind in CELL.findall(path.read_text(encoding="utf-8"))]
    for cell, text in zip(stored(path)["cells"], texts, strict=True):
        has_plot = any("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))
        assert has_plot == bool(text), f'expected alt="..." above each cell with a plot, and no other: {cell["source"]}'
        assert cell["metadata"] == ({"alt": text[1]} if text else {}), "run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_says_how_to_open_and_install_a_notebook(path: Path) -> None:
    first = cells(path)[0][1]
    assert "**How to open this.**" in first
    assert "pip install '.[experiments" in first and f"jupyter lab notebooks/{path.stem}.ipynb" in first


def test_every_notebook_has_a_text() -> None:
    assert [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))] == [path.stem for path in NOTEBOOKS]
