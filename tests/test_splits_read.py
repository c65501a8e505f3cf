"""A command needs classes only in the splits from which it draws tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.commands import SMALL, call, lines_of, ran, results_of, write_features

pytestmark = pytest.mark.usefixtures("empty_folder")

NUMBERS = {"train": 12, "val": 6, "test": 12}  # of classes; none is a multiple of another by chance alone


@pytest.fixture(scope="module")
def few_val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 classes, of which 6 are for validation."""
    splits = np.repeat(np.repeat(list(NUMBERS), list(NUMBERS.values())), 20)
    return write_features(tmp_path_factory.mktemp("few") / "few.npz", split=splits)


def settings(file: Path, guide: str = "proto") -> list[str]:
    return ["data=features", f"data.path={file}", *SMALL, "task.query=3", f"guide={guide}", "hydra.run.dir=run"]


@pytest.fixture(scope="module")
def five_way(few_val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("five") / "run"
    ran("run", *settings(few_val)[:-1], f"hydra.run.dir={folder}")
    return folder


@pytest.mark.parametrize("way", [7, 8, 12])
def test_an_evaluation_reads_its_split_alone(way: int, five_way: Path) -> None:
    out = ran("evaluate", str(five_way), f"task.way={way}")
    assert results_of(five_way / "evaluations" / f"task.way={way}")["way"] == way and out.err == ""


@pytest.mark.parametrize(
    "changed", ["task.way=13", "task.way=7 eval.split=val", "task.query=30", "task.way=13 eval.split=train"]
)
def test_an_evaluation_that_its_split_cannot_fill_is_refused(changed: str, five_way: Path) -> None:
    split = changed.partition("eval.split=")[2] or "test"
    assert f" the {split} split, got " in call("evaluate", str(five_way), *changed.split()).error


def test_other_commands_on_a_run_read_its_split_alone(five_way: Path) -> None:
    ran("calibration", f"run={five_way}", "tasks=4", "task.way=9")
    ran("predictive", f"run={five_way}", "tasks=4", "samples=3", "task.way=9")


def test_validation_takes_as_many_classes_as_there_are(few_val: Path) -> None:
    outcome = ran("run", *settings(few_val), "task.way=8", "task.query_counts=[1,1,1,1,2,2,5,5]")
    assert outcome.err == "note: the val split has 6 classes; validation is 6-way, training 8-way\n"
    assert results_of(Path("run"))["way"] == 8
    (nll,) = [line["val_nll"] for line in lines_of(Path("run")) if line.get("val_nll") is not None]
    assert np.isfinite(nll)


def test_validation_of_enough_classes_is_as_wide_as_training(few_val: Path) -> None:
    assert ran("run", *settings(few_val), "task.way=6").err == ""


@pytest.mark.parametrize(("changed", "split"), [("task.way=13", "train"), ("task.way=8 eval.split=val", "val")])
def test_training_and_evaluation_are_never_narrowed(changed: str, split: str, few_val: Path) -> None:
    error = call("run", *settings(few_val), *changed.split())
    assert f"classes in the {split} split, got {NUMBERS[split]}" in error.err.splitlines()[-1] and error.code == 1
    assert not Path("run/results.json").exists()


def test_a_guide_of_one_number_of_classes_cannot_be_validated_on_fewer(few_val: Path) -> None:
    error = call("run", *settings(few_val, "sib"), "task.way=8").error
    assert "task.way=8 classes in the val split for guide=sib, got 6; lower task.way, add classes, or take a" in error
