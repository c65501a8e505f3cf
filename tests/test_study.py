"""Studies in the smallest size: they run, keep finished runs, continue after Ctrl-C, and report mistakes."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pyro_metabayes.experiments.cli.command import CONF
from pyro_metabayes.experiments.collapse.__main__ import write
from pyro_metabayes.experiments.studies.run_grid import run_grid
from pyro_metabayes.experiments.studies.study import Row, jobs_of, rows_of
from tests.commands import Outcome, call, ran, results_of, without_workers
from tests.configurations import check_configurations, first_of_each
from tests.processes import ForkedCommand, forked

STUDIES = sorted(path.stem for path in (Path(CONF) / "study").glob("*.yaml"))
GAUSSIAN = ("study=gaussian_mean", "size=smoke", "workers=1", "study.evaluations.settings=['task.shot=2']")
PNG = b"\x89PNG"
COMMON = ("train.", "eval.", "task.", "pretrain.", "trainer.")  # settings of every guide

pytestmark = pytest.mark.usefixtures("empty_folder")


def study_of(name: str) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(Path(CONF) / "study" / f"{name}.yaml"))
    return content


SMOKE = {f"{name} {row.part}: {row.label}": row for name in STUDIES for row in rows_of(study_of(name), smoke=True)}


# ---------------------------------------------------------------- the rows, without running them


def with_every_setting() -> dict[str, list[Row]]:
    """By study, the rows with a setting (or a setting of a part with a guide) that no earlier row has."""
    seen, kept = set[tuple[str, str]](), dict[str, list[Row]]()
    for name in STUDIES:
        for row in rows_of(study_of(name), smoke=False):
            guide = next((setting for setting in row.settings if setting.startswith("guide=")), "")
            of_parts = {item for item in row.settings if "." in item.partition("=")[0] and not item.startswith(COMMON)}
            these = {(guide if item in of_parts else "", item) for item in row.settings}
            if not these <= seen:
                kept.setdefault(name, []).append(row)
            seen |= these
    return kept


NEW_SETTINGS = with_every_setting()


@pytest.mark.parametrize("name", NEW_SETTINGS)
def test_every_setting_of_a_row_is_one_of_a_configuration(name: str) -> None:
    check_configurations(first_of_each(row.settings for row in NEW_SETTINGS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_row_is_a_configuration(name: str) -> None:
    check_configurations(row.settings for row in rows_of(study_of(name), smoke=False))


def test_smoke_makes_every_row_small() -> None:
    """Of a setting that is given twice the last one counts."""
    for label, row in SMOKE.items():
        small = dict(setting.split("=", 1) for setting in row.settings)
        assert int(small["train.steps"]) <= 10 and int(small["eval.tasks"]) <= 100 and row.seeds == 1, label


@pytest.mark.parametrize("name", STUDIES)
def test_no_two_rows_share_a_folder(name: str) -> None:
    rows = rows_of(study_of(name), smoke=False)
    folders = [row.folder(Path("study"), seed) for row in rows for seed in range(row.seeds)]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", STUDIES)
def test_what_a_study_names_is_there(name: str) -> None:
    """Labels and parts in pictures and evaluations: a misspelt one would be left out in silence."""
    study = study_of(name)
    rows = rows_of(study, smoke=True)
    known = {row.label for row in rows} | {row.part for row in rows}
    named = [name for chosen in study["pictures"].values() for name in chosen or []]
    assert set(named) <= known and set(study["evaluations"].get("parts", [])) <= known


def test_the_command_of_a_row_has_its_settings_and_seeds() -> None:
    label = "savi separate, KL weight 1e-6 to 1"
    (row,) = (row for row in rows_of(study_of("gaussian_mean"), smoke=False) if row.label == label)
    words = shlex.split(row.command)
    assert words[:4] == ["python", "-m", "experiments.run", "-m"]
    assert words[4:-1] == list(row.settings) and words[-1] == "seed=0,1,2"


def test_seeds_come_one_after_the_other() -> None:
    """So that an interrupted study has every row with its first seed before any with its second."""
    rows = [Row("a", "x", (), 2), Row("b", "y", (), 1)]
    runs, again = jobs_of(rows, Path("study"), {"parts": ["a"], "settings": ["task.shot=2"]})
    first, second = (row.folder(Path("study"), 0) for row in rows)
    assert [job.out for job in runs] == [first, second, first.parent / "seed1"]
    assert [job.out for job in again] == [
        first.parent / f"seed{seed}" / "evaluations" / "task.shot=2" for seed in range(2)
    ]


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="session")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder of two parts of one study, and the output of the command."""
    folder = tmp_path_factory.mktemp("gaussian") / "study"
    parts = "parts=[ceiling,monte_carlo_joint]"
    with without_workers():
        return folder, ran("collapse", *GAUSSIAN, parts, f"hydra.run.dir={folder}")


@pytest.fixture
def copied(gaussian: tuple[Path, Outcome]) -> Path:
    """A copy of the study that a test may change. The times of files are kept."""
    shutil.copytree(gaussian[0], "study")
    return Path("study").resolve()


def table_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def runs_in(folder: Path) -> dict[Path, int]:
    """The finished runs and evaluations with the times of their files."""
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("results.json")}


def check_outputs(folder: Path, pictures: set[str], parts: set[str]) -> list[dict[str, str]]:
    """Check that tables and plots exist and no number is missing. Return the rows of table.csv."""
    assert {path.name for path in folder.glob("*.png")} == pictures
    assert all((folder / name).read_bytes().startswith(PNG) for name in pictures)
    markdown = (folder / "table.md").read_text()
    assert {line[3:] for line in markdown.splitlines() if line.startswith("## ")} == parts
    rows = table_in(folder)
    assert {row["part"] for row in rows} == parts
    for cell in [markdown, *(value for row in rows for value in row.values())]:
        assert "nan" not in cell.lower().split() and "inf" not in cell.lower().split() and cell
    return rows


def test_a_study_leaves_tables_and_pictures(gaussian: tuple[Path, Outcome]) -> None:
    folder, outcome = gaussian
    parts = {"ceiling", "monte_carlo_joint"}
    rows = check_outputs(folder, {"training.png", "samples.png", "shots.png"}, parts)
    assert len(rows) == 6 and {row["seeds"] for row in rows} == {"1"}
    assert "sd / true" in rows[0], "columns are those that some row has a figure for"
    assert not {"accuracy %", "ECE", "disagreement"} & rows[0].keys(), "and no others"
    assert outcome.err == "" and str(folder) in outcome.out
    for row in rows:
        assert row[""] in outcome.out


def test_a_study_runs_every_row_and_evaluation(gaussian: tuple[Path, Outcome]) -> None:
    """One seed of each row, and each once more with another support set."""
    finished = runs_in(gaussian[0])
    again = {path for path in finished if "evaluations" in path.parts}
    assert len(finished) == 12 and len(again) == 6
    for path in finished:
        results = results_of((gaussian[0] / path).parent)
        assert (results["steps"], results["tasks"], results["seed"]) == (4, 64, 0)
        assert results["shot"] == (2 if path in again else 5)


def test_the_table_is_what_the_runs_say(gaussian: tuple[Path, Outcome]) -> None:
    row = next(row for row in table_in(gaussian[0]) if row[""] == "exact")
    results = results_of(SMOKE["gaussian_mean ceiling: exact"].folder(gaussian[0], 0))
    assert row["NLL"] == f"{results['nll']:.3f}" and row["sd / true"] == f"{results['sd_ratio']:.3f}"
    assert row["prior"] == "alive" and results["collapsed"] is False
    verdict = f"| {results['prior_information']:.3f} | alive |"
    assert verdict in next(line for line in (gaussian[0] / "table.md").read_text().splitlines() if "| exact |" in line)


def test_finished_runs_are_not_run_again(copied: Path) -> None:
    """And a part by itself leaves the others in the table."""
    before = runs_in(copied)
    outcome = ran("collapse", *GAUSSIAN, "parts=[ceiling]", f"hydra.run.dir={copied}")
    assert runs_in(copied) == before and "0 of 1 runs to do" in outcome.out
    assert {row["part"] for row in table_in(copied)} == {"ceiling", "monte_carlo_joint"}


@pytest.mark.parametrize("folder", ["study", "run"])
def test_a_folder_of_something_else_is_refused(folder: str, copied: Path) -> None:
    Path("run").mkdir()
    Path("run/results.json").write_text("{}")
    before = sorted(Path(folder).rglob("*"))
    error = call("collapse", "study=classification", "size=smoke", f"hydra.run.dir={folder}").error
    holds = "study=gaussian_mean size=smoke" if folder == "study" else "other files"
    assert error.startswith("expected a new folder, or the folder of study=classification size=smoke")
    assert holds in error and error.endswith("; name another folder: hydra.run.dir=DIR")
    assert sorted(Path(folder).rglob("*")) == before


def test_a_folder_of_other_settings_is_refused(copied: Path) -> None:
    before = runs_in(copied)
    error = call(
        "collapse", *GAUSSIAN, "parts=[ceiling]", f"hydra.run.dir={copied}", "study.smoke='train.steps=5'"
    ).error
    assert "other settings" in error and "hydra.run.dir=" in error and runs_in(copied) == before


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Row]]]:
    """A few rows of the other studies that need no pretraining."""
    chosen: dict[str, tuple[Path, list[Row]]] = {}
    jobs = []
    for name, wanted in (
        ("spinning_lines", ("squared errors summed (noise^2 = 1/2)", "half of them averaged")),
        ("classification", ("class means", "mc per point, L=1", "savi separate, KL weight 1", "sib")),
    ):
        rows = [row for row in rows_of(study_of(name), smoke=True) if row.label in wanted and row.part != "5-shot"]
        folder = tmp_path_factory.mktemp(name)
        chosen[name] = folder, rows
        jobs += jobs_of(rows, folder, {})[0]
    with without_workers():
        run_grid(jobs, workers=1, title="study", advice="")
    for name, (folder, rows) in chosen.items():
        write(study_of(name), rows, folder)
    return chosen


def test_spinning_lines_are_a_study(others: dict[str, tuple[Path, list[Row]]]) -> None:
    rows = check_outputs(others["spinning_lines"][0], {"lines.png"}, {"spinning_lines"})
    assert len(rows) == 2 and float(rows[0]["MSE of the true posterior mean"]) == pytest.approx(0.01, abs=0.02)


def test_classification_is_a_study(others: dict[str, tuple[Path, list[Row]]]) -> None:
    rows = check_outputs(others["classification"][0], {"training.png", "verdict.png"}, {"1-shot"})
    assert len(rows) == 4 and all(" +- " in row["of one draw"] for row in rows)
    point = next(row for row in rows if row[""] == "class means")
    assert point["accuracy %"] == point["of mean weights"] == point["of one draw"]
    assert point["mutual information"] == "0.000" and point["prior"] == "-"


# ---------------------------------------------------------------- mistakes, and Ctrl-C


def test_a_row_that_fails_is_named_in_one_line() -> None:
    """With its folder; nothing is left of it, so that the mended study runs it."""
    broken = "++study.parts.ceiling.settings='prior.scale=-1'"
    settings = ("study=gaussian_mean", "size=smoke", "workers=1", "parts=[ceiling]", "hydra.run.dir=study")
    with forked("collapse", *settings, broken, fork_workers=True) as study:
        outcome = study.finish()
    folder, _, message = outcome.error.partition(": ")
    assert message == "expected prior.scale > 0, got -1.0" and "exact" in folder and not Path(folder).exists()
    assert not list(Path.cwd().rglob("results.json")) and not list(Path.cwd().rglob("table.*"))


QUICK_AND_LONG = (
    *GAUSSIAN,
    "parts=[ceiling]",
    "study.smoke='train.tasks_per_step=8 train.log_every=5 train.validate_every=600 eval.tasks=64'",
    "study.parts.ceiling.rows.exact='guide=exact train.steps=4'",
    "++study.parts.ceiling.rows={long:'guide=exact train.steps=600'}",
    "study.evaluations.parts=[]",
)


def wait_for_the_long_row(study: ForkedCommand, folder: Path) -> None:
    end = time.monotonic() + 60
    while study.poll() is None and time.monotonic() < end:
        if any(path.read_text().count("\n") > 5 for path in folder.rglob("*long*/seed0/metrics.jsonl")):
            return
        time.sleep(0.01)


@pytest.fixture
def interrupted() -> tuple[Path, dict[Path, int], Outcome]:
    """A study with a finished row and a long unfinished one. It and its workers got SIGINT, as by Ctrl-C."""
    folder = Path("study").resolve()
    with forked("collapse", *QUICK_AND_LONG, "hydra.run.dir=study") as study:
        wait_for_the_long_row(study, folder)
        before = runs_in(folder)
        os.killpg(study.pid, signal.SIGINT)
        return folder, before, study.finish()


def test_an_interrupted_study_goes_on(interrupted: tuple[Path, dict[Path, int], Outcome]) -> None:
    """Finished runs are kept, the unfinished one goes on where it stood: no step is logged twice."""
    folder, before, outcome = interrupted
    assert outcome.code == 130 and "Traceback" not in outcome.err, outcome.err
    said = [line for line in outcome.err.replace("^C", "").splitlines() if line.strip() and "run/s" not in line]
    assert said == ["interrupted; finished runs are kept: the same command continues the study"]
    assert runs_in(folder) == before and len(before) == 1
    (long,) = (path.parent for path in folder.rglob("*long*/seed0/checkpoint.pt"))
    stood = [json.loads(line)["step"] for line in (long / "metrics.jsonl").read_text().splitlines()]
    assert 25 < stood[-1] < 600
    first = (long / "metrics.jsonl").read_text().splitlines()[0]
    with without_workers():
        ran("collapse", *QUICK_AND_LONG, f"hydra.run.dir={folder}")
    lines = (long / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, 601, 5)) and lines[0] == first
    after = runs_in(folder)
    assert results_of(long)["steps"] == 600 and {path: after[path] for path in before} == before


def test_no_other_run_begins_after_an_interruption() -> None:
    """Neither by Ctrl-C nor, with SIGTERM to the command alone, by its workers; and none of these is left behind."""
    folder = Path("study").resolve()
    later = "++study.parts.ceiling.rows={later:'guide=exact train.steps=601',last:'guide=exact train.steps=602'}"
    with forked("collapse", *QUICK_AND_LONG, later, "hydra.run.dir=study", fork_workers=True) as study:
        wait_for_the_long_row(study, folder)
        study.send_signal(signal.SIGTERM)
        outcome = study.finish()
    assert outcome.code == 130 and "Traceback" not in outcome.err, outcome.err
    assert not list(folder.rglob("*later*/seed0/metrics.jsonl"))
    end = time.monotonic() + 20  # they are told last of all that the command has ended
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(study.pid, 0)
            time.sleep(0.05)


def test_ctrl_c_while_workers_start_is_one_line() -> None:
    """They import torch for seconds, and must not be hit there."""
    with forked("collapse", *QUICK_AND_LONG, "hydra.run.dir=study") as study:
        while "2 of 2 runs to do" not in study.out:
            assert study.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)
        os.killpg(study.pid, signal.SIGINT)
        outcome = study.finish()
    assert outcome.code == 130
    assert outcome.err.strip() == "interrupted; finished runs are kept: the same command continues the study"


# ---------------------------------------------------------------- the demonstration


@pytest.mark.slow
def test_the_demonstration_has_one_collapsed_prior_and_one_alive() -> None:
    outcome = ran("collapse", "workers=1", "hydra.run.dir=demonstration")
    collapsed = {row[""]: row["prior"] for row in table_in(Path("demonstration"))}
    assert collapsed == {"mc, one draw": "collapsed", "savi, KL weight 1": "alive"}
    assert "training.png" in outcome.out
