"""`experiments.verify` reproduces the metrics of a run, and lists the metrics that differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pyro_metabayes.experiments.runs.finished_runs import read_run
from pyro_metabayes.storage import checkpoint
from tests.commands import ROOT, SMALL, SMALL_LEO, call, checkpoint_of, ran, results_of, write_features

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def copied(finished: Path) -> Path:
    shutil.copytree(finished, "run")
    return Path("run")


def changed(folder: Path, **values: object) -> None:
    (folder / "results.json").write_text(json.dumps(results_of(folder) | values))


def test_a_run_is_found_again(copied: Path) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    outcome = ran("verify", "run")
    assert "equal: the " in outcome.out and outcome.out.endswith("of run, and the scores of its 8 tasks\n")
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "settings",
    [
        ("data=gaussian_features", "guide=sib"),
        ("data=gaussian_classes", "guide=savi"),
        ("data=gaussian_mean", "guide=exact"),
        ("data=linear_regression", "guide=exact"),
        ("data=sinusoid", "guide=maml"),
        ("data=sine_and_line", *SMALL_LEO),
        ("data=radon", "guide=partial_pooling"),
        pytest.param(("data=glyphs", "guide=sib", "backbone.num_filters=4"), marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings[0],
)
def test_runs_on_every_kind_of_data_are_found_again(settings: tuple[str, ...], metabayes_data: Path) -> None:
    ran("run", *settings, *SMALL, "pretrain.epochs=1", "hydra.run.dir=run")
    assert "equal: the " in ran("verify", "run").out


def test_each_figure_that_differs_is_named_with_both_values(copied: Path) -> None:
    results = results_of(copied)
    changed(
        copied, nll=0.5, accuracy=results["accuracy"] | {"ci95": 0.25}, versions=results["versions"] | {"torch": "1"}
    )
    outcome = call("verify", "run")
    torch_now = results["versions"]["torch"]
    assert outcome.code == 1 and outcome.err == ""
    assert outcome.out.splitlines() == [
        f"accuracy.ci95: 0.25 in results.json, {results['accuracy']['ci95']} now",
        f"nll: 0.5 in results.json, {results['nll']} now",
        f"versions.torch: 1 in results.json, {torch_now} now",
    ]


def test_scores_of_tasks_that_differ_are_counted(copied: Path) -> None:
    with np.load(copied / "tasks.npz") as archive:
        arrays = dict(archive)
    arrays["nll"][3] += 1e-6
    np.savez(copied / "tasks.npz", **arrays)
    assert "tasks.npz nll: different scores in 1 of 8 tasks\n" in call("verify", "run").out


def test_other_data_is_named(tmp_path: Path) -> None:
    write_features(Path("mine.npz"))
    small = ("data=features", "data.path=mine.npz", "train.steps=1", "eval.tasks=8", "train.validation_tasks=8")
    ran("run", *small, "guide=proto", "hydra.run.dir=run")
    write_features(Path("mine.npz"), features=np.random.default_rng(1).normal(size=(600, 16)))
    outcome = call("verify", "run")
    assert outcome.code == 1 and "nll: " in outcome.out and "data_fingerprint: " in outcome.out


# Every command that reads a finished run. `compare` and `verify` need its results.json, the others its checkpoint.
READERS = ("compare", "verify", "calibration", "effects", "errors", "evaluate", "gold", "predictive", "predict")
FINISH = "finish it with: python -m experiments.run resume=run"


def error_of(name: str, folder: str) -> str:
    inputs = ("support=none.npz", "query=none.npz") if name == "predict" else ()
    return call(name, folder, *inputs).error


@pytest.mark.parametrize("name", READERS)
def test_an_interrupted_run_is_refused_with_its_step(name: str, copied: Path) -> None:
    (copied / "results.json").unlink()
    state = checkpoint_of(copied)
    state["training"]["step"] = 1
    checkpoint.save(copied / "checkpoint.pt", state)
    assert error_of(name, "run") == f"expected a finished run, got run, at step 1 of 2; {FINISH}"


@pytest.mark.parametrize("name", ["compare", "verify"])
def test_a_trained_run_without_results_is_refused(name: str, copied: Path) -> None:
    """Its evaluation was interrupted."""
    (copied / "results.json").unlink()
    assert call(name, "run").error == f"expected a finished run, got run, which has no results.json; {FINISH}"


@pytest.mark.parametrize("name", READERS)
def test_a_missing_folder_and_a_folder_without_a_run_are_told_apart(name: str) -> None:
    Path("empty").mkdir()
    Path("results.json").write_text("{}")
    assert error_of(name, "nowhere").endswith(", got no folder nowhere; fix the path")
    assert error_of(name, "empty") == (
        "expected a checkpoint at empty/checkpoint.pt, got no such file in this folder; pass the folder of a run"
    )
    if name != "compare":
        assert error_of(name, "results.json").endswith("the file results.json in place of a folder; pass its folder, .")


@pytest.mark.parametrize(("folder", "why"), [("empty", "has no checkpoint.pt"), ("nowhere", "is not a folder")])
def test_the_folder_among_several_that_has_no_run_is_named(folder: str, why: str, copied: Path) -> None:
    Path("empty").mkdir()
    assert f"got '{folder}', which {why}; give folders of runs" in call("gold", "run", folder).error


def test_the_joint_nll_of_earlier_versions_is_not_read() -> None:
    """It is an average over few draws: a number in their files, and no longer comparable."""
    folder = ROOT / "tests/assets/version_0_1"
    assert results_of(folder)["joint_nll"] > 0
    run = read_run(folder)
    assert run.results["joint_nll"] is None and "joint_nll" not in run.per_task and "nll" in run.per_task
