"""Posterior predictive checks: draws from the model, no query labels, detection of wrong models."""

from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.distributions import Normal
from pyro.infer import Predictive

import pyro_metabayes
from pyro_metabayes import UsageError
from pyro_metabayes.diagnostics.arviz import to_arviz
from pyro_metabayes.diagnostics.predictive import discrepancies, draws_of, predictive_draws
from tests.commands import call, ran
from tests.pairs import Pair

SIB = Pair("sib")
DELTA = Pair("sib", "flat", settings={"posterior": "delta"})
PARTIAL = Pair("exact", model="linear_regression", observe="all")
every_kind = pytest.mark.parametrize("pair", [SIB, DELTA, PARTIAL, Pair("savi", "conditional")], ids=str)


@every_kind
def test_draws_are_of_tasks_chosen_with_a_prior_beside_them(pair: Pair) -> None:
    learner, episodes = pair.learner(), pair.tasks()
    draws = predictive_draws(learner, episodes, 6)
    assert draws.posterior.w.shape == (6, 3, *learner.model.event_shape(episodes))
    assert draws.posterior.y.shape == (6, *episodes.query_y.shape)
    assert (draws.prior is None) == (pair.prior == "flat")
    assert learner.model.observe == pair.observe  # as it was
    if draws.prior is not None:
        assert draws.prior.w.shape == draws.posterior.w.shape and not torch.equal(draws.prior.w, draws.posterior.w)


@every_kind
def test_draws_are_of_the_posterior_and_of_the_likelihood(pair: Pair) -> None:
    """Means over 4,000 draws, 5 standard errors."""
    learner, episodes = pair.learner(), pair.tasks()
    drawn = predictive_draws(learner, episodes, 4000).posterior
    q = learner.guide.posterior(episodes.observed())
    assert ((drawn.w.mean(0) - q.mean).abs() <= 5 * drawn.w.std(0) / 4000**0.5 + 1e-5).all()
    likelihood = learner.model.likelihood(drawn.w, episodes.query_x, episodes.observed())
    if pair.regression:
        error = (drawn.y - likelihood.mean) / likelihood.stddev
        assert error.std().item() == pytest.approx(1, abs=0.01) and abs(error.mean().item()) < 0.01
    else:
        share = torch.nn.functional.one_hot(drawn.y, episodes.num_classes).float().mean(0)
        torch.testing.assert_close(share, likelihood.probs.mean(0), atol=5 * 0.5 / 4000**0.5, rtol=0)


def test_passing_the_labels_would_be_vacuous() -> None:
    """What Pyro does with Episodes, and why draws_of takes none: every replicate is the observation."""
    learner, episodes = SIB.learner(), SIB.tasks()
    repeated = Predictive(learner.model, guide=learner.guide, num_samples=5, parallel=True)(episodes)["query_y"]
    assert (repeated == episodes.query_y).all()
    with pytest.raises(UsageError, match=r"expected tasks without query labels .*got Episodes"):
        draws_of(learner, episodes, 5)
    honest = draws_of(learner, episodes.observed(), 50).y
    assert 0 < (honest == episodes.query_y).float().mean().item() < 1


def test_labels_move_no_draw() -> None:
    learner, episodes = SIB.learner(), SIB.tasks()
    drawn = []
    for labels in (episodes.query_y, 1 - episodes.query_y.clamp(max=1)):
        episodes.query_y = labels
        torch.manual_seed(5)
        drawn.append(predictive_draws(learner, episodes, 3))
    assert torch.equal(drawn[0].posterior.w, drawn[1].posterior.w)
    assert torch.equal(drawn[0].posterior.y, drawn[1].posterior.y)


class Narrow(pyro_metabayes.Guide):
    """The exact posterior with its sd multiplied by `factor`."""

    factor = 1.0

    def posterior(self, observed: Any) -> Any:
        exact: Any = self.model.exact_posterior(observed)  # type: ignore[operator]
        return Normal(exact.mean, self.factor * exact.variance.sqrt()).to_event(2)


def test_p_values_find_a_model_that_is_too_sure_or_not_sure_enough() -> None:
    """Labels drawn under w from the exact posterior, one support point: a spread of a twentieth is too sure of them."""
    learner = Pair("exact", model="gaussian_mean").learner()
    with torch.no_grad():
        learner.model.prior_over_weights.log_scale.fill_(0.5)  # wide against the noise
    episodes = Pair("exact", model="gaussian_mean").tasks(200)
    episodes.support_mask = torch.ones_like(episodes.support_mask) & (torch.arange(3) < 1)
    w = learner.guide.posterior(episodes.observed()).sample()
    episodes.query_y = learner.model.likelihood(w, episodes.query_x, episodes).sample()
    guide: Any = Narrow(learner.model)
    learner.guide = guide
    mean_p = {}
    for guide.factor in (1.0, 0.05, 4.0):
        draws = draws_of(learner, episodes.observed(), 120)
        check = discrepancies(learner, episodes.observed(), draws, episodes.query_y)["nll"]
        assert check.replicated.shape == (60, 200) and check.p_values.shape == (200,)
        mean_p[guide.factor] = check.p_values.mean().item()
    assert mean_p[1.0] == pytest.approx(0.5, abs=5 * (1 / 12 / 200) ** 0.5)
    assert mean_p[0.05] < 0.35 and mean_p[4.0] > 0.65


def test_p_values_of_a_true_model_are_uniform() -> None:
    """Labels drawn from the prior itself: a replicate must not be scored under the draw that it comes from."""
    learner, episodes = SIB.learner(), SIB.tasks(300)
    observed = episodes.observed()
    torch.manual_seed(0)
    labels = draws_of(learner, observed, 1, prior=True).y[0]
    checks = discrepancies(learner, observed, draws_of(learner, observed, 40, prior=True), labels)
    for check in checks.values():
        assert check.p_values.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / 300) ** 0.5)


@pytest.mark.skipif(importlib.util.find_spec("arviz") is None, reason="ArviZ is not installed")
@every_kind
def test_an_arviz_object_has_the_groups_and_dimensions(pair: Pair) -> None:
    draws = predictive_draws(pair.learner(), pair.tasks(), 6)
    found = to_arviz(draws)
    groups = set(found.groups()) if callable(found.groups) else {name.strip("/") for name in found.groups} - {""}
    priors = set() if draws.prior is None else {"prior", "prior_predictive"}
    assert groups == {"posterior", "posterior_predictive", "observed_data", "constant_data"} | priors
    assert found["posterior"]["w"].dims == ("chain", "draw", "task", "row", "weight")
    assert found["posterior_predictive"]["query_y"].dims[:4] == ("chain", "draw", "task", "query")
    assert (found["posterior"]["w"].values[0] == draws.posterior.w.numpy()).all()
    assert (found["observed_data"]["query_y"].values == draws.query_y.numpy()).all()


def test_without_arviz_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any, **kwargs: Any) -> Any:
        if name == "arviz":
            raise ImportError("No module named 'arviz'", name="arviz")
        return imported(name, *rest, **kwargs)

    draws = predictive_draws(SIB.learner(), SIB.tasks(), 2)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="package arviz for to_arviz, not found; run: pip install"):
        to_arviz(draws)


def test_the_command_checks_a_run(finished: Path) -> None:
    outcome = ran("predictive", f"run={finished}", "tasks=4", "samples=5")
    assert "posterior" in outcome.out and "joint_nll" in outcome.out and "prior" in outcome.out
    for name in ("table.md", "table.csv", "predictive.png"):
        assert (finished / "predictive" / name).stat().st_size > 0


MISTAKES = {
    "run=nowhere": "expected a checkpoint at nowhere/checkpoint.pt, got no folder nowhere; fix the path",
    "tasks=3": "expected RUN_DIR, the folder of a finished run, got none",
    "run={run} taskz=3": "unknown key 'taskz'; did you mean 'tasks'?",
    "run={run} tasks=many": "expected tasks to be of type integer, got 'many'",
    "run={run} tasks=1": "expected tasks >= 2, got 1",
    "run={run} samples=1": "expected samples >= 2, got 1",
    "run={run} train.steps=3": "an evaluation does not train",
    "{run} tasks": "expected the folder of one run, got 2: ",
}


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_told_in_one_line(arguments: str, finished: Path) -> None:
    words = arguments.replace("{run}", str(finished)).split()
    assert MISTAKES[arguments] in call("predictive", *words).error
    assert not list(Path.cwd().iterdir())
