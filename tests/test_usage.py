"""Every command explains itself, and shows progress without a terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest

from pyro_metabayes.experiments import __main__ as entry
from pyro_metabayes.experiments.cli.choices import CONF
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import Config, register
from pyro_metabayes.experiments.cli.explanations import settings_of_choice, settings_of_schema
from pyro_metabayes.training.progress import PlainLines, counted
from tests.commands import call


@pytest.mark.parametrize("name", entry.commands())
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_prints_its_usage(name: str, flag: str) -> None:
    outcome = call(name, flag)
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.startswith(f"usage: python -m experiments.{name} ")
    assert f"\nexample:\n  python -m experiments.{name}" in outcome.out
    assert "== Config" not in outcome.out and max(map(len, outcome.out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("name", "explained"),
    {
        "calibration": ("sbc_tasks", "number of tasks for simulation-based calibration; 0 omits it (default: 512)"),
        "gold": ("RUN_DIR", "folder of a finished run, or folders of several runs"),
        "predictive": (
            "samples",
            "number of draws of w per task: one half draws replicated labels, the other half scores labels "
            "(default: 200)",
        ),
        "run": ("seed", "seed of the initial weights, the tasks and the noise (default: 0)"),
        "collapse": ("workers", "number of runs in parallel, each on one thread (default: 2)"),
        "prepare": ("data=", "cifar_fs, digit_domains"),
    }.items(),
)
def test_the_usage_explains_the_settings(name: str, explained: tuple[str, str]) -> None:
    assert " ".join(explained) in " ".join(call(name, "--help").out.split())


@pytest.mark.parametrize("name", ["effects", "predict"])
def test_the_usage_says_that_no_option_sets_the_level_of_intervals(name: str) -> None:
    shown = " ".join(call(name, "--help").out.split())
    assert "90% interval" in shown and "--level" not in shown
    assert re.search("[Nn]o option changes (this|the) level", shown)
    assert name == "predict" or "maximum likelihood, not REML" in shown


def test_a_choice_on_the_command_line_is_explained() -> None:
    shown = " ".join(call("run", "guide=sib", "--help").out.split())
    assert "guide.step_size step size eta, for a sum over queries (default: 0.001)" in shown
    assert "also sets train.kl_weight=0.003" in shown and "guide.step_size" not in call("run", "--help").out


GROUPS = ("backbone", "data", "guide", "head", "model", "objective", "prior")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def test_every_setting_of_every_choice_is_explained_in_words() -> None:
    register()
    rows = [*settings_of_schema(Config), *(row for choice in CHOICES for row in settings_of_choice(CONF, *choice))]
    assert len(rows) > 400
    assert [row for row in rows if not re.match(r"\S.* \((default: |required)", row[1])] == []


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # other tests import commands
@pytest.mark.parametrize("name", ["gold", "run", "verify"])
def test_an_installed_command_is_called_by_its_installed_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["metabayes", name, "--help"])
    try:
        entry.main()
    except SystemExit as stop:
        assert not stop.code
    out = capsys.readouterr().out
    assert out.startswith(f"usage: metabayes {name} ") and f"\n  metabayes {name} " in out


def test_plain_lines_come_at_most_once_per_interval(capsys: pytest.CaptureFixture[str]) -> None:
    for interval, expected in ((0.0, "pretrain: 5 of 6 batches\npretrain: 6 of 6 batches, epoch 1/2\n"), (1e6, "")):
        with PlainLines("pretrain", "batches", 6, initial=4, interval=interval) as lines:
            lines.update()
            lines.set_postfix(epoch="1/2")
            lines.update()
        captured = capsys.readouterr()
        assert captured.out == expected and captured.err == ""


def test_counting_returns_the_values() -> None:
    assert list(counted([3, 1, 2], "convert", "rows")) == [3, 1, 2]
    assert list(counted(iter("ab"), "convert", "rows", total=2)) == ["a", "b"]


def test_a_pipe_gets_each_line_when_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, write_through=False))
    seen = []

    def command() -> None:
        print("pretraining it once")
        seen.append(pipe.getvalue())

    run_program(command)
    assert seen == [b"pretraining it once\n"]


@pytest.mark.parametrize("name", ["gold", "calibration", "predictive"])
def test_a_command_on_a_run_says_that_it_needs_one(name: str) -> None:
    assert call(name, "tasks=4").error == (
        "expected RUN_DIR, the folder of a finished run, got none; --help lists all settings"
    )


def test_an_unknown_flag_is_named_in_one_line() -> None:
    expected = "unknown flag '--hepl'; did you mean --help? settings have the form train.steps=500; --help lists them"
    assert call("run", "guide=sib", "--hepl").error == expected
    assert call("collapse", "--steps=3").error.startswith("unknown flag '--steps'; ")


def test_settings_of_an_evaluation_are_not_required() -> None:
    expected = "error: the following arguments are required: RUN_DIR; see python -m experiments.evaluate --help\n"
    assert (call("evaluate").code, call("evaluate").err) == (2, expected)
