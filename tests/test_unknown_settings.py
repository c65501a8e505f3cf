"""An unknown setting: the message suggests the most similar name, in any group of settings of the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyro_metabayes.errors import UnknownKey
from tests.commands import call, on_features

pytestmark = pytest.mark.usefixtures("empty_folder")

ELSEWHERE = {
    "guide.kl_weight=0.1": ["train.kl_weight"],
    "model.kl_weight=0.1": ["train.kl_weight"],
    "+eval.kl_weight=0.1": ["train.kl_weight"],
    "guide.kl_wieght=0.1": ["train.kl_weight"],
    "train.num_steps=5": ["guide.num_steps"],
    "prior.num_stepz=5": ["guide.num_steps"],
    "guide.learning_rate=0.1": ["pretrain.learning_rate", "train.learning_rate"],
    "data.shot=5": ["task.shot"],
    "guide.threads=1": ["threads"],
    "shot=5": ["task.shot"],
    "guide.num_step=1": ["guide.num_steps"],
    "train.learning_rat=1": ["train.learning_rate"],
    "guide.frozen=false": ["backbone.frozen"],
    "eval.taskz=5": ["eval.tasks"],
    "guide.qqq=1": [],
    "train.qqq=1": [],
    "qqq=1": [],
}


def suggested(error: str) -> list[str]:
    """The settings that a message suggests."""
    assert error.startswith("unknown key '"), error
    question = re.search(r"did you mean ([^?]*)\?", error)
    return question[1].replace("'", "").split(" or ") if question else []


@pytest.mark.parametrize("argument", ELSEWHERE)
def test_a_run_suggests_settings_of_all_groups(argument: str, features: Path) -> None:
    assert suggested(call("run", *on_features(features), argument).error) == ELSEWHERE[argument]


COMMANDS = {
    "evaluate {run} eval.shot=5": ["task.shot"],
    "evaluate {run} guide.samples=5": ["eval.samples"],
    "evaluate {run} shot=5": ["task.shot"],
    "evaluate {run} guide.qqq=5": [],
    "gold {run} shot=5": ["task.shot"],
    "gold {run} eval.shot=5": ["task.shot"],
    "calibration {run} guide.shot=5": ["task.shot"],
    "calibration {run} qqq=5": [],
    "predictive {run} way=5": ["task.way"],
    "pretrain data=glyphs train.epochs=1": ["pretrain.epochs"],
    "pretrain data=glyphs data.epochs=1": ["pretrain.epochs"],
    "prepare data=glyphs data.epochs=1": ["pretrain.epochs"],
    "prepare data=glyphs data.qqq=1": [],
    "collapse study.size=smoke": ["size"],
}


@pytest.mark.parametrize("line", COMMANDS)
def test_other_commands_do_so_too(line: str, finished: Path) -> None:
    name, *arguments = line.format(run=finished).split()
    assert suggested(call(name, *arguments).error) == COMMANDS[line]


@pytest.mark.parametrize(
    ("names", "elsewhere", "guess"),
    [
        (["kl_weights"], ["train.kl_weight"], "did you mean 'train.kl_weight'?"),
        (["qqq"], ["a.steps", "b.steps"], "did you mean 'a.steps' or 'b.steps'?"),
        (["steps"], ["a.steps", "b.steps"], "did you mean 'g.steps'?"),
    ],
    ids=["the same name", "in two groups", "in the own group first"],
)
def test_the_most_similar_name_is_suggested(names: list[str], elsewhere: list[str], guess: str) -> None:
    key = "g.kl_weight" if "kl" in guess else "g.stepss"
    assert guess in str(UnknownKey(key, names, "g", elsewhere))
