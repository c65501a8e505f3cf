"""Do the commands and the code of README.md and docs/ work as they stand there, one after the other?"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.commands import ROOT, ran

PAGES = [path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# The page's commands at a size for tests: two steps, a thin backbone, few tasks.
SMALL = ("train.steps=2", "train.validation_tasks=4", "eval.tasks=8", "eval.samples=2")
THIN = ("pretrain.epochs=1", "backbone.num_filters=4")


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, text in BLOCK.findall((ROOT / page).read_text()):
        if language == "python":
            exec(compile(text, page, "exec"), names)
        else:
            for line in text.splitlines():
                run_line(line)


def run_line(line: str) -> None:
    """One command of a page; a study that takes minutes is left to the reader."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    assert words[:2] == ["python", "-m"], line
    name, arguments = words[2].removeprefix("experiments."), words[3:]
    if name == "run":
        features = any(argument.startswith("data=") for argument in arguments)
        arguments += [*SMALL, *(() if features else THIN)]
    ran(name, *arguments)


def test_every_link_of_the_readme_leads_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), target
