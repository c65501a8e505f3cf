"""Groups of a CSV file as ragged tasks: what is drawn, in which units, and what is refused."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_metabayes import Episodes
from pyro_metabayes.build import build
from pyro_metabayes.data.sources import ragged
from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.runs.evaluation import folder_name
from pyro_metabayes.storage import checkpoint
from tests.commands import call, ran, results_of

SIZES = (1, 4, 2, 7)
READ = ("data=groups", "guide=partial_pooling", "data.group=who", "data.response=y", "data.predictors=[a]")
TABLES = {  # of the shipped tables: groups, rows, and how to read them
    "radon": (85, 919, {"group": "county.name", "response": "log.radon", "predictors": ["basement", "uranium"]}),
    "sleepstudy": (18, 180, {"group": "Subject", "response": "Reaction", "predictors": ["Days"]}),
    "Orthodont": (27, 108, {"group": "Subject", "response": "distance", "predictors": ["age"]}),
    "Oxboys": (26, 234, {"group": "Subject", "response": "height", "predictors": ["age"]}),
    "ChickWeight": (50, 578, {"group": "Chick", "response": "weight", "predictors": ["Time"]}),
    "gapminder": (142, 1704, {"group": "country", "response": "lifeExp", "predictors": ["year"]}),
}


def write(path: Path, sizes: tuple[int, ...] = SIZES) -> Path:
    """Write a table y = 100 + 10 g + 2 a with a useless column b. The rows of groups alternate."""
    rows = [(g, i) for i in range(max(sizes)) for g, size in enumerate(sizes) if i < size]
    lines = [f"{i + g},g{g},{100 + 10 * g + 2 * (i + g)},{i % 3}" for g, i in rows]
    path.write_text("\n".join(["a,who,y,b", *lines]) + "\n")
    return path


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    path = write(tmp_path / "table.csv")
    return load("who", "y", ["a", "b"], ["a", "intercept"], path=str(path))


def tasks(groups: Groups, shot: int, query: int, count: int = 8) -> Episodes:
    shape = TaskShape(way=1, shot=shot, query=query)
    return TaskStream(groups.sampler("train", shape), 0, "train", block=groups.block("train")).batch(0, count)


def test_features_stand_with_those_of_the_groups_own_first(groups: Groups) -> None:
    assert list(groups.features) == ["a", "intercept", "b"] and groups.num_random == 2
    assert groups.sizes.tolist() == list(SIZES) and list(groups.names) == ["g0", "g1", "g2", "g3"]
    whole = groups.whole()
    assert (whole.query_x[whole.query_mask][:, 1] == 1).all()


def test_points_and_weights_go_back_to_the_units_of_the_file(groups: Groups) -> None:
    """In group g the response is (100 + 10 g) + 2 a: weights that say so fit the standardised columns."""
    g = torch.arange(4.0)
    mean, sd = groups.scales.mean, groups.scales.sd
    w = torch.stack((2 * sd[0] * torch.ones(4), 100 + 10 * g + 2 * mean[0] - mean[-1]), 1).float() / groups.scale
    whole = groups.whole()
    fitted = (whole.query_x[..., :2] @ w.unsqueeze(-1)) * whole.query_mask.unsqueeze(-1)
    torch.testing.assert_close(fitted, whole.query_y, atol=1e-5, rtol=0)
    effects = groups.scales.effects_in_units(w, torch.zeros(1))
    assert effects[:, 0].tolist() == pytest.approx([2] * 4, rel=1e-5)
    assert effects[:, 1].tolist() == pytest.approx([100, 110, 120, 130], rel=1e-5)
    rows = whole.query_y[whole.query_mask]
    assert rows.mean().item() == pytest.approx(0, abs=1e-6) and rows.std(correction=0).item() == pytest.approx(1)


def test_centred_predictors_have_mean_0(tmp_path: Path) -> None:
    groups = load("who", "y", ["a"], path=str(write(tmp_path / "table.csv")))
    whole = groups.whole()
    assert whole.query_x[whole.query_mask].mean(0).tolist() == pytest.approx([1, 0], abs=1e-6)


@pytest.mark.parametrize("shot", [0, 1, 3, 50])
def test_a_block_is_every_group_once_and_every_point_once(groups: Groups, shot: int) -> None:
    drawn = tasks(groups, shot, 1000, count=4)
    assert sorted(drawn.classes.flatten().tolist()) == [0, 1, 2, 3]
    sizes = torch.tensor(SIZES)[drawn.classes.flatten()]
    assert drawn.support_mask.sum(1).tolist() == (sizes - 1).clamp(max=shot).tolist()
    whole, every = drawn.pooled(), groups.whole()
    assert whole.support_mask.sum(1).tolist() == sizes.tolist()
    for task, group in enumerate(drawn.classes.flatten().tolist()):
        got = whole.support_y[task][whole.support_mask[task]].flatten().sort().values
        assert torch.equal(got, every.query_y[group][every.query_mask[group]].flatten().sort().values)
        inputs = whole.support_x[task][whole.support_mask[task]][:, 0].sort().values
        assert torch.equal(inputs, every.query_x[group][every.query_mask[group]][:, 0].sort().values)


def test_without_shuffling_support_points_are_the_first(tmp_path: Path) -> None:
    groups = load("who", "y", ["a"], path=str(write(tmp_path / "table.csv")), shuffle=False)
    drawn, whole = tasks(groups, 3, 9, count=4), groups.whole()
    for task, group in enumerate(drawn.classes.flatten().tolist()):
        num_support = min(3, SIZES[group] - 1)
        assert torch.equal(drawn.support_y[task][drawn.support_mask[task]], whole.query_y[group, :num_support])
        assert torch.equal(
            drawn.query_y[task][drawn.query_mask[task]], whole.query_y[group, num_support : SIZES[group]]
        )


def test_queries_are_at_most_as_many_as_asked_for(groups: Groups) -> None:
    drawn = tasks(groups, 1, 2, count=4)
    sizes = torch.tensor(SIZES)[drawn.classes.flatten()]
    left = sizes - (sizes - 1).clamp(max=1)
    assert drawn.query_mask.sum(1).tolist() == left.clamp(max=2).tolist()


def test_passes_differ_and_a_stream_repeats_itself(groups: Groups) -> None:
    one, again = tasks(groups, 3, 9), tasks(groups, 3, 9)
    assert torch.equal(one.query_y, again.query_y)
    first, second = (one.tasks(slice(4 * i, 4 * i + 4)) for i in range(2))
    assert not torch.equal(first.query_y, second.query_y)


def test_groups_are_held_out(tmp_path: Path) -> None:
    path = str(write(tmp_path / "table.csv", (3,) * 10))
    splits = load("who", "y", ["a"], path=path, train=0.6, val=0.1).splits
    assert [len(splits[name]) for name in ("train", "val", "test")] == [6, 1, 3]
    assert sorted(torch.cat(list(splits.values())).tolist()) == list(range(10))
    other = load("who", "y", ["a"], path=path, train=0.6, seed=1).splits
    assert torch.equal(other["val"], other["train"]) and len(other["test"]) == 4
    assert not torch.equal(other["train"], splits["train"])
    every = load("who", "y", ["a"], path=path).splits
    assert all(its.tolist() == list(range(10)) for its in every.values())


def test_a_batch_is_as_wide_as_its_longest_task(tmp_path: Path) -> None:
    """And one that spans two passes is filled up; a group of many points costs the other batches nothing."""
    groups = load("who", "y", ["a"], path=str(write(tmp_path / "table.csv", (1, 2, 3, 40))))
    stream = TaskStream(groups.sampler("train", TaskShape(1, 0, 1000)), 0, "train", block=groups.block("train"))
    each = [stream.batch(task, task + 1) for task in range(4)]
    assert sorted(task.query_x.shape[1] for task in each) == [1, 2, 3, 40]
    both, after = stream.batch(3, 5), stream.batch(4, 5)
    assert both.query_mask.sum(1).tolist() == [each[3].query_x.shape[1], after.query_x.shape[1]]
    assert torch.equal(both.query_y[0][both.query_mask[0]], each[3].query_y[0])


def test_many_groups_of_many_sizes_are_drawn_as_a_few_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key for every point where one for every place of a padded table would be too many."""
    monkeypatch.setattr(ragged, "MOST_KEYS", 0)
    groups = load("who", "y", ["a", "b"], path=str(write(tmp_path / "table.csv")))
    test_a_block_is_every_group_once_and_every_point_once(groups, 3)
    test_passes_differ_and_a_stream_repeats_itself(groups)
    sets = torch.full((4000,), 1)  # the group of four points, again and again: all 24 orders are as likely
    orders = groups.points.shuffled_rows(sets, torch.Generator().manual_seed(0)).view(-1, 4)
    counts = orders.unique(dim=0, return_counts=True)[1].double()
    assert len(counts) == 24 and ((counts - 4000 / 24).square() / (4000 / 24)).sum() < 49.7  # 0.1% of chi-squared


@pytest.mark.parametrize("table", TABLES)
def test_shipped_tables_load(table: str, metabayes_data: Path) -> None:
    num_groups, num_rows, settings = TABLES[table]
    groups = load(table=table, **settings)
    assert len(groups.names) == num_groups and int(groups.sizes.sum()) == num_rows
    if table == "radon":
        assert groups.sizes.min() == 1 and groups.sizes.max() == 116


# ---------------------------------------------------------------- other files


def lines_of_groups(low: int, high: int) -> list[str]:
    """Rows of groups of five points on a parabola, so that groups have different means and sds."""
    return [f"g{g},{x},{x * x + 7 * g}" for g in range(low, high) for x in range(5 * g, 5 * g + 5)]


def written(name: str, lines: list[str]) -> Path:
    Path(name).write_text("\n".join(["who,a,y", *lines]) + "\n")
    return Path(name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on t.csv; first.csv, second.csv and both.csv have other groups."""
    with contextlib.chdir(folder := tmp_path_factory.mktemp("trained")):
        for name, (low, high) in {"t": (0, 6), "first": (2, 6), "second": (6, 10), "both": (2, 10)}.items():
            written(f"{name}.csv", lines_of_groups(low, high))
        small = ("train.steps=2", "train.validation_tasks=4", "train.tasks_per_step=4", "train.particles=1")
        exact = ("guide=exact", "prior=full_gaussian", "eval.samples=1000")
        ran("run", *READ, *exact, "data.path=t.csv", *small, "hydra.run.dir=run")
    return folder


@pytest.fixture
def run_on_a_file(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in the current folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run")


def mse_of(run: Path, *settings: str) -> float:
    ran("evaluate", str(run), *settings)
    return float(results_of(run / "evaluations" / folder_name(settings))["rmse"]) ** 2


def test_another_file_is_read_in_the_scales_of_the_run(run_on_a_file: Path) -> None:
    """So the squared error on two files is the mean of those on each of them, and the scales are in the results."""
    first, second = (mse_of(run_on_a_file, f"data.path={name}.csv", "eval.tasks=4") for name in ("first", "second"))
    both = mse_of(run_on_a_file, "data.path=both.csv", "eval.tasks=8")
    assert both == pytest.approx((first + second) / 2, rel=0.01) and second > 10 * first
    a, y = np.array([line.split(",")[1:] for line in lines_of_groups(0, 6)], float).T
    scales = {name: {"mean": pytest.approx(x.mean()), "sd": pytest.approx(x.std())} for name, x in (("a", a), ("y", y))}
    for folder in (run_on_a_file, run_on_a_file / "evaluations" / folder_name(["data.path=both.csv", "eval.tasks=8"])):
        assert results_of(folder)["config"]["estimated"] == {"scales": scales}


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        (lines_of_groups(0, 6), ""),
        ([line for line in lines_of_groups(0, 6) if line.split(",")[1][-1] in "05"], ""),
        (["h0,3,5", "h1,3,6"], ""),  # a constant can be read in given scales
        (["h0,3000,5", "h1,4000,6"], "column 'a' has mean 3500, but the run was trained on mean 14.5 and sd 8.6"),
        (["h0,3,1e6", "h1,4,2e6"], "column 'y' has mean 1.5e+06, but"),
    ],
    ids=["the same file", "a part", "a constant", "other units of a", "other units of y"],
)
def test_a_row_is_the_same_point_in_every_file(
    lines: list[str], note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_run = load("who", "y", ["a"], path=str(written("t.csv", lines_of_groups(0, 6))))
    other = load("who", "y", ["a"], path=str(written("other.csv", lines)), **of_run.estimated_settings())
    rows = torch.tensor([[float(cell) for cell in line.split(",")[1:]] for line in lines], dtype=torch.float64)
    expected = (rows - of_run.scales.mean[1:]) / of_run.scales.sd[1:]
    assert torch.equal(other.points.points[:, 1:], expected.float())
    assert len(other.notes) == bool(note) and all(note in line for line in other.notes)


def test_a_run_goes_on_in_its_scales(run_on_a_file: Path) -> None:
    before = results_of(run_on_a_file)["config"]["estimated"]
    written("t.csv", lines_of_groups(3, 9))
    ran("run", f"resume={run_on_a_file}", "train.steps=4")
    assert results_of(run_on_a_file)["config"]["estimated"] == before


def without_scales(run: Path, **data: object) -> None:
    """Change the run to one of an earlier version, with these data settings."""
    state = checkpoint.load(run / "checkpoint.pt")
    del state["config"]["estimated"]
    state["config"]["data"] |= data
    checkpoint.save(run / "checkpoint.pt", state)


@pytest.mark.parametrize(("data", "mean"), [({}, 0), ({"centre": False}, 0), ({"centre": True}, 14.5)])
def test_a_run_of_an_earlier_version_reads_its_file_as_it_did(
    data: dict[str, object], mean: float, run_on_a_file: Path
) -> None:
    """Without centred predictors unless data.centre was set; of another file it does not know the scales."""
    without_scales(run_on_a_file, **data)
    assert "note: column" not in ran("evaluate", str(run_on_a_file), "task.shot=1").out
    results = results_of(run_on_a_file / "evaluations/task.shot=1")
    assert results["config"]["estimated"]["scales"]["a"]["mean"] == mean
    message = call("evaluate", str(run_on_a_file), "data.path=both.csv").error
    assert "expected a run with recorded scales of its columns to read data.path=both.csv" in message


@pytest.mark.parametrize("centre", ["true", "false"])
def test_the_setting_centre_of_earlier_versions_is_understood(
    centre: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {
        "group": "who",
        "response": "y",
        "predictors": ["a"],
        "path": str(written("t.csv", lines_of_groups(0, 6))),
    }
    for module in ("pyro_metabayes.data.groups", "pyro_metabayes.data.sources.groups"):
        source = build({"_target_": f"{module}.load", "centre": centre == "true", **settings}, "data")
        assert source.scales.mean[1].item() == 14.5


@pytest.mark.parametrize(
    ("scales", "got"),
    [
        ({"b": {"mean": 0.0}}, "b: "),
        ({"a": {"sd": 0.0}}, "a: "),
        ({"a": {"median": 0.0}}, "a: "),
        ({"a": 1.0}, "a: 1.0"),
    ],
    ids=str,
)
def test_scales_that_are_none_are_refused(
    scales: dict[str, Any], got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=f"expected data.scales to have mean and sd > 0 of some of the columns a, y, got {got}"
    ):
        load("who", "y", ["a"], path=str(written("t.csv", lines_of_groups(0, 6))), scales=scales)


# ---------------------------------------------------------------- mistakes

GOOD = "who,a,y\nA,1,2\nA,2,4\nB,3,5\nB,1,1\n"
BAD_TABLES = {
    "a column that is not there": (
        "x,a,y\nA,1,2\n",
        "expected one column 'who' in t.csv, got none; there are: x, a, y",
    ),
    "two columns of a name": ("who,a,a,y\nA,1,1,2\n", "expected one column 'a' in t.csv, got several"),
    "a word for a number": (GOOD + "C,tall,3\n", "a finite number in column 'a', got 'tall' on line 6 of t.csv"),
    "NaN": (GOOD + "C,nan,3\n", "got missing values in 1 of 5 rows of t.csv (the first is 'nan' in column 'a' on line"),
    "an infinite number": (GOOD + "C,1,1e999\n", "a finite number in column 'y', got '1e999' on line 6"),
    "an empty cell": (
        GOOD + "C,,3\nD,1,NA\n",
        "got missing values in 2 of 6 rows of t.csv (the first is '' in column 'a' on line 6);",
    ),
    "no name of a group": (
        GOOD + " ,1,3\n",
        "the first is '' in column 'who' on line 6); fill in values, or set data.missing=drop",
    ),
    "a short row": (GOOD + "C,1\n", "expected 3 cells as in the header, got 2 on line 6 of t.csv"),
    "no rows": ("who,a,y\n", "expected rows below the header of t.csv, got none"),
    "nothing": ("", "expected one column 'who' in t.csv, got none; there are: no header"),
    "one group": ("who,a,y\nA,1,2\nA,2,3\n", "expected at least two groups in column 'who' of t.csv, got one"),
    "a constant predictor": ("who,a,y\nA,1,2\nB,1,3\n", "expected numbers that differ in column 'a' of t.csv"),
    "an open quote": ('who,a,y\nA,1,"2\n', "expected cells with closed quotes in t.csv, got"),
}
SETTINGS = {
    "": "expected a CSV file, got no path; set data.path=FILE.csv",
    "data.path=none.csv": "expected a CSV file, found none at none.csv; fix data.path",
    "data.path=t.csv data.random=[b]": "expected names among intercept, a in data.random, got 'b'",
    "data.path=t.csv data.random=[]": "expected group-specific weights in data.random, got none",
    "data.path=t.csv data.predictors=[a,a]": "weights and offset, and as random effects, got 'a' twice",
    "data.path=t.csv data.response=a": "weights and offset, and as random effects, got 'a' twice",
    "data.path=t.csv data.random=[a,a]": "weights and offset, and as random effects, got 'a' twice",
    "data.path=t.csv data.train=0": "expected fractions data.train > 0, data.val >= 0 and data.train + data.val <= 1",
    "data.path=t.csv data.train=0.9": "expected at least one group for test, got none of the 2 groups",
    "data.path=t.csv data.group=null": "expected one column 'null' in t.csv, got none; there are: who, a, y",
    "data.path=t.csv task.way=2": "expected task.way=1 (labels are numbers)",
    "data.table=nope": "groups/nope.csv",
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_tables_that_make_no_groups_are_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = BAD_TABLES[what]
    Path("t.csv").write_text(text)
    with pytest.raises(UsageError) as caught:
        load("who", "y", ["a"], path="t.csv")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for content in (b"\xff\xfe\x00who", b"who,a,y\n\x00\xff"):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(UsageError, match="expected a CSV file in UTF-8"):
            load("who", "y", ["a"], path=str(tmp_path / "t.csv"))


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_that_make_no_groups_are_refused(
    settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(GOOD)
    assert SETTINGS[settings] in call("run", *READ, *settings.split()).error
    assert [path.name for path in Path.cwd().iterdir()] == ["t.csv"]


@pytest.mark.parametrize("guide", ["partial_pooling", "savi", "exact", "mean_field", "laplace"])
def test_groups_run_with_every_guide_that_suits_them(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("t.csv"))
    small = ("train.steps=2", "eval.tasks=4", "train.validation_tasks=4", "train.tasks_per_step=4")
    arguments = (*READ, "data.path=t.csv", "data.random=[intercept,a]", f"guide={guide}", *small)
    out = ran("run", *arguments, "task.shot=1", "hydra.run.dir=run").out
    assert "1 support point, at most " in out, "a group has the queries that it has"
    results = results_of(Path("run"))
    assert results["data"] == "groups" and all(
        isinstance(results[name], float) for name in ("rmse", "coverage90", "elbo")
    )
