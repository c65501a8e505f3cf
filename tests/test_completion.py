"""Does Tab complete commands, choices and settings, without torch?"""

from __future__ import annotations

from pathlib import Path

import pytest

from pyro_metabayes.experiments.completion.__main__ import LINES
from pyro_metabayes.experiments.completion.candidates import candidates, complete
from tests.commands import ran
from tests.test_cold_start import FIRST_PRINT, output_without_torch

COMPLETED = {  # the words after `metabayes`, and what Tab offers for the last one
    "ev": ["evaluate "],
    "rum": [],
    "run guide=soft": ["guide=soft_kmeans "],
    "run logger=": ["logger=csv ", "logger=mlflow ", "logger=tensorboard ", "logger=wandb "],
    "run train.lea": ["train.learning_rate=", "train.learning_rates="],
    "run guide=sib guide.s": ["guide.step_size=", "guide.synthetic_gradient="],
    "run prior=gaussian prior.": ["prior.learn_scale=", "prior.loc=", "prior.scale="],
    "collapse study=gau": ["study=gaussian_mean "],
    "collapse size=": ["size=full ", "size=smoke "],
    "ablate gu": ["guide=sib "],
    "gold runs/sib wa": ["warmup="],
    "gold wa": [],  # first the folder of a run
    "evaluate runs/sib eval.t": ["eval.tasks=", "eval.temperature="],
    "compare runs --": ["--help ", "--out "],
    "completion b": ["bash "],
}


@pytest.mark.parametrize("words", COMPLETED)
def test_tab_completes_the_last_word(words: str) -> None:
    assert candidates(words.split()) == COMPLETED[words]


def test_bash_begins_a_word_after_an_equals_sign() -> None:
    assert list(complete("metabayes run guide=soft", "soft")) == ["soft_kmeans "]
    assert list(complete("metabayes run guide=soft", "guide=soft")) == ["guide=soft_kmeans "]  # zsh does not
    assert "sib " in complete("metabayes run guide=", "") and "run " in complete("metabayes ", "")


def test_the_shell_calls_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "metabayes verify runs")
    monkeypatch.setenv("COMP_POINT", "13")  # behind "metabayes ver"
    assert ran("completion", "metabayes", "ver", "metabayes").out == "verify \n"


@pytest.mark.parametrize("shell", LINES)
def test_the_lines_for_a_shell_are_printed(shell: str) -> None:
    assert ran("completion", shell).out == f"{LINES[shell]}\n"


def test_tab_imports_no_torch(tmp_path: Path) -> None:
    shell = "import os; os.environ |= {'COMP_LINE': 'metabayes run guide=si', 'COMP_POINT': '22'}"
    names, arguments = ("torch", "numpy", "hydra", "yaml"), ["metabayes", "completion", "metabayes", "si", "="]
    output = output_without_torch(shell + FIRST_PRINT.format(names=names, arguments=arguments), tmp_path).split()
    assert output == ["loaded"]  # and none of the names, when it prints
