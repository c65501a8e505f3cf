"""The output of `experiments.compare` and `experiments.evaluate` agrees with the runs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pyro_metabayes.diagnostics.collapse_metrics import with_information, without_information
from pyro_metabayes.evaluation.intervals import ci95_of, over_runs
from pyro_metabayes.experiments.runs.finished_runs import find_runs, group_by_label
from pyro_metabayes.experiments.runs.tables import kl_weight
from tests.commands import Outcome, call, figures_of, on_features, ran, results_of

GUIDES = ("sib_delta", "proto")


pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(scope="session")
def runs(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sib_delta and proto, two seeds each, in the folders sib_delta0, ..., proto1."""
    folder = tmp_path_factory.mktemp("runs")
    sweep = (f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${choices.guide}${seed}")
    settings = (f"guide={','.join(GUIDES)}", "seed=0,1", "train.learning_rate=0.01", "train.steps=10")
    ran("run", "-m", *on_features(features), *settings, *sweep)
    return folder


@pytest.fixture(scope="session")
def compared(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder and the output of the comparison, with sib_delta as the baseline."""
    out = tmp_path_factory.mktemp("comparison")
    return out, ran(
        "compare", *(str(runs / f"{guide}{seed}") for guide in GUIDES for seed in (0, 1)), "--out", str(out)
    )


@pytest.fixture
def copied(runs: Path) -> Path:
    """A copy of one run that a test may change."""
    shutil.copytree(runs / "sib_delta0", "run")
    return Path("run")


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores_of(folder: Path, name: str) -> np.ndarray:
    with np.load(folder / "tasks.npz") as tasks:
        return tasks[name]


def label_of(arguments: list[str]) -> list[str]:
    ran("compare", *arguments, "--out", "out")
    return [row["guide"] for row in rows_of(Path("out"))]


# ---------------------------------------------------------------- compare


def test_seeds_are_pooled_into_one_row(compared: tuple[Path, Outcome]) -> None:
    assert [(row["guide"], row["seeds"]) for row in rows_of(compared[0])] == [
        ("sib_delta", "2"),
        ("proto", "2"),
    ]


def test_accuracy_is_the_mean_over_all_tasks_of_all_seeds(runs: Path, compared: tuple[Path, Outcome]) -> None:
    scores = 100 * np.concatenate([scores_of(runs / f"proto{seed}", "accuracy") for seed in (0, 1)])
    expected = f"{scores.mean():.1f} +- {ci95_of(scores):.1f}"
    assert rows_of(compared[0])[1]["accuracy %"] == expected


def test_the_gain_is_paired_task_by_task(runs: Path, compared: tuple[Path, Outcome]) -> None:
    sib, proto = (
        np.concatenate([scores_of(runs / f"{guide}{seed}", "accuracy") for seed in (0, 1)]) for guide in GUIDES
    )
    gain = 100 * (proto - sib)
    expected = f"{gain.mean():+.1f} +- {ci95_of(gain):.1f}"
    assert [row["accuracy gain, points"] for row in rows_of(compared[0])] == ["-", expected]


def test_gains_over_training_runs_have_an_interval_of_their_own(runs: Path, compared: tuple[Path, Outcome]) -> None:
    """Two seeds on given features: one backbone, so that the seeds are the units."""
    gains = [
        100
        * float(
            (scores_of(runs / f"proto{seed}", "accuracy") - scores_of(runs / f"sib_delta{seed}", "accuracy")).mean()
        )
        for seed in (0, 1)
    ]
    interval = over_runs(gains, ["one", "one"])
    first, row = rows_of(compared[0])
    assert row["over runs: runs"] == "2, with 1 backbone" and first["over runs: accuracy gain, points"] == "-"
    assert row["over runs: accuracy gain, points"].startswith(f"{interval.mean:+.1f} +- {interval.ci95:.1f}")
    assert ("better" in row["over runs: accuracy gain, points"]) == (interval.excludes_zero and interval.mean > 0)
    assert "floor" in row["ECE"]


def test_terminal_markdown_and_csv_say_the_same(compared: tuple[Path, Outcome]) -> None:
    out, outcome = compared
    parts = (out / "table.md").read_text().split("\n\n")
    assert parts[0].startswith("Data and task: ") and parts[1].startswith("Differences to the first row")
    scores = next(part for part in reversed(parts) if part.startswith("| guide"))  # below the differences
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in scores.splitlines()]
    rows, columns = rows_of(out), cells[0]
    assert set(columns) < set(rows[0]) and cells[2 : 2 + len(rows)] == [[row[name] for name in columns] for row in rows]
    words = outcome.out.split()
    for row in rows:
        assert all(word in words for name in columns for word in row[name].split() if row[name] != "-")
    assert outcome.out.index("Differences") < outcome.out.index("Means over tasks")


def test_there_is_a_picture(compared: tuple[Path, Outcome]) -> None:
    assert (compared[0] / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_figures_without_a_meaning_are_dashes(compared: tuple[Path, Outcome]) -> None:
    for row in rows_of(compared[0]):
        assert (row["ELBO"], row["KL"], row["prior"]) == ("-", "-", "-")


def test_transductive_accuracies_stand_in_a_column_of_their_own(compared: tuple[Path, Outcome]) -> None:
    sib, proto = rows_of(compared[0])
    assert sib["accuracy %"] == proto["transductive %"] == "-"
    assert "+-" in sib["transductive %"] and "+-" in proto["accuracy %"]


def test_a_label_names_only_what_differs(features: Path, runs: Path) -> None:
    settings = ("guide=proto", "train.learning_rate=0.01", "train.steps=10", "head.scale=5.0")
    ran("run", *on_features(features), *settings, "hydra.run.dir=other")
    labels = label_of([str(runs / "proto0"), str(runs / "sib_delta0"), "other"])
    assert labels == ["proto head.scale=10.0", "sib_delta", "proto head.scale=5.0"]


def test_tasks_of_another_shape_are_another_task(features: Path, runs: Path) -> None:
    """The column of the task says so; the label does not repeat it."""
    settings = ("guide=proto", "train.learning_rate=0.01", "train.steps=10", "task.shot=2")
    ran("run", *on_features(features), *settings, "hydra.run.dir=other")
    assert label_of([str(runs / "proto0"), "other"]) == ["proto", "proto"]
    tasks = [(row["data and task"], row["accuracy gain, points"]) for row in rows_of(Path("out"))]
    assert tasks == [("features 5-way 1-shot, test", "-"), ("features 5-way 2-shot, test", "-")]


def test_the_same_tasks_count_once(copied: Path) -> None:
    """A run that is named twice, or was evaluated again, is no second seed."""
    ran("evaluate", str(copied))
    ran("compare", str(copied), str(copied), "--out", "out")
    assert [row["seeds"] for row in rows_of(Path("out"))] == ["1"]


def test_a_run_stands_before_its_evaluations(copied: Path) -> None:
    ran("evaluate", str(copied), "guide.num_steps=0")
    assert label_of([str(copied)]) == ["sib_delta guide.num_steps=3", "sib_delta guide.num_steps=0"]


def test_an_unfinished_run_among_finished_ones_is_left_out_with_a_note(copied: Path) -> None:
    shutil.copytree(copied, "runs/done")
    shutil.copytree(copied, "runs/stopped")
    Path("runs/stopped/results.json").unlink()
    outcome = ran("compare", "runs", "--out", "out")
    assert outcome.err == "note: left out runs/stopped: it has a checkpoint.pt, but no results.json\n"
    assert [row["guide"] for row in rows_of(Path("out"))] == ["sib_delta"]


@pytest.mark.parametrize("content", ["", '{"guide":', "{}", "[]", "null"])
def test_damaged_results_are_refused(content: str, copied: Path) -> None:
    (copied / "results.json").write_text(content)
    assert call("compare", "run").error.startswith("expected a finished run in run, got damaged files:")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
def test_damaged_tasks_are_refused(content: bytes, copied: Path) -> None:
    (copied / "tasks.npz").write_bytes(content)
    assert call("compare", "run").error.startswith("expected a finished run in run, got damaged files:")


def test_an_interrupted_run_is_no_finished_one(copied: Path) -> None:
    (copied / "tasks.npz").unlink()
    assert "expected a finished run in run" in call("compare", "run").error


def test_a_folder_that_cannot_be_written_is_refused(runs: Path) -> None:
    Path("plain").write_text("a file, no folder")
    assert "expected to write plain/out/table.md" in call("compare", str(runs), "--out", "plain/out").error


def test_the_information_that_decides_stands_beside_the_verdict_on_the_prior(features: Path) -> None:
    """In the tables for people; table.csv has the verdict alone."""
    for guide in ("mc", "savi"):
        outcome = ran("run", *on_features(features), f"guide={guide}", f"hydra.run.dir=runs/{guide}")
        verdict = with_information("alive", [results_of(Path("runs", guide))])
        assert re.fullmatch(r"alive, \d+\.\d", verdict)
        assert re.search(rf"^prior +{verdict}$", outcome.out, re.MULTILINE)
    compared = ran("compare", "runs", "--out", "out")
    assert verdict in compared.out and verdict in Path("out/table.md").read_text()
    assert [row["prior"] for row in rows_of(Path("out"))] == ["alive", "alive"]


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([0.0457], "collapsed, 0.046"),
        ([0.03, 0.0457], "collapsed, 0.030 to 0.046"),
        ([0.0299, 0.0301], "collapsed, 0.030"),
        ([0.03, 12.34], "collapsed, 0.030 to 12.3"),
        ([0.03, None], "collapsed"),
    ],
)
def test_information_has_as_many_digits_as_the_threshold_needs(values: list[float | None], cell: str) -> None:
    results = [{"prior_information": value} for value in values]
    assert with_information("collapsed", results) == cell
    assert without_information([{"guide": "a, b", "prior": cell}]) == [{"guide": "a, b", "prior": "collapsed"}]


# ---------------------------------------------------------------- evaluate


def test_an_evaluation_of_the_same_is_the_same(copied: Path) -> None:
    outcome = ran("evaluate", str(copied))
    assert figures_of(copied / "evaluations" / "again") == figures_of(copied)
    for name in ("accuracy", "nll"):
        assert np.array_equal(scores_of(copied / "evaluations" / "again", name), scores_of(copied, name))
    assert "evaluations/again" in outcome.out and outcome.err == ""


def test_an_evaluation_names_its_folder_by_what_is_changed(copied: Path) -> None:
    ran("evaluate", str(copied), "guide.num_steps=0", "eval.tasks=20")
    results = results_of(copied / "evaluations" / "guide.num_steps=0,eval.tasks=20")
    assert (results["tasks"], results["transductive"], results["config"]["guide"]["num_steps"]) == (
        20,
        False,
        0,
    )


def test_an_evaluation_leaves_the_run_as_it_is(copied: Path) -> None:
    before = json.loads((copied / "results.json").read_text())
    ran("evaluate", str(copied), "eval.split=val")
    assert json.loads((copied / "results.json").read_text()) == before
    assert results_of(copied / "evaluations" / "eval.split=val")["split"] == "val"


def test_untrained_sib_without_inner_steps_is_proto(features: Path) -> None:
    """theta^0 is the prototypes then, since its initial scales are 1; a temperature moves no decision."""
    still = ("train.learning_rate=1e-12", "train.schedule=constant")
    for guide in GUIDES:
        ran("run", *on_features(features), *still, f"guide={guide}", f"hydra.run.dir={guide}")
    ran("evaluate", "sib_delta", "guide.num_steps=0")
    scores = scores_of(Path("sib_delta/evaluations/guide.num_steps=0"), "accuracy")
    assert np.array_equal(scores, scores_of(Path("proto"), "accuracy"))


def test_a_kl_weight_stands_beside_a_bound_alone() -> None:
    schedule = {"start": 0.1, "end": 0.5, "steps": 9}
    trained = {"elbo": -1.0, "config": {"train": {"kl_weight": schedule}}}
    assert kl_weight(trained | {"kl_weight": schedule}) == "0.5"
    assert kl_weight(trained | {"kl_weight": None}) == "-", "the objective has no KL"
    assert kl_weight(trained | {"elbo": None, "kl_weight": 1.0}) == "-"
    assert kl_weight(trained) == "0.5", "results of an earlier version"


@pytest.mark.parametrize(("guide", "weight"), [("mc", None), ("savi", 0.1)])
def test_results_record_the_kl_weight_of_objectives_with_a_kl(guide: str, weight: float | None, features: Path) -> None:
    ran("run", *on_features(features), f"guide={guide}", "hydra.run.dir=run")
    assert results_of(Path("run"))["kl_weight"] == weight


def test_backbones_are_pooled_into_one_row(copied: Path) -> None:
    """A run with another seed of the pretraining is another backbone of the same row."""
    other = copied.parent / "other"
    shutil.copytree(copied, other)
    results = json.loads((other / "results.json").read_text())
    results["config"]["pretrain"]["seed"] = 7
    (other / "results.json").write_text(json.dumps(results | {"backbone_fingerprint": "another"}))
    (row,) = group_by_label(find_runs([str(copied), str(other)])).values()
    assert len(row) == 2 and len({run.backbone for run in row}) == 2
