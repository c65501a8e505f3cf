"""Groups with labels 0 and 1 or counts, compared with maximum likelihood by quadrature."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Poisson

from pyro_metabayes import MetaLearner
from pyro_metabayes.data.sources.groups import load
from pyro_metabayes.exact.generalised import Points, covariance_of_estimates, fit_by_quadrature, points_of
from pyro_metabayes.exact.generalised_nuts import sampled_generalised
from tests.commands import call, ran, results_of

GROUPS, POINTS = 40, 12
COLUMNS = ("data=groups", "data.path=t.csv", "data.group=who", "data.response=y", "data.predictors=[a]")
COLUMNS = (*COLUMNS, "model=generalised_regression", "train.tasks_per_step=40", "eval.tasks=40")
COLUMNS = (*COLUMNS, "train.validation_tasks=40")

EXPOSURES: dict[str, Any] = {"path": "t.csv", "group": "who", "response": "y", "predictors": ["a"]}
EXPOSURES |= {"offset": "lexp", "family": "poisson"}


def write(family: str) -> None:
    """Write a table with random intercepts of sd 1 and a shared slope of 0.8."""
    noise = np.random.default_rng(2)
    rows = []
    for group, effect in enumerate(noise.normal(size=GROUPS)):
        for a in noise.normal(size=POINTS):
            eta = 0.3 + effect + 0.8 * a
            y = noise.poisson(np.exp(eta)) if family == "poisson" else noise.random() < 1 / (1 + np.exp(-eta))
            rows.append(f"g{group},{a:.5f},{int(y)}")
    Path("t.csv").write_text("\n".join(["who,a,y", *rows]) + "\n")


def by_quadrature(family: str, x: Tensor, y: Tensor, offset: Tensor | float = 0.0) -> Tensor:
    """Maximum-likelihood intercept, slope and log sd. Group intercepts are integrated out by Simpson's rule.

    Gauss-Hermite quadrature would have too few nodes for counts, whose posteriors are narrow.
    """
    theta = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -log_likelihood(theta, family, x, y, offset)
        loss.backward()
        return loss

    optimiser.step(closure)
    return theta.detach()


def log_likelihood(theta: Tensor, family: str, x: Tensor, y: Tensor, offset: Tensor | float = 0.0) -> Tensor:
    """The log-likelihood of intercept, slope and log sd, by Simpson's rule."""
    nodes = torch.linspace(-6, 6, 801, dtype=torch.float64)
    simpson = torch.tensor([1.0] + 399 * [4.0, 2.0] + [4.0, 1.0], dtype=torch.float64)
    weights = simpson * (-0.5 * nodes.square()).exp()
    weights = weights / weights.sum()
    eta = offset + theta[0] + theta[1] * x + theta[2].exp() * nodes[:, None, None]
    distribution = Poisson(eta.exp()) if family == "poisson" else Bernoulli(logits=eta)
    terms = distribution.log_prob(y.expand_as(eta)).sum(-1) + weights.log()[:, None]
    return terms.logsumexp(0).sum()


def check_standard_errors(family: str, x: Tensor, y: Tensor, offset: Tensor | float = 0.0) -> dict[str, dict[str, str]]:
    """Check the standard errors in prior.csv against the curvature of the likelihood, and return prior.csv."""
    prior = {row[""]: row for row in csv.DictReader(Path("run/prior.csv").read_text().splitlines())}
    names = ("intercept", "a", "sd of intercept")
    theta = torch.tensor([float(prior[name]["run"]) for name in names], dtype=torch.float64)
    theta[2] = theta[2].log()
    curvature = torch.autograd.functional.hessian(lambda at: -log_likelihood(at, family, x, y, offset), theta)
    errors = torch.linalg.inv(curvature).diagonal().sqrt()
    errors[2] *= theta[2].exp()
    assert [float(prior[name]["se, run"]) for name in names] == pytest.approx(errors.tolist(), rel=5e-3)
    return prior


@pytest.mark.parametrize(("family", "steps"), [("bernoulli", 200), ("poisson", 100)])
def test_the_prior_is_that_of_maximum_likelihood(
    family: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is below the likelihood, so the sd is a little too small; counts have nearly Gaussian posteriors."""
    monkeypatch.chdir(tmp_path)
    write(family)
    settings = ("guide=partial_pooling", f"data.family={family}", f"train.steps={steps}", "train.learning_rate=6e-2")
    out = ran("run", *COLUMNS, *settings, "guide.num_hidden=16", "hydra.run.dir=run").out
    assert "with Gaussian noise" not in out
    model = MetaLearner.load("run").model
    episodes = load("who", "y", ["a"], path="t.csv", family=family).whole()
    x, y = episodes.query_x[..., 1].double(), episodes.query_y[..., 0].double()
    best = by_quadrature(family, x, y)
    prior = model.prior(episodes.observed())
    assert prior.mean[0, 0, 0].item() == pytest.approx(best[0].item(), abs=0.12)
    assert model.beta.item() == pytest.approx(best[1].item(), abs=0.1)
    assert prior.variance[0, 0, 0].sqrt().item() == pytest.approx(best[2].exp().item(), rel=0.15)
    results = results_of(Path("run"))
    assert results["log_likelihood"] is None and results["response"] is None
    assert "sd of intercept" in ran("effects", "run").out
    in_file = torch.tensor([float(row.split(",")[1]) for row in Path("t.csv").read_text().split()[1:]]).double()
    check_standard_errors(family, in_file.view(GROUPS, POINTS), y)
    if family == "poisson":
        Path("new.csv").write_text("a,y\n0.5,9\n0.1,\n")
        assert "mean" in ran("predict", "run", "new.csv").out


@pytest.mark.parametrize("guide", ["laplace", "savi"])
def test_other_guides_train_on_counts(guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("poisson")
    settings = ("data.family=poisson", "train.steps=2", "task.shot=3")
    ran("run", *COLUMNS, *settings, f"guide={guide}", "hydra.run.dir=run")
    assert results_of(Path("run"))["rmse"] > 0


def test_groups_of_any_size_are_scored_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calibration error is that of all queries, of 70 groups in batches whose longest groups differ."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    rows = [f"g{g},{noise.normal():.3f},{noise.integers(2)}" for g in range(70) for _ in range(1 + g // 5)]
    Path("t.csv").write_text("\n".join(["who,a,y", *rows]) + "\n")
    settings = ("data.family=bernoulli", "train.steps=2", "eval.tasks=70", "guide=partial_pooling", "hydra.run.dir=run")
    ran("run", *COLUMNS, *settings)
    assert 0 < results_of(Path("run"))["ece"] < 0.5


def test_responses_of_another_family_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("poisson")
    run = ("run", *COLUMNS, "guide=partial_pooling")
    assert (
        "expected 0 and 1 in column 'y' of t.csv for data.family=bernoulli, got numbers from 0 to"
        in call(*run, "data.family=bernoulli").error
    )
    assert (
        "expected model=generalised_regression for data.family=poisson, got model=models.hierarchical"
        in call(*run, "data.family=poisson", "model=hierarchical_regression").error
    )


def write_exposures() -> tuple[Tensor, Tensor, Tensor]:
    """Write counts of 30 groups of 8 rows with exposures of 20 to 2,000. Return x, y and log exposure [30, 8]."""
    noise = np.random.default_rng(4)
    a, exposure = noise.normal(3.0, 1.0, size=(30, 8)), np.exp(noise.uniform(3.0, 7.6, size=(30, 8)))
    effect = 0.5 * noise.normal(size=(30, 1))
    y = noise.poisson(exposure * np.exp(-5.0 + effect + 0.4 * a))
    cells = zip(np.repeat(np.arange(30), 8), a.ravel(), np.log(exposure).ravel(), y.ravel(), strict=True)
    lines = [f"g{group},{value:.5f},{offset:.5f},{count}" for group, value, offset, count in cells]
    Path("t.csv").write_text("\n".join(["who,a,lexp,y", *lines]) + "\n")
    read = np.array([[float(cell) for cell in line.split(",")[1:]] for line in lines])
    x, offset, counts = (torch.from_numpy(column.reshape(30, 8).copy()) for column in read.T)
    return x, counts, offset


def test_exposures_are_offsets_of_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that has hardly been trained: eta is w z + beta v + offset, in the units of the file."""
    monkeypatch.chdir(tmp_path)
    x, _, offset = write_exposures()
    settings = ("guide=partial_pooling", "data.family=poisson", "train.steps=1", "data.offset=lexp", "prior.loc=0.3")
    ran("run", *COLUMNS, *settings, "guide.num_hidden=16", "hydra.run.dir=run")
    model, groups = MetaLearner.load("run").model, load(**EXPOSURES)
    assert groups.context == {"num_weights": 1, "row_offsets": 1} and groups.input_shape == (3,)
    assert model.beta.shape == (1, 1), "the offset has no weight"
    episodes = groups.whole()
    standard = (x - x.mean()) / x.std(correction=0)
    eta = 0.3 + model.beta.item() * standard + offset - offset.mean()
    found = model.outputs(torch.full((30, 1, 1), 0.3), episodes.query_x)[..., 0]
    torch.testing.assert_close(found, eta.float(), atol=1e-4, rtol=0)
    ran("effects", "run")
    prior = {row[""]: row for row in csv.DictReader(Path("run/prior.csv").read_text().splitlines())}
    slope = model.beta.item() / x.std(correction=0).item()
    w = model.prior(episodes.observed()).mean[0, 0, 0].item()
    expected = w - slope * x.mean().item() - offset.mean().item()
    assert float(prior["intercept"]["run"]) == pytest.approx(expected, abs=1e-3), "at a = 0, exposure 1"
    Path("new.csv").write_text("a,lexp,y\n3,6.0,110\n3,4.0,\n3,6.302585,\n")
    assert "note" not in ran("predict", "run", "new.csv").out, "a count has no units"
    first, second = (float(line.split(",")[-4]) for line in Path("predictions.csv").read_text().splitlines()[1:])
    assert second / first == pytest.approx(np.exp(2.302585), rel=1e-3)
    assert "expected one column 'lexp' in t2.csv, got none" in call("evaluate", "run", f"data.path={other()}").error


@pytest.mark.slow
def test_rates_are_learned_with_exposures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prior and shared effects are those of quadrature in the units of the file."""
    monkeypatch.chdir(tmp_path)
    best = by_quadrature("poisson", *(points := write_exposures()))
    settings = ("guide=partial_pooling", "data.family=poisson", "train.steps=400", "train.learning_rate=3e-2")
    ran("run", *COLUMNS, *settings, "data.offset=lexp", "guide.num_hidden=16", "hydra.run.dir=run")
    ran("effects", "run")
    prior = check_standard_errors("poisson", *points)
    assert float(prior["intercept"]["run"]) == pytest.approx(best[0].item(), abs=0.25)
    assert float(prior["a"]["run"]) == pytest.approx(best[1].item(), abs=0.06)
    assert float(prior["sd of intercept"]["run"]) == pytest.approx(best[2].exp().item(), rel=0.2)


def test_an_exposure_in_place_of_its_logarithm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("who,a,n,y\ng,1,10,0\ng,2,300,2\nh,1,20,1\nh,3,200,4\n")
    command = ("run", *COLUMNS, "data.family=poisson", "data.offset=n", "guide=partial_pooling")
    assert "in column 'n' of t.csv, got numbers from 10 to" in call(*command).error


def other() -> str:
    Path("t2.csv").write_text("who,a,y\nb,1,2\nb,2,1\nc,1,2\n")
    return "t2.csv"


@pytest.mark.parametrize("family", ["bernoulli", "poisson"])
def test_quadrature_is_that_of_other_nodes(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(family)
    episodes = load("who", "y", ["a"], path="t.csv", family=family).whole()
    fitted = fit_by_quadrature(points_of(episodes, False), family)
    best = by_quadrature(family, episodes.query_x[..., 1].double(), episodes.query_y[..., 0].double())
    found = [*fitted.coefficients.tolist(), fitted.sd.log().item()]
    assert found == pytest.approx(best.tolist(), abs=2e-3)


def test_quadrature_knows_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same estimates by other nodes, in the units of the file."""
    monkeypatch.chdir(tmp_path)
    x, y, offset = write_exposures()
    groups = load(**EXPOSURES)
    fitted = fit_by_quadrature(points_of(groups.whole(), True), "poisson")
    best = by_quadrature("poisson", x, y, offset)
    assert groups.scales.in_units(fitted.coefficients).tolist() == pytest.approx(best[:2].tolist(), abs=1e-2)
    assert fitted.sd.item() == pytest.approx(best[2].exp().item(), rel=1e-2)


@pytest.mark.slow
def test_nuts_is_centred_near_the_likelihood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 30 groups of counts and exposures; 80 draws."""
    monkeypatch.chdir(tmp_path)
    write_exposures()
    points = points_of(load(**EXPOSURES).whole(), True)
    fitted, draws = fit_by_quadrature(points, "poisson"), sampled_generalised(points, 1, "poisson", 40, 60)
    assert draws.effects.shape == (80, 30, 1) and draws.noise.isnan().all()
    assert ((draws.effects.mean(0)[:, 0] - fitted.effects) / fitted.effects_sd).abs().mean() < 0.4
    assert draws.coefficients[:, 1].mean().item() == pytest.approx(fitted.coefficients[1].item(), abs=0.05)


@pytest.mark.slow
def test_the_study_of_0_and_1_runs(metabayes_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("size=smoke", "samples=4", "warmup=4", "workers=1")
    ran("partial_pooling", "study=radon_floor", *small, "hydra.run.dir=out")
    page = Path("out/table.md").read_text()
    for name in ("NUTS, weak priors", "maximum likelihood", "amortized, 16 hidden units", "Laplace"):
        assert f"| {name} |" in page
    assert Path("out/effects.png").exists()


def test_posteriors_too_narrow_for_the_nodes_have_no_errors() -> None:
    """With 10,000 events per group the posterior is a hundredth of the prior: the sum has no exact derivatives."""
    noise = torch.Generator().manual_seed(0)
    group = torch.arange(8).repeat_interleave(2)
    for level, known in ((2.0, True), (9.2, False)):
        rate = (level + 0.5 * torch.randn(8, generator=noise).double())[group].exp()
        y = torch.poisson(rate, generator=noise)
        points = Points(torch.ones(16, 1).double(), y, torch.zeros(16).double(), group, 8)
        theta = torch.tensor([level]).double()
        found = covariance_of_estimates(points, "poisson", theta, torch.tensor(0.5).double())
        assert (found is not None) == known
