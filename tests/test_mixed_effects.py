"""Closed forms of the linear mixed model, compared with dense Gaussians, lme4 and NUTS."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

from pyro_metabayes import Episodes, UsageError
from pyro_metabayes.data.sources.groups import Groups, load
from pyro_metabayes.exact.hierarchical_nuts import drawn_effects, sampled
from pyro_metabayes.exact.mixed_effects import MixedEffects, fit, log_likelihood
from pyro_metabayes.exact.sums import sums_of
from pyro_metabayes.models.hierarchical_regression import Model
from pyro_metabayes.models.priors import FullGaussian
from tests.commands import ran, results_of
from tests.pairs import random_regressions

RANDOM = 2


def ragged(num_tasks: int = 12, seed: int = 0) -> Episodes:
    """Groups of different sizes with random intercepts and slopes. All points are queries."""
    torch.set_default_dtype(torch.float64)
    drawn = random_regressions(num_tasks, 3, 5, features=3, targets=1, seed=seed).pooled()
    x, y, mask = drawn.support_x, drawn.support_y, drawn.support_mask
    none = {"support_x": x[:, :0], "support_y": y[:, :0]}
    return Episodes(**none, query_x=x, query_y=y, query_mask=mask)


def dense(found: MixedEffects, episodes: Episodes, restricted: bool) -> Tensor:
    """The (restricted) log likelihood by one Gaussian of all points."""
    xs, ys, blocks = [], [], []
    for x, y, mask in zip(episodes.query_x, episodes.query_y, episodes.query_mask, strict=True):
        z = x[mask][:, :RANDOM]
        blocks.append(z @ found.covariance @ z.mT + found.noise**2 * torch.eye(len(z)))
        xs.append(x[mask])
        ys.append(y[mask, 0])
    x, y, covariance = torch.cat(xs), torch.cat(ys), torch.block_diag(*blocks)
    value = MultivariateNormal(x @ found.coefficients, covariance).log_prob(y)
    if not restricted:
        return value
    precision = x.mT @ torch.linalg.solve(covariance, x)  # the coefficients integrated out under a flat prior
    return value + 0.5 * (x.shape[1] * math.log(2 * math.pi) - precision.logdet())


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_the_likelihood_is_that_of_a_dense_gaussian(restricted: bool, diagonal: bool) -> None:
    episodes = ragged()
    found = fit(episodes, RANDOM, restricted, diagonal)
    assert found.log_likelihood == pytest.approx(dense(found, episodes, restricted).item(), rel=1e-9)
    assert (found.covariance[0, 1] == 0) == diagonal


def test_it_is_a_maximum() -> None:
    """Of log_likelihood, which takes all parameters: every direction leads down."""
    episodes = ragged()
    found, sums = fit(episodes, RANDOM), sums_of(episodes, RANDOM)
    root = torch.linalg.cholesky(found.covariance)
    best = log_likelihood(sums, found.coefficients, root, found.noise)
    assert best.item() == pytest.approx(found.log_likelihood, rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved: list[Tensor] = [
            value * (1 + 0.02 * torch.randn(value.shape, generator=generator))
            for value in (found.coefficients, root, found.noise)
        ]
        assert log_likelihood(sums, *moved) < best


def test_the_model_has_the_same_evidence_and_the_same_effects() -> None:
    """models/hierarchical_regression.py at these estimates: the training objective of exact is this likelihood."""
    episodes = ragged(num_tasks=40)
    found = fit(episodes, RANDOM)
    prior = FullGaussian(RANDOM)
    model = Model(prior, num_targets=1, num_features=3, num_weights=RANDOM)
    root = torch.linalg.cholesky(found.covariance)
    with torch.no_grad():
        prior.loc.copy_(found.coefficients[:RANDOM])
        prior.log_scale.copy_(root.diagonal().log())
        prior.below.copy_((root / root.diagonal().unsqueeze(-1)).tril(-1))
        model.beta.copy_(found.coefficients[RANDOM:].unsqueeze(0))
        model.log_noise.copy_(found.noise.log())
        assert model.log_evidence(episodes).sum().item() == pytest.approx(found.log_likelihood, rel=1e-9)
        exact, effects = model.exact_posterior(episodes.pooled()), found.effects(episodes.pooled())
    torch.testing.assert_close(exact.mean, effects.mean)
    torch.testing.assert_close(exact.variance, effects.variance)


def test_groups_that_do_not_differ_have_no_variance() -> None:
    episodes = ragged(num_tasks=30)
    torch.manual_seed(0)
    episodes.query_y = episodes.query_x.sum(-1, keepdim=True) + torch.randn(episodes.query_y.shape)
    one = ((episodes.query_y - episodes.query_x.sum(-1, keepdim=True)) * episodes.query_mask.unsqueeze(-1)).sum(1)
    episodes.query_y -= one.unsqueeze(1) / episodes.query_mask.sum(1).view(-1, 1, 1)  # means of groups exactly alike
    found = fit(episodes, 1)
    assert found.covariance.item() < 1e-6 and torch.isfinite(found.effects(episodes.pooled()).mean).all()


def test_mistakes_are_named() -> None:
    episodes = ragged()
    with pytest.raises(UsageError, match="expected only queries with one number per label"):
        fit(random_regressions(targets=1), 1)
    with pytest.raises(UsageError, match="expected more points than the 3 coefficients, got"):
        fit(episodes.tasks(slice(0, 1)).map_tensors(lambda value: value[:, :2]), 1)
    with pytest.raises(UsageError, match="expected samples >= 4 and warmup >= 1 for NUTS, got samples=2 and warmup=0"):
        sampled(episodes, RANDOM, 2, 0)


# ---------------------------------------------------------------- published figures


def in_units(groups: Groups, found: MixedEffects) -> dict[str, Any]:
    scales = groups.scales
    covariance = scales.covariance_in_units(found.covariance)
    return {
        "coefficients": scales.in_units(found.coefficients).tolist(),
        "errors": scales.covariance_in_units(found.errors).diagonal().sqrt().tolist(),
        "sd": covariance.diagonal().sqrt().tolist(),
        "correlation": (covariance / covariance.diagonal().sqrt() / covariance.diagonal().sqrt().unsqueeze(-1))[0, -1],
        "noise": found.noise.item() * groups.scale,
    }


def test_restricted_figures_of_sleepstudy_are_those_of_lme4(metabayes_data: Path) -> None:
    """summary(lmer(Reaction ~ Days + (Days | Subject), sleepstudy)), as the documentation of lme4 prints it."""
    groups = load("Subject", "Reaction", ["Days"], ["intercept", "Days"], table="sleepstudy")
    found = in_units(groups, fit(groups.whole(), 2, restricted=True))
    assert found["coefficients"] == pytest.approx([251.405, 10.467], abs=6e-4)
    assert found["errors"] == pytest.approx([6.825, 1.546], abs=6e-4)
    assert found["sd"] == pytest.approx([24.741, 5.922], abs=6e-4)
    assert found["correlation"] == pytest.approx(0.066, abs=6e-4)
    assert found["noise"] == pytest.approx(25.592, abs=6e-4)


def test_likelihood_figures_of_sleepstudy_are_those_of_lme4(metabayes_data: Path) -> None:
    """The same with REML = FALSE; -2 log likelihood 1751.939 in ms."""
    groups = load("Subject", "Reaction", ["Days"], ["intercept", "Days"], table="sleepstudy")
    fitted = fit(groups.whole(), 2)
    found = in_units(groups, fitted)
    assert found["sd"] == pytest.approx([23.78, 5.72], abs=6e-3) and found["noise"] == pytest.approx(25.59, abs=6e-3)
    assert found["correlation"] == pytest.approx(0.08, abs=6e-3)
    deviance = -2 * (fitted.log_likelihood - 180 * math.log(groups.scale))
    assert deviance == pytest.approx(1751.939, abs=1e-3)


def test_a_run_without_steps_is_maximum_likelihood(
    metabayes_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the log likelihood of lme4, in ms, in results.json and beside the effects."""
    monkeypatch.chdir(tmp_path)
    ran("run", "data=sleepstudy", "guide=exact", "train.steps=0", "hydra.run.dir=run")
    assert results_of(Path("run"))["log_likelihood"] == pytest.approx(
        {"learned": -875.97, "closed_form": -875.97}, abs=5e-3
    )
    out = ran("effects", "run").out
    assert "log likelihood of the training groups: -875.97 (run), -875.97 (closed form); estimates are maximum" in out
    assert "likelihood, not REML" in out
    rows = {row[""]: row for row in csv.DictReader(Path("run/prior.csv").read_text().splitlines())}
    for row in rows.values():
        assert float(row["run"]) == pytest.approx(float(row["closed form"]), rel=2e-3, abs=1e-3)


def test_a_run_with_independent_effects_is_maximum_likelihood(
    metabayes_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run starts at the estimates without covariances, and the closed form beside the effects is the same."""
    monkeypatch.chdir(tmp_path)
    ran("run", "data=sleepstudy", "guide=exact", "prior=gaussian", "train.steps=0", "hydra.run.dir=run")
    values = results_of(Path("run"))["log_likelihood"]
    assert values["learned"] == pytest.approx(values["closed_form"], abs=1e-3) and values["closed_form"] < -875.98
    ran("effects", "run")
    for row in csv.DictReader(Path("run/prior.csv").read_text().splitlines()):
        assert float(row["run"]) == pytest.approx(float(row["closed form"]), rel=2e-3, abs=1e-3)


def test_effects_are_drawn_from_their_gaussian() -> None:
    """4,000 draws at the same parameters: means within 5 standard errors, sds within 8%."""
    episodes = ragged(num_tasks=40)
    found, sums = fit(episodes, RANDOM), sums_of(episodes, RANDOM)
    root = torch.linalg.cholesky(found.covariance)
    same = (value.expand(4000, *value.shape) for value in (found.coefficients, root, found.noise))
    torch.manual_seed(0)
    drawn = drawn_effects(sums, *same)
    effects = found.effects(episodes.pooled())
    mean, sd = effects.mean.squeeze(1), effects.variance.sqrt().squeeze(1)
    assert ((drawn.mean(0) - mean).abs() < 5 * sd / 4000**0.5).all()
    torch.testing.assert_close(drawn.std(0), sd, rtol=0.08, atol=0)


@pytest.mark.slow
def test_nuts_is_centred_on_the_likelihood_with_many_groups() -> None:
    """Where the prior says little; 120 draws of seed 0, whose means are 0.1 sd off or so."""
    episodes = ragged(num_tasks=60)
    torch.manual_seed(1)
    x = episodes.query_x
    own = 1.0 + 0.7 * torch.randn(60, 1, 1)
    episodes.query_y = own + x[..., 1:].sum(-1, keepdim=True) + 0.5 * torch.randn(*x.shape[:2], 1)
    found, drawn = fit(episodes, 1), sampled(episodes, 1, 60, 60)
    assert drawn.r_hat < 1.15 and drawn.effects.shape == (120, 60, 1)
    for got, expected in (
        (drawn.coefficients, found.coefficients),
        (drawn.factor.squeeze(-1), found.covariance.diagonal().sqrt()),
        (drawn.noise.unsqueeze(-1), found.noise.unsqueeze(-1)),
    ):
        assert ((got.mean(0) - expected).abs() < 0.5 * got.std(0)).all()
    effects = found.effects(episodes.pooled())
    spread = effects.variance.sqrt().squeeze(1)
    assert ((drawn.effects.mean(0) - effects.mean.squeeze(1)).abs() / spread).mean() < 0.25
    assert (drawn.effects.std(0) / spread).mean().item() == pytest.approx(1.03, abs=0.1)
