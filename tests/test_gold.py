"""NUTS, importance sampling and closed forms agree where all are known, and gaps have their known values."""

from __future__ import annotations

import csv
import importlib.util
import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from pyro_metabayes import Episodes, UsageError
from pyro_metabayes.diagnostics.best_in_family import best_in_family, elbo_of
from pyro_metabayes.diagnostics.gaps import check_density, gaps_of
from pyro_metabayes.diagnostics.gold import Gold, NutsSettings, Target, gold_posterior
from pyro_metabayes.diagnostics.predictive import observing
from pyro_metabayes.evidence.importance import (
    bridge_error,
    bridge_evidence,
    effective_size,
    importance_weighted_bounds,
    pareto_k,
)
from pyro_metabayes.exact.conjugate import log_evidence_of_rows
from tests.commands import call, ran, results_of
from tests.pairs import REGRESSIONS, Pair, random_regressions

TASKS = 3


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def conjugate(name: str) -> tuple[Any, Episodes]:
    """A learner whose prior is about as wide as the noise, so that labels are informative."""
    learner: Any = Pair("exact", model=name, observe="all").learner()
    learner.model.prior_over_weights.log_scale.data.fill_(-0.3)
    return learner, random_regressions(TASKS, features=REGRESSIONS[name])


@torch.no_grad()
def exact(model: Any, episodes: Episodes, labels: str) -> tuple[TorchDistribution, Tensor]:
    """The posterior and the log evidence in closed form."""
    observed = episodes.pooled() if labels == "all" else episodes.observed()
    posterior = model.exact_posterior(observed)
    points = episodes.labelled(labels)
    return posterior, log_evidence_of_rows(model.prior(observed), *points, model.noise)


# ---------------------------------------------------------------- the target


@pytest.mark.parametrize("labels", ["support", "query", "all"])
@pytest.mark.parametrize(
    "pair", [Pair("sib"), Pair("sib", "mixture", "linear"), Pair("exact", model="linear_regression")], ids=str
)
def test_the_target_is_the_joint_density_of_the_model(pair: Pair, labels: str) -> None:
    learner, episodes = pair.learner(), pair.tasks()
    target = Target(learner.model, episodes, labels)
    w = learner.model.prior(episodes).sample()
    with observing(learner.model, labels):
        trace = poutine.trace(poutine.condition(learner.model, {"w": w})).get_trace(episodes)
    torch.testing.assert_close(target.log_joint(w).sum(), trace.log_prob_sum())
    torch.testing.assert_close(target.log_joint(w.expand(2, *w.shape))[1], target.log_joint(w))


def test_support_labels_are_data_once() -> None:
    """A conditional prior has them already: p(w | support) is the prior, and the query labels are all that is left."""
    learner, episodes = Pair("savi", "conditional").learner(), Pair("savi", "conditional").tasks()
    support, query, every = (Target(learner.model, episodes, labels) for labels in ("support", "query", "all"))
    w = learner.model.prior(episodes).sample()
    torch.testing.assert_close(support.log_joint(w), support.prior.log_prob(w))
    torch.testing.assert_close(every.log_joint(w), query.log_joint(w))
    gold = gold_posterior(support, NutsSettings(draws=2000, chains=1))
    assert (gold.w.mean(0) - support.loc).abs().max() < 5 * support.scale.max() / 2000**0.5


# ---------------------------------------------------------------- NUTS, importance sampling and closed form


def agrees(gold: Gold, posterior: TorchDistribution) -> None:
    """Check means and variances of all weights within 5 standard errors."""
    sd, ess = posterior.variance.sqrt(), gold.least_ess.view(-1, 1, 1)
    assert gold.r_hat.max() < 1.15 and gold.least_ess.min() > 25 and gold.divergences.sum() == 0
    assert ((gold.w.mean(0) - posterior.mean).abs() < 5 * sd / ess.sqrt()).all()
    assert ((gold.w.var(0) / sd.square() - 1).abs() < 5 * (2 / ess).sqrt()).all()


@pytest.mark.parametrize(
    ("name", "labels"),
    [  # each model and each set of labels once; the target has the labels that it is given, for every pair of them
        ("gaussian_mean", "support"),
        ("linear_regression", "all"),
        pytest.param("gaussian_mean", "all", marks=pytest.mark.slow),
        pytest.param("linear_regression", "support", marks=pytest.mark.slow),
    ],
)
def test_nuts_importance_sampling_and_closed_form_agree(name: str, labels: str) -> None:
    learner, episodes = conjugate(name)
    target = Target(learner.model, episodes, labels)
    posterior, evidence = exact(learner.model, episodes, labels)
    with torch.no_grad(), pyro.validation_enabled(False):
        wide = Normal(posterior.mean, 1.3 * posterior.variance.sqrt()).to_event(2)
    with pyro.validation_enabled(False):
        gold = gold_posterior(target, NutsSettings(warmup=40, draws=80, chains=2, together=TASKS))
    agrees(gold, posterior)
    with torch.no_grad():
        w = wide.sample((20_000,))
        weights = target.log_joint(w) - wide.log_prob(w)
        error = (1 / effective_size(weights)).sqrt()
        bounds = importance_weighted_bounds(weights, (1, 10, 100, 20_000))
        assert (pareto_k(weights) < 0.7).all()
        assert ((bounds[-1] - evidence).abs() < 5 * error).all()
        assert ((weights.softmax(0).view(-1, TASKS, 1, 1) * w).sum(0) - posterior.mean).abs().max() < 0.1
        assert (bounds.diff(dim=0) > 0).all() and (bounds < evidence + 5 * error).all()
        bridged = bridge_evidence(target.log_joint(gold.w) - wide.log_prob(gold.w), weights)
        assert ((bridged - evidence).abs() < 5 / gold.ess.sqrt()).all()
        kl = (target.log_joint(gold.w) - wide.log_prob(gold.w)).mean(0) - bridged
        closed = (posterior.log_prob(gold.w) - wide.log_prob(gold.w)).mean(0)
        assert ((kl - closed).abs() < 5 / gold.ess.sqrt()).all()


@pytest.mark.parametrize("together", [pytest.param(1, marks=pytest.mark.slow), 2])  # two and the one that is left
def test_tasks_in_a_chain_of_their_own_or_together_are_the_same_posteriors(together: int) -> None:
    learner, episodes = conjugate("gaussian_mean")
    posterior, _ = exact(learner.model, episodes, "support")
    with pyro.validation_enabled(False):
        settings = NutsSettings(warmup=50, draws=150, chains=1, together=together)
        agrees(gold_posterior(Target(learner.model, episodes, "support"), settings), posterior)


@pytest.mark.slow
@pytest.mark.parametrize("name", REGRESSIONS)
def test_nuts_agrees_at_length(name: str) -> None:
    """4,000 draws per task, to 3 or 4 hundredths of a standard deviation."""
    learner, episodes = conjugate(name)
    posterior, evidence = exact(learner.model, episodes, "all")
    target = Target(learner.model, episodes, "all")
    with pyro.validation_enabled(False):
        gold = gold_posterior(target, NutsSettings(warmup=300, draws=2000, chains=2, together=TASKS))
    agrees(gold, posterior)
    with torch.no_grad():
        wide = Normal(posterior.mean, 1.3 * posterior.variance.sqrt()).to_event(2)
        weights = [target.log_joint(w) - wide.log_prob(w) for w in (gold.w, wide.sample((40_000,)))]
        torch.testing.assert_close(bridge_evidence(*weights), evidence, atol=0.05, rtol=0)


# ---------------------------------------------------------------- gaps


def test_the_exact_guide_has_no_gap() -> None:
    learner, episodes = conjugate("linear_regression")
    target = Target(learner.model, episodes, "all")
    with torch.no_grad():
        q = learner.guide.training_posterior(episodes)
        posterior, evidence = exact(learner.model, episodes, "all")
        gold = Gold(posterior.sample((500,)), *[torch.ones(TASKS)] * 5)
    best = best_in_family(target, q, steps=150)
    found = gaps_of(target, q, best, gold, 20_000)
    torch.testing.assert_close(found.evidence, evidence, atol=0.02, rtol=0)
    for gap in (found.approximation_gap, found.amortization_gap, found.kl_from_gold):
        assert gap.abs().max() < 0.1
    torch.testing.assert_close(found.sd_ratio, torch.ones(TASKS), atol=0.1, rtol=0)


def test_a_factorised_posterior_of_correlated_weights_has_the_gap_of_its_family() -> None:
    """min KL(q, p) over factorised q is (sum log P_ii - log det P) / 2, at the variances 1 / P_ii, P the precision."""
    learner, episodes = conjugate("linear_regression")
    target = Target(learner.model, episodes, "all")
    with torch.no_grad():
        posterior, _ = exact(learner.model, episodes, "all")
        inner: Any = posterior.base_dist
        precision = inner.precision_matrix
        family_gap = 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.logdet()).sum(-1)
        q = Normal(posterior.mean + 0.5, torch.full_like(posterior.mean, 0.4)).to_event(2)
        gold = Gold(posterior.sample((4000,)), *[torch.ones(TASKS)] * 5)
    best = best_in_family(target, q, steps=300)
    found = gaps_of(target, q, best, gold, 20_000)
    assert family_gap.min() > 0.02
    torch.testing.assert_close(found.approximation_gap, family_gap, atol=0.08, rtol=0.05)
    total = (q.log_prob(w := q.sample((40_000,))) - posterior.log_prob(w)).mean(0)
    torch.testing.assert_close(found.approximation_gap + found.amortization_gap, total, atol=0.15, rtol=0.02)
    reverse = (posterior.log_prob(gold.w) - q.log_prob(gold.w)).mean(0)
    torch.testing.assert_close(found.kl_from_gold, reverse, atol=0.1, rtol=0.02)


@pytest.mark.parametrize(
    "pair", [Pair("sib"), Pair("laplace", settings={"num_steps": 1}), Pair("mc", "conditional")], ids=str
)
def test_the_best_of_a_family_is_no_worse_than_the_guide(pair: Pair) -> None:
    learner, episodes = pair.learner(), pair.tasks()
    target = Target(learner.model, episodes, "all")
    with torch.no_grad():
        q = learner.guide.training_posterior(episodes)
    best = best_in_family(target, q, steps=120)
    assert type(best).__name__ == type(q).__name__
    with torch.no_grad():
        assert (elbo_of(target, best, 2000) > elbo_of(target, q, 2000) - 0.05).all()


# ---------------------------------------------------------------- Pareto k


@pytest.mark.parametrize("variance", [0.2, 0.5, 0.9])
def test_pareto_k_is_the_tail_index(variance: float) -> None:
    """Weights of N(0, 1) from draws of N(0, s^2) have a tail of index k = 1 - s^2 exactly; the fit's prior is 1/2."""
    w = variance**0.5 * torch.randn(40_000, 8)
    k = pareto_k(0.5 * w.square() * (1 / variance - 1))
    assert k.mean().item() == pytest.approx(1 - variance, abs=0.12)


def test_weights_without_a_tail_have_none() -> None:
    rounding = 1e-5 * torch.randint(-3, 4, (1000, 2)).double()  # what is left of log p - log q for q = p in float32
    assert pareto_k(torch.zeros(1000, 2)).tolist() == pareto_k(rounding).tolist() == [0, 0]
    assert pareto_k(torch.randn(10, 1)).item() == math.inf  # too few to say


@pytest.mark.skipif(importlib.util.find_spec("arviz") is None, reason="ArviZ is not installed")
def test_pareto_k_is_that_of_arviz() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1.x has it in another package")
    log_weights = 3 * torch.randn(1000, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [float(arviz.psislw(column.numpy().copy())[1]) for column in log_weights.mT]
    assert pareto_k(log_weights).tolist() == pytest.approx(theirs, abs=1e-4)


# ---------------------------------------------------------------- mistakes and the command


def test_what_has_no_gold_posterior_is_refused() -> None:
    learner, tasks = Pair("proto", "flat").learner(), Pair("proto", "flat").tasks()
    with pytest.raises(UsageError, match="expected a prior with a density for NUTS, got a flat"):
        Target(learner.model, tasks, "all")
    with pytest.raises(UsageError, match=r"expected labels .* to be one of query, support, all, got 'some'"):
        Target(learner.model, tasks, "some")
    with pytest.raises(UsageError, match="expected a posterior with a density for the gaps"):
        check_density(Pair("sib", settings={"posterior": "delta"}).learner().guide.posterior(tasks.observed()))
    with pytest.raises(UsageError, match="draws >= 4"):
        NutsSettings(draws=1)


def test_the_error_of_the_bridge_is_its_spread() -> None:
    """Over 200 repetitions with independent draws of the exact posterior and of a proposal twice as wide."""
    shape = torch.Size((400, 200))
    posterior, proposal = Normal(0.0, 1.0), Normal(0.5, 2.0)
    w, v = posterior.sample(shape), proposal.sample(shape)
    weights = [posterior.log_prob(x) - proposal.log_prob(x) for x in (w, v)]  # the evidence is 1
    estimates = bridge_evidence(*weights)
    errors = bridge_error(*weights, estimates, torch.full((200,), 400.0))
    assert estimates.std().item() == pytest.approx(errors.mean().item(), rel=0.2)
    assert abs(estimates.mean().item()) < 0.01


QUICK = ("tasks=2", "warmup=5", "draws=5", "fit_steps=5", "samples=100")


def test_the_command_puts_runs_into_one_table(finished: Path) -> None:
    torch.set_default_dtype(torch.float32)
    outcome = ran("gold", str(finished), str(finished), *QUICK, "targets=[support,all,query]", "chains=1")
    for column in ("accuracy %, gold - guide", "amortization gap", "Pareto k", "given support, query", "given query"):
        assert column in outcome.out
    for name in ("table.md", "table.csv", "gold.png", "tasks.npz"):
        assert (finished / "gold" / name).stat().st_size > 0
    with (finished / "gold" / "table.csv").open(newline="") as file:
        rows = {row["posterior of w"]: row for row in csv.DictReader(file)}
    differences = {labels: bool(row["NLL, gold - guide"]) for labels, row in rows.items()}
    assert differences == {"given support": True, "given support, query": False, "given query": False}
    assert results_of(finished)["guide"] == "sib"  # what stood there stands


@pytest.mark.usefixtures("empty_folder")
def test_the_command_of_numbers_and_its_mistakes(finished: Path) -> None:
    torch.set_default_dtype(torch.float32)
    small = ("train.steps=2", "eval.tasks=8", "train.validation_tasks=8")
    ran("run", "data=linear_regression", "guide=exact", *small, "hydra.run.dir=numbers")
    assert "MSE, gold - guide" in ran("gold", "run=numbers", *QUICK).out
    ran("run", "data=gaussian_features", "data.num_features=16", "guide=proto", *small, "hydra.run.dir=flat")
    before = sorted(Path.cwd().rglob("*"))
    mistakes = {
        ("run=flat",): "expected a prior with a density for NUTS, got a flat prior",
        (str(finished), "tasks", "2"): "expected folders of runs, got 'tasks', which is not a folder",
        ("run=nowhere",): "expected a checkpoint at nowhere/checkpoint.pt, got no folder nowhere; fix the path",
        ("tasks=2",): "expected RUN_DIR, the folder of a finished run, got none",
        (f"run={finished}", "tasks=0"): "expected tasks >= 2, got 0",
        (f"run={finished}", "targets=[some]"): "expected labels (in a run: targets) to be one of query, support, all",
        (f"run={finished}", "samples=3"): "expected samples >= 100",
        (f"run={finished}", "warmup=0"): "expected warmup, chains, together, max_tree_depth >= 1",
        ("run=numbers", "eval.split=train", "tasks=9", "train.num_tasks=5"): "an evaluation does not train",
    }
    for arguments, message in mistakes.items():
        assert message in call("gold", *arguments).error
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.usefixtures("empty_folder")
def test_more_tasks_than_there_are_are_refused() -> None:
    torch.set_default_dtype(torch.float32)
    small = ("train.steps=2", "eval.tasks=8", "train.validation_tasks=8", "train.num_tasks=5")
    ran("run", "data=gaussian_mean", "guide=exact", *small, "hydra.run.dir=run")
    error = call("gold", "run=run", "eval.split=train", "tasks=6").error
    assert error == "expected tasks <= 5, the tasks of the train split, got 6"


def test_the_model_is_left_without_gradients() -> None:
    learner, episodes = Pair("sib").learner(), Pair("sib").tasks(2)
    target = Target(learner.model, episodes, "all")
    with torch.no_grad():
        q = learner.guide.training_posterior(episodes)
    with pyro.validation_enabled(False):
        gold_posterior(target, NutsSettings(warmup=3, draws=4, chains=1))
    best_in_family(target, q, steps=2)
    assert all(parameter.grad is None for parameter in learner.parameters())
