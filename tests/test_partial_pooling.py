"""The amortized guide learns the closed form of the same model, and its study runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.exact.conjugate import precision_of
from pyro_metabayes.exact.mixed_effects import fit
from pyro_metabayes.experiments.cli.text_table import narrow
from pyro_metabayes.experiments.partial_pooling.methods import (
    estimates_from_fit,
    estimates_from_run,
    held_out_rmse,
    least_squares_effects,
    mean_distance,
)
from pyro_metabayes.experiments.partial_pooling.plots import _name_groups
from pyro_metabayes.experiments.runs.plots import new_figure
from pyro_metabayes.experiments.runs.tables import markdown_table
from pyro_metabayes.guides.partial_pooling import Guide
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.models.hierarchical_regression import Model
from pyro_metabayes.models.priors import Conditional, FullGaussian
from tests.commands import call, ran, results_of, without_workers
from tests.pairs import random_regressions

SIZES = (1, 1, 2, 3, 4, 5, 6, 8, 10, 12, 3, 4)


def drawn_table(path: Path) -> Path:
    """Groups of 1 to 12 points with an intercept each, sd 1.5, noise 1, one shared slope of 2."""
    noise = np.random.default_rng(0)
    rows = [
        f"g{group},{a:.6f},{5 + intercept + 2 * a + noise.normal():.6f}"
        for group, (size, intercept) in enumerate(zip(SIZES, 1.5 * noise.normal(size=len(SIZES)), strict=True))
        for a in noise.normal(size=size)
    ]
    path.write_text("\n".join(["who,a,y", *rows]) + "\n")
    return path


def test_what_is_learned_is_the_maximum_of_the_likelihood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars of radon, smaller: effects within 0.05 noise sds, groups of one point too; prior sd within 10%."""
    monkeypatch.chdir(tmp_path)
    settings = ["data=groups", f"data.path={drawn_table(Path('t.csv'))}", "data.group=who", "data.response=y"]
    settings += [
        "data.predictors=[a]",
        "train.steps=200",
        f"train.tasks_per_step={len(SIZES)}",
        "guide=partial_pooling",
    ]
    settings += ["eval.tasks=12", "train.validation_tasks=12", "train.learning_rate=6e-2", "prior.scale=0.5"]
    ran("run", *settings, "hydra.run.dir=run")
    groups = load("who", "y", ["a"], path="t.csv")
    best, learned = estimates_from_fit(groups, fit(groups.whole(), 1)), estimates_from_run(Path("run"))
    every, ones = torch.ones(len(SIZES)).bool(), groups.sizes == 1
    assert mean_distance(learned, best, every)[0] < 0.05 and mean_distance(learned, best, ones)[0] < 0.05
    assert learned.sd.item() == pytest.approx(best.sd.item(), rel=0.1)
    assert learned.noise == pytest.approx(best.noise, rel=0.05)
    torch.testing.assert_close(learned.coefficients, best.coefficients, rtol=0.02, atol=0.02)
    assert best.log_likelihood is not None and learned.log_likelihood is not None
    assert best.log_likelihood - 0.3 < learned.log_likelihood < best.log_likelihood + 0.1  # a mean of 100 draws


def test_the_encoder_of_a_regression_starts_with_the_directions_of_its_points() -> None:
    """With centred predictors no direction is right for all points, and training hardly reverses its sign."""
    torch.set_default_dtype(torch.float64)
    prior = Conditional(num_features=3, num_weights=2, num_targets=1, num_hidden=0, scale=0.5, full_covariance=True)
    points = random_regressions(3, 4, 5, features=3, targets=1).observed()
    nothing = replace(points, support_mask=torch.zeros_like(points.support_mask))
    z = points.support_x[..., :2] * points.support_mask.unsqueeze(-1)
    before, after = (precision_of(prior(data, torch.Size((1, 2))))[:, 0] for data in (nothing, points))
    torch.testing.assert_close(after - before, z.mT @ z)  # 0.5 / scale = 1


def test_a_group_by_itself_is_its_least_squares(tmp_path: Path) -> None:
    groups = load("who", "y", ["a"], path=str(drawn_table(tmp_path / "t.csv")))
    found = fit(groups.whole(), 1)
    got = least_squares_effects(found, groups.whole())
    whole = groups.whole()
    for group, size in enumerate(SIZES):
        x, y = whole.query_x[group, :size].double(), whole.query_y[group, :size].double()
        assert got[group, 0].item() == pytest.approx((y - found.shared(x)).mean().item())


def test_partial_pooling_predicts_best_where_groups_differ(tmp_path: Path) -> None:
    """200 groups of known differences: between the mean of all and a few points of one's own."""
    noise = np.random.default_rng(1)
    lines = [f"{g},{3 + w + noise.normal()}" for g, w in enumerate(noise.normal(size=200)) for _ in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["who,y", *lines]) + "\n")
    groups: Groups = load("who", "y", path=str(tmp_path / "t.csv"), train=0.5)
    draw = groups.sampler("test", TaskShape(way=1, shot=2, query=9))
    tasks = TaskStream(draw, 0, "test", block=groups.block("test")).batch(0, 100)
    got = held_out_rmse(groups, tasks)
    assert got["empirical Bayes"] < got["unpooled"] < got["pooled"]
    theory = {"pooled": 2.0, "unpooled": 1.5, "empirical Bayes": 4 / 3}  # variances of w and noise 1, two points
    for name, expected in theory.items():  # 400 residuals in 100 groups: sds of a variance near 10%
        assert (got[name] * groups.scale) ** 2 == pytest.approx(expected, rel=0.35)


def balanced_table(path: Path, groups: int = 16) -> Path:
    """Write a table in which all groups have the same six predictor values, far from 0, and random effects."""
    noise = np.random.default_rng(3)
    effects = noise.normal(size=(groups, 2)) @ [[2.0, 0.3], [0.0, 0.4]]
    rows = [
        f"g{group},{year},{60 + a + (0.2 + b) * (year - 1980) / 5 + 0.7 * noise.normal():.5f}"
        for group, (a, b) in enumerate(effects)
        for year in range(1960, 1990, 5)
    ]
    path.write_text("\n".join(["who,year,y", *rows]) + "\n")
    return path


BALANCED = ("data=groups", "data.path=t.csv", "data.group=who", "data.response=y", "data.predictors=[year]")
BALANCED = (*BALANCED, "data.random=[intercept,year]", "guide=partial_pooling", "train.tasks_per_step=16")
BALANCED = (*BALANCED, "eval.tasks=16", "train.validation_tasks=16")


def test_training_starts_at_the_closed_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prior, noise and encoder: three points of a group are read as the closed form reads them."""
    monkeypatch.chdir(tmp_path)
    balanced_table(Path("t.csv"))
    out = ran("run", *BALANCED, "train.steps=1", "train.learning_rate=1e-9", "hydra.run.dir=run").out
    learner = MetaLearner.load("run")
    groups = load("who", "y", ["year"], ["intercept", "year"], path="t.csv")
    fitted = fit(groups.whole(), 2)
    tasks = TaskStream(groups.sampler("test", TaskShape(way=1, shot=3, query=9)), 0, "test", block=16).batch(0, 16)
    for observed in (tasks.observed(), groups.whole().pooled(), groups.whole().observed()):
        got, exact = learner.guide.posterior(observed), fitted.effects(observed)
        torch.testing.assert_close(got.mean.double(), exact.mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(precision_of(got).double(), precision_of(exact), rtol=5e-3, atol=1e-2)
    values = results_of(Path("run"))["log_likelihood"]
    assert values["learned"] == pytest.approx(values["closed_form"], abs=0.02) and "maximum likelihood" not in out


def test_a_training_on_a_balanced_design_learns_to_read_three_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another start, and with three support points in training, which are data as the others are."""
    monkeypatch.chdir(tmp_path)
    balanced_table(Path("t.csv"))
    settings = ("model.start=given", "train.steps=250", "train.learning_rate=6e-2", "task.shot=3")
    ran("run", *BALANCED, *settings, "hydra.run.dir=run")
    learner = MetaLearner.load("run")
    groups = load("who", "y", ["year"], ["intercept", "year"], path="t.csv")
    tasks = TaskStream(groups.sampler("test", TaskShape(way=1, shot=3, query=9)), 0, "test", block=16).batch(0, 16)
    got, exact = learner.guide.posterior(tasks.observed()), fit(groups.whole(), 2).effects(tasks.observed())
    assert (got.mean - exact.mean).abs().mean() < 0.03
    values = results_of(Path("run"))["log_likelihood"]
    assert values["learned"] > values["closed_form"] - 0.5


def test_a_prior_that_is_not_that_of_maximum_likelihood_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    balanced_table(Path("t.csv"))
    out = ran("run", *BALANCED, "model.start=given", "train.steps=2", "hydra.run.dir=run").out
    assert "note: the log likelihood of the training groups is -" in out
    conditional = ("guide=savi", "train.steps=2", "task.shot=3")
    out = ran("run", *BALANCED, *conditional, "hydra.run.dir=other").out
    assert "note: this run learns a prior conditional on 3 points of a group" in out


def test_the_loss_of_subsets_trains_the_encoder_alone_and_ends_at_the_exact_posterior() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    prior = FullGaussian(num_weights=2, scale=0.7)
    model = Model(prior, num_targets=1, num_features=3, num_weights=2, noise=0.5, observe="all")
    guide = Guide(model, num_features=3, num_weights=2, num_targets=1)
    guide.start_at(torch.zeros(3), 0.5)
    episodes = random_regressions(5, 4, 5, features=3, targets=1)
    guide.regulariser(episodes)["subset_loss"].sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    for parameter in (guide.direction.weight, guide.value.weight):
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=1e-9)
    torch.nn.init.normal_(guide.value.weight)
    guide.zero_grad()
    guide.regulariser(episodes)["subset_loss"].sum().backward()
    assert guide.value.weight.grad is not None and guide.value.weight.grad.abs().min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_radon(seed: int, metabayes_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intercepts within 0.05 log radon on average, counties of one house too; prior sd within 10%."""
    monkeypatch.chdir(tmp_path)
    ran("run", "data=radon", "guide=partial_pooling", f"seed={seed}", "hydra.run.dir=run")
    groups = load("county.name", "log.radon", ["basement", "uranium"], table="radon")
    best, learned = estimates_from_fit(groups, fit(groups.whole(), 1)), estimates_from_run(Path("run"))
    ones = groups.sizes == 1
    assert ones.sum() == 3
    for of in (ones, ~ones, ones | ~ones):
        assert mean_distance(learned, best, of)[0] < 0.05
    assert learned.sd.item() == pytest.approx(best.sd.item(), rel=0.1)


@pytest.mark.parametrize("parts", ["all_points", pytest.param("all_points,held_out", marks=pytest.mark.slow)])
def test_the_study_runs(parts: str, metabayes_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("size=smoke", "samples=4", "warmup=4", "splits=1", "workers=1", f"parts=[{parts}]")
    with without_workers():
        outcome = ran("partial_pooling", "study=sleepstudy", *small, "hydra.run.dir=out")
    pictures = {"effects.png", "shrinkage.png", "prior.png"}
    assert pictures | {"table.md", "table.csv", "study.txt"} <= {path.name for path in Path("out").iterdir()}
    page = Path("out/table.md").read_text()
    for text in ("| maximum likelihood | 1 | 251.405 | 10.467 | 23.7806 | 5.7168 |", "24.7405 | 5.9221"):
        assert text in page
    assert ("| empirical Bayes, task.shot=3 |" in page) == ("held_out" in parts)
    assert "NUTS: split R-hat at most" in outcome.out and "amortized, linear maps" in outcome.out


@pytest.mark.parametrize(
    ("name", "count", "expected", "rotation"),
    [("g{}", 30, "g0\n1", 0), ("Hospital {}", 30, "Hospital 0, 1", 90), ("g{}", 31, "1", 0)],
)
def test_a_plot_names_its_groups_if_they_are_few(
    name: str, count: int, expected: str, rotation: int, tmp_path: Path
) -> None:
    """By name and number of points, the smallest group first; long names are vertical."""
    rows = [f"{name.format(group)},{x},{x + group}" for group in range(count) for x in range(1 + group)]
    (tmp_path / "t.csv").write_text("\n".join(["who,x,y", *rows]) + "\n")
    groups = load("who", "y", ["x"], path=str(tmp_path / "t.csv"))
    _, (axis,) = new_figure(1)
    _name_groups(axis, groups, groups.sizes.argsort(stable=True))
    labels = axis.get_xticklabels()
    assert labels[0].get_text() == expected and len(labels) == (count if count <= 30 else 31)
    assert {label.get_rotation() for label in labels} == {rotation}


def test_a_wide_table_is_printed_as_tables_that_fit_a_page() -> None:
    """Every column once, the first in each part."""
    rows = [{"": name, **{f"column {i}": "x" * 4 * i for i in range(1, 12)}} for name in ("one", "two")]
    parts = narrow(rows)
    assert all(len(part[0]) <= 7 and max(map(len, markdown_table(part).splitlines())) <= 105 for part in parts)
    assert [row[""] for part in parts for row in part] == ["one", "two"] * len(parts)
    assert [name for part in parts for name in part[0] if name] == [name for name in rows[0] if name]
    assert narrow(rows, width=10) == [[{"": row[""], name: row[name]} for row in rows] for name in list(rows[0])[1:]]


def test_mistakes_of_the_study_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        "expected samples >= 4, warmup >= 1 and splits >= 1, got samples=2, warmup="
        in call("partial_pooling", "samples=2").error
    )
    assert not any(tmp_path.iterdir())


NESTED = "data=groups data.path=t.csv data.group=[school,class] data.response=score prior=nested"
REFUSED = {
    NESTED: "expected one column of groups, got data.group=[school,class] (nested groups); name ",
    "data=sinusoid": "expected a run on data=groups, got data=sinusoid; give another run",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_a_study_of_other_data_is_refused_before_any_run(
    settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    rows = [(school, f"{school}{room}") for school in "abcdef" for room in "xyz" for _ in range(4)]
    lines = ["school,class,score", *(f"{school},{room},{noise.normal():.3f}" for school, room in rows)]
    Path("t.csv").write_text("\n".join(lines))
    error = call("partial_pooling", "parts=[all_points]", f'study.settings="{settings}"', "hydra.run.dir=out").error
    assert error.startswith(REFUSED[settings]) and not Path("out").exists()
