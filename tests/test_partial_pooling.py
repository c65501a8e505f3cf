"""Does the amortized guide learn what the closed form of the same model says? And does the study of it run?"""

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
from pyro_metabayes.experiments.partial_pooling.methods import (
    estimates_from_fit,
    estimates_from_run,
    held_out_rmse,
    least_squares_effects,
    mean_distance,
)
from pyro_metabayes.models.priors import Conditional
from tests.commands import call, ran
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
        "train.steps=400",
        f"train.tasks_per_step={len(SIZES)}",
        "guide=partial_pooling",
    ]
    settings += ["eval.tasks=12", "train.validation_tasks=12", "train.learning_rate=3e-2", "prior.scale=0.5"]
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
    outcome = ran("partial_pooling", "study=sleepstudy", *small, "hydra.run.dir=out")
    pictures = {"effects.png", "shrinkage.png", "prior.png"}
    assert pictures | {"table.md", "table.csv", "study.txt"} <= {path.name for path in Path("out").iterdir()}
    page = Path("out/table.md").read_text()
    for text in ("| maximum likelihood | 1 | 251.405 | 10.467 | 23.7806 | 5.7168 |", "24.7405 | 5.9221"):
        assert text in page
    assert ("| empirical Bayes, task.shot=3 |" in page) == ("held_out" in parts)
    assert "NUTS: split R-hat at most" in outcome.out and "amortized, linear maps" in outcome.out


def test_mistakes_of_the_study_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "expected samples >= 4, warmup and splits >= 1, got 2" in call("partial_pooling", "samples=2").error
    assert not any(tmp_path.iterdir())
