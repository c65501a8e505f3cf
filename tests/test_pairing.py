"""Does `experiments.compare` subtract scores of the same tasks only?"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_metabayes.experiments.compare.__main__ import notes, tables
from pyro_metabayes.experiments.runs.finished_runs import IGNORED, Run, group_by_label
from tests.commands import SMALL, ran, write_features

TASK: dict[str, Any] = {
    "data": "features", "split": "test", "way": 5, "shot": 1, "query": 15, "query_counts": [],
    "query_concentration": 0.0, "query_balanced": 0.0, "feature_noise": 0.0,
    "base_query": 0, "base_classes": None, "tasks": 8, "seed": 0,
}  # fmt: skip
SCORES: dict[str, Any] = {
    "ece": 0.1, "elbo": None, "kl": None, "logit_sd": None, "collapsed": None, "transductive": False, "steps": 2,
    "data_fingerprint": "a" * 16,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "data": {"_target_": "x", "path": "/a", "seed": 0, "device": "auto", "train_shift": 0.0, "shuffle": True},
    "pretrain": {"holdout_per_class": 6}, "train": {"steps": 2, "learning_rate": 0.1}, "eval": {"samples": 30},
}  # fmt: skip
# What determines the test tasks, with another value than above; and what does not.
OF_TASKS = {
    "data_fingerprint": "b" * 16, "split": "val", "way": 4, "shot": 2, "query": 9, "tasks": 7, "seed": 1,
    "query_counts": [9, 3, 2, 1, 0], "query_concentration": 2.0, "query_balanced": 0.5, "feature_noise": 0.1,
    "base_query": 10, "data": "glyphs", "config.data.seed": 1, "config.data.shuffle": False, "config.data.size": 32,
}  # fmt: skip
OF_NOTHING = {
    "steps": 9, "transductive": True, "config.data.path": "/b", "config.data.device": "cpu",
    "config.data._target_": "y", "config.data.train_shift": 1.5, "config.train.learning_rate": 0.2,
    "config.pretrain.holdout_per_class": 8,
    "config.eval.samples": 3, "versions": {"torch": "0"},
}  # fmt: skip


def run_of(guide: str, changes: dict[str, Any], value: float) -> Run:
    results = copy.deepcopy(TASK | SCORES | {"config": CONFIG, "guide": guide})
    for name, changed in changes.items():
        *path, last = name.split(".")
        place = results
        for key in path:
            place = place[key]
        place[last] = changed
    scores = np.full(int(results["tasks"]), value)
    return Run(Path(f"runs/{guide}"), results, {"accuracy": scores, "nll": scores, "joint_nll": scores})


def gains_of(*runs: Run) -> list[str]:
    return [row["accuracy gain, points"] for row in tables(group_by_label(runs))[1]]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.sets(st.sampled_from(sorted(OF_TASKS)), max_size=3), st.sets(st.sampled_from(sorted(OF_NOTHING)), max_size=3))
def test_runs_are_paired_where_everything_of_their_tasks_agrees(of_tasks: set[str], of_nothing: set[str]) -> None:
    """Two rows either way; without a difference, one line for the runs of one name."""
    changes = {name: OF_TASKS[name] for name in of_tasks} | {name: OF_NOTHING[name] for name in of_nothing}
    runs = run_of("one", {}, 0.5), run_of("other", changes, 0.25)
    groups = group_by_label(runs)
    assert len(groups) == 2
    assert gains_of(*runs) == ["-", "-" if of_tasks else "-25.0 +- 0.0"]
    lines = notes(groups)
    if of_tasks & {"split", "way", "shot", "data"}:  # another task by its name
        assert lines == []
    else:
        assert len(lines) == (1 if of_tasks else 0)
        ignored = IGNORED if "query_counts" in of_tasks else ()
        assert all(name.removeprefix("config.") in lines[0] for name in of_tasks if name not in ignored)


def test_random_marginals_do_not_matter_where_the_counts_are_given() -> None:
    """A learner of random marginals and one of balanced queries, both evaluated with task.query_counts."""
    counts, random = {"query_counts": [9, 3, 2, 1, 0]}, {"query_concentration": 1.0, "query_balanced": 0.5}
    assert gains_of(run_of("one", counts, 0.5), run_of("other", counts | random, 0.25)) == ["-", "-25.0 +- 0.0"]
    assert gains_of(run_of("one", {}, 0.5), run_of("other", random, 0.25)) == ["-", "-"]


def test_held_out_inputs_determine_queries_of_base_classes() -> None:
    base = {"base_query": 30, "base_classes": 64}
    other = base | {"config.pretrain.holdout_per_class": 8}
    assert gains_of(run_of("one", base, 0.5), run_of("other", base, 0.5)) == ["-", "+0.0 +- 0.0"]
    assert gains_of(run_of("one", base, 0.5), run_of("other", other, 0.5)) == ["-", "-"]


def test_rows_on_the_same_data_are_paired_beside_others() -> None:
    other = {"data_fingerprint": "b" * 16, "config.data.path": "/b"}
    runs = [run_of("one", {}, 0.5), run_of("two", {}, 0.75), run_of("one", other, 0.5), run_of("two", other, 1.0)]
    assert gains_of(*runs) == ["-", "+25.0 +- 0.0", "-", "+50.0 +- 0.0"]
    names = [row["data and task"].rpartition(", ")[2] for row in tables(group_by_label(runs))[0]]
    assert names == ["data aaaaaaaa"] * 2 + ["data bbbbbbbb"] * 2
    (line,) = notes(group_by_label(runs))
    assert line == (
        "No paired difference between one data.path=/a and one data.path=/b: their test tasks differ or are unknown: "
        f"data_fingerprint is {'a' * 16} and {'b' * 16}."
    )


def test_one_file_with_changed_content_is_no_second_seed() -> None:
    """The same path and settings: they are two rows, not two seeds of one."""
    scores, *_ = tables(group_by_label([run_of("one", {}, 0.5), run_of("one", {"data_fingerprint": "b" * 16}, 0.7)]))
    assert [row["seeds"] for row in scores] == ["1", "1"]


def test_the_same_data_in_two_places_are_one_row() -> None:
    (row,), *_ = tables(group_by_label([run_of("one", {"seed": s, "config.data.path": f"/{s}"}, 0.5) for s in (0, 1)]))
    assert (row["guide"], row["seeds"]) == ("one", "2")


def test_runs_without_a_fingerprint_are_not_paired() -> None:
    runs = [run_of(guide, {}, 0.5) for guide in ("one", "two")]
    for run in runs:
        del run.results["data_fingerprint"]  # type: ignore[attr-defined]
    groups = group_by_label([*runs, runs[0]])  # one of them named twice
    assert [len(group) for group in groups.values()] == [1, 1] and gains_of(*runs) == ["-", "-"]
    assert notes(groups)[0].endswith("runs/one records no fingerprint of its data; experiments.evaluate records one.")


def test_simulated_tasks_are_paired_by_their_settings() -> None:
    simulated = {"data_fingerprint": None, "data": "gaussian_classes"}
    runs = run_of("one", simulated, 0.5), run_of("two", simulated, 0.5)
    assert gains_of(*runs) == ["-", "+0.0 +- 0.0"]
    assert gains_of(runs[0], run_of("two", simulated | {"config.data.separation": 2.0}, 0.5)) == ["-", "-"]


def test_the_command_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One path, whose content changes between the runs, and a copy of it."""
    monkeypatch.chdir(tmp_path)
    file = write_features(Path("mine.npz"))
    shutil.copy(file, "copy.npz")
    settings = ("data=features", *SMALL)
    ran("run", *settings, "data.path=mine.npz", "guide=proto", "hydra.run.dir=runs/a")
    ran("run", *settings, "data.path=copy.npz", "guide=mc", "hydra.run.dir=runs/b")
    write_features(file, labels=np.arange(30)[::-1].repeat(20))
    ran("run", *settings, "data.path=mine.npz", "guide=savi", "hydra.run.dir=runs/c")
    out = ran("compare", "runs/a", "runs/b", "runs/c", "--out", "out").out
    prints = {name: json.loads(Path(f"runs/{name}/results.json").read_text())["data_fingerprint"] for name in "abc"}
    assert prints["a"] == prints["b"] != prints["c"]
    start = "No paired difference between proto and savi: their test tasks differ or are unknown: "
    line = f"{start}data_fingerprint is {prints['a']} and "
    assert out.count("No paired difference") == 1 and line + prints["c"] in out
    assert line in Path("out/table.md").read_text()
