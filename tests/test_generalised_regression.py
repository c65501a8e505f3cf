"""Groups with 0 and 1 or counts: are prior and shared effects those of maximum likelihood by quadrature?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Poisson

from pyro_metabayes import MetaLearner
from pyro_metabayes.data.sources.groups import load
from tests.commands import call, ran, results_of

GROUPS, POINTS = 40, 12
COLUMNS = ("data=groups", "data.path=t.csv", "data.group=who", "data.response=y", "data.predictors=[a]")
COLUMNS = (*COLUMNS, "model=generalised_regression", "train.tasks_per_step=40", "eval.tasks=40")
COLUMNS = (*COLUMNS, "train.validation_tasks=40")


def write(family: str) -> None:
    """An intercept of each group with sd 1 and a shared slope of 0.8."""
    noise = np.random.default_rng(2)
    rows = []
    for group, effect in enumerate(noise.normal(size=GROUPS)):
        for a in noise.normal(size=POINTS):
            eta = 0.3 + effect + 0.8 * a
            y = noise.poisson(np.exp(eta)) if family == "poisson" else noise.random() < 1 / (1 + np.exp(-eta))
            rows.append(f"g{group},{a:.5f},{int(y)}")
    Path("t.csv").write_text("\n".join(["who,a,y", *rows]) + "\n")


def by_quadrature(family: str, x: Tensor, y: Tensor) -> Tensor:
    """Intercept, slope and log sd that maximise the likelihood, the intercepts of groups integrated by 40 nodes."""
    nodes, weights = (torch.from_numpy(value) for value in np.polynomial.hermite_e.hermegauss(40))
    theta = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        eta = theta[0] + theta[1] * x + theta[2].exp() * nodes[:, None, None]
        distribution = Poisson(eta.exp()) if family == "poisson" else Bernoulli(logits=eta)
        terms = distribution.log_prob(y.expand_as(eta)).sum(-1) + weights.log()[:, None]
        loss = -terms.logsumexp(0).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return theta.detach()


@pytest.mark.parametrize("family", ["bernoulli", "poisson"])
def test_the_prior_is_that_of_maximum_likelihood(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is below the likelihood, so the sd is a little too small; counts have nearly Gaussian posteriors."""
    monkeypatch.chdir(tmp_path)
    write(family)
    settings = ("guide=partial_pooling", f"data.family={family}", "train.steps=400", "train.learning_rate=3e-2")
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
    assert "sd of groups, run" in ran("effects", "run").out
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
