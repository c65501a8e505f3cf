"""Do the loggers receive every line of a run, its settings and its results, and do they fail in one line?"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pyro_metabayes.errors import UsageError
from pyro_metabayes.loggers.lightning import Csv, TensorBoard
from pyro_metabayes.loggers.mlflow import MLflow
from pyro_metabayes.loggers.run_log import Logger, RunLog
from pyro_metabayes.loggers.wandb import WandB
from tests.commands import call, lines_of, ran

LINES: list[dict[str, Any]] = [
    {"step": 10, "loss": 3.0, "prior_sd": {"w": 0.5}, "logit_sd": None},
    {"step": 20, "loss": 2.0, "prior_sd": {"w": 0.25}, "val_nll": 1.5},
    {"step": 30, "loss": 1.0, "prior_sd": {"w": 0.125}, "val_nll": 1.25},
]
LOSSES, SDS, VALIDATIONS = {10: 3.0, 20: 2.0, 30: 1.0}, {10: 0.5, 20: 0.25, 30: 0.125}, {20: 1.5, 30: 1.25}


def log_continued_run(logger: Logger, folder: Path) -> None:
    """Log a training that was interrupted after step 20 and continued to step 30, and its results."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    with RunLog(logger, folder, {"guide": {"_target_": "guides.sib.Guide", "num_steps": 3}, "seed": 7}) as log:
        log(LINES[-1])
        log.log_results({"nll": 1.125, "accuracy": {"mean": 0.5}, "collapsed": False}, 30)


def column(path: Path, name: str) -> dict[int, float]:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return {int(row["step"]): float(row[name]) for row in rows if row[name]}


def test_a_csv_file_has_a_row_per_step(tmp_path: Path) -> None:
    for _ in range(2):  # the second record replaces the first
        log_continued_run(Csv(tmp_path), tmp_path)
    path = tmp_path / "csv" / "metrics.csv"
    assert column(path, "loss") == LOSSES and column(path, "prior_sd.w") == SDS
    assert column(path, "val_nll") == VALIDATIONS
    assert column(path, "test_nll") == {30: 1.125} and column(path, "test_accuracy.mean") == {30: 0.5}
    assert "test_collapsed" not in path.read_text() and "logit_sd" not in path.read_text()


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        log_continued_run(TensorBoard(tmp_path), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    read = {name: {event.step: event.value for event in events.Scalars(name)} for name in ("loss", "val_nll")}
    assert read == {"loss": LOSSES, "val_nll": VALIDATIONS}
    assert "guide.num_steps: 3" in str(events.Tensors("settings/text_summary"))


def test_mlflow_has_metrics_and_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    log_continued_run(MLflow("sib, seed 7", "tests", uri), tmp_path)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss")} == LOSSES
    assert run.data.params == {"guide._target_": "guides.sib.Guide", "guide.num_steps": "3", "seed": "7"}
    assert (run.info.run_name, run.info.status) == ("sib, seed 7", "FINISHED")


def test_wandb_writes_files_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandB(tmp_path, "sib, seed 7", mode="offline")
    run = logger._run
    log_continued_run(logger, tmp_path)
    wandb.teardown()  # waits for the process that writes the file
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = wandb_history(file)
    assert [{name: row[name] for name in row if name in ("loss", "val_nll", "test_nll")} for row in written] == [
        {"loss": 3.0},
        {"loss": 2.0, "val_nll": 1.5},
        {"loss": 1.0, "val_nll": 1.25, "test_nll": 1.125},
    ]
    assert run.config["guide.num_steps"] == 3 and run.name == "sib, seed 7"


def test_wandb_without_a_login_is_one_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**settings: Any) -> None:
        raise wandb.Error("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UsageError, match=r"got the error: No API key configured; log in with `wandb login`, or set"):
        WandB(tmp_path, "a")


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """The logged rows of an offline run. Its file has a header of 7 bytes, then the format of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, start, rows, pending = file.read_bytes(), 7, [], b""
    while start + 7 <= len(content):
        size, kind = int.from_bytes(content[start + 4 : start + 6], "little"), content[start + 6]
        pending += content[start + 7 : start + 7 + size]
        start += 7 + size
        if kind in (1, 4):  # a whole record, or its last piece
            items = Record.FromString(pending).history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
            pending = b""
    return [row for row in rows if row]


class Broken:
    """A logger that loses its connection at step 20."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log_settings(self, settings: Mapping[str, Any]) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if step == 20:
            raise ConnectionError("no route\nto host")
        self.steps.append(step)

    def close(self, failed: bool) -> None:
        raise AssertionError("a logger that has failed is called again")


def test_a_logger_that_fails_does_not_end_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Broken()
    log_continued_run(broken, tmp_path)
    note = "note: the logger Broken failed: ConnectionError: no route?to host; metrics.jsonl is complete\n"
    assert broken.steps == [10] and capsys.readouterr().err == note


SMALL = ("guide=proto", "data=gaussian_features", "train.steps=4", "train.log_every=2", "eval.tasks=4")
SMALL += ("train.validation_tasks=4", "hydra.run.dir=run")


def test_a_command_logs_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran("run", *SMALL, "logger=csv")
    losses = {line["step"]: pytest.approx(line["loss"]) for line in lines_of(Path("run"))}
    assert len(losses) == 2 and column(Path("run/csv/metrics.csv"), "loss") == losses
    assert list(column(Path("run/csv/metrics.csv"), "test_nll")) == [4]
    ran("run", "resume=run", "train.steps=6")
    assert list(column(Path("run/csv/metrics.csv"), "loss")) == [2, 4, 6]


MISTAKES = {
    "logger=foo": "unknown choice logger=foo; choose one of: csv, mlflow, tensorboard, wandb",
    "logger=wandb logger.projekt=x": "unknown key 'logger.projekt'; did you mean 'logger.project'?",
    "logger=wandb logger.mode=of": "expected logger.mode to be one of online, offline, disabled, got 'of'",
    "logger=csv logger.project=x": "unknown key 'logger.project'; logger=csv takes: no settings",
    "logger.project=x": "expected logger=NAME beside logger.project=x, got none; choose one of: csv, mlflow",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_told_in_one_line(arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert MISTAKES[arguments] in call("run", *SMALL, *arguments.split()).error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_a_missing_package_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("pyro_metabayes.loggers.lightning.find_spec", lambda _: None)
    expected = f"expected the package {name} for logger={name}, not found; "
    expected += f"run: pip install 'pyro_metabayes.{name}.'"
    with pytest.raises(UsageError, match=expected):
        {
            "mlflow": lambda: MLflow("a"),
            "tensorboard": lambda: TensorBoard(tmp_path),
            "wandb": lambda: WandB(tmp_path, "a"),
        }[name]()
