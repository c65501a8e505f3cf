"""Scores from few draws of w: the documented bias, and coverage, for posteriors with known answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro.distributions import Normal
from torch import Size

from pyro_metabayes import Episodes, UsageError
from pyro_metabayes.data.sources.given import task_stream
from pyro_metabayes.diagnostics.calibration import calibration
from pyro_metabayes.evaluation import task_scores
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.evaluation.log_scores import nll, nll_bias
from pyro_metabayes.evaluation.score import Weights
from pyro_metabayes.evaluation.scores import SCORES, values_of
from pyro_metabayes.evaluation.task_scores import predictions_under
from pyro_metabayes.likelihoods.predictions import predictions_of
from pyro_metabayes.models import gaussian_mean
from pyro_metabayes.models.priors import Gaussian
from pyro_metabayes.prediction.averages import log_mean_exp, masked_mean
from pyro_metabayes.training.step_metrics import VALIDATION_SAMPLES, validation_metrics
from tests.pairs import Pair, random_regressions, random_tasks, stream_of

TASKS = 200


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def true_tasks(query: int = 5) -> tuple[Any, Episodes]:
    """The exact guide of a conjugate model, and tasks whose labels are drawn from that model."""
    learner: Any = Pair("exact", model="linear_regression").learner()
    episodes = random_regressions(num_tasks=TASKS, query=query, whole=True)
    with torch.no_grad():
        w = learner.model.prior(episodes).sample()
        for part in ("support", "query"):
            outputs = learner.model.outputs(w, getattr(episodes, f"{part}_x"))
            setattr(episodes, f"{part}_y", outputs + learner.model.noise * torch.randn_like(outputs))
    return learner, episodes


@pytest.fixture
def without_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_scores, "integrates", lambda model, q: False)


def coverage_of(samples: int, num_tasks: int = 2000) -> float:
    """Coverage of one label y ~ N(w, 0.3^2) per task, from draws of the exact posterior w ~ N(0, 1)."""
    model = gaussian_mean.Model(Gaussian(1, scale=1.0), num_targets=1, num_features=1, noise=0.3)
    episodes = random_regressions(num_tasks, support=1, query=1, features=1, targets=1, whole=True)
    with torch.no_grad():
        q = model.prior(episodes)
        episodes.query_y = q.sample() + 0.3 * torch.randn_like(episodes.query_y)
        scores = values_of(predictions_under(q, model, episodes, samples), Weights.DRAWS, SCORES)
    return scores["coverage90"].mean().item()


@pytest.mark.usefixtures("without_closed_form")
def test_few_draws_of_the_exact_posterior_cover_too_little_and_the_default_does_not() -> None:
    """The standard error of a coverage of 2,000 labels is 0.007."""
    assert coverage_of(10) < 0.87
    assert coverage_of(30) < 0.9
    assert coverage_of(EvalSettings().number_samples) == pytest.approx(0.9, abs=0.022)


def test_the_closed_form_covers_what_it_claims() -> None:
    assert coverage_of(1) == pytest.approx(0.9, abs=0.021)
    learner, episodes = true_tasks()
    levels = calibration(learner, [episodes], num_samples=1)["coverage"].mean(0)
    assert levels[8].item() == pytest.approx(0.9, abs=0.03) and levels[4].item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("samples", [10, 30])
def test_the_bias_of_nll_is_the_stated_one(samples: int) -> None:
    """Against the nll of 100,000 draws, in expectation over 5,000 evaluations of one task.

    The average of p_l / p over the draws, whose expectation is 1, is a control variate: the standard error of the
    excess is then 1%. The stated bias is that of first order in 1 / L, and 0.7 / L of the excess is left out.
    """
    one = random_tasks(num_tasks=1)
    model = Pair("proto", "flat").learner().model
    loc = torch.randn(1, *model.event_shape(one))

    def predictions(draws: int, copies: int) -> Any:
        episodes = one.tasks(torch.zeros(copies, dtype=torch.long))
        w = Normal(loc.expand(copies, -1, -1), 1.0).to_event(2).sample(Size((draws,)))
        likelihood = model.likelihood(w, episodes.query_x, episodes)
        return predictions_of(likelihood, episodes.query_y, episodes.query_mask)

    with torch.no_grad():
        few, many = predictions(samples, 5_000), predictions(100_000, 1)
        relative = log_mean_exp(few.log_prob) - log_mean_exp(many.log_prob)
        excess = (nll(few) - nll(many) + masked_mean(relative.expm1(), few.mask)).mean().item()
        stated = nll_bias(few).mean().item()
    assert excess > 0 and stated == pytest.approx(excess, rel=1.5 / samples)


def test_a_closed_form_and_a_point_have_no_bias() -> None:
    for pair in (Pair("exact", model="linear_regression"), Pair("proto", "flat")):
        metrics = evaluate(pair.learner(), stream_of(pair.tasks(3)), EvalSettings(3), progress=False).metrics
        assert metrics["nll_monte_carlo_bias"] == 0


@pytest.mark.usefixtures("without_closed_form")
def test_validation_is_biased_by_what_it_states_and_repeats_its_random_numbers() -> None:
    learner, episodes = true_tasks()
    stream = task_stream(episodes, "the tasks")
    first, second = (validation_metrics(learner, stream, TASKS, seed=0) for _ in range(2))
    assert first == second
    with torch.no_grad():
        q, observed = learner.guide.posterior(episodes.observed()), episodes.observed()
        exact = -learner.model.predictive(q, observed).log_prob(episodes.query_y).mean().item()
    assert first["val_nll_bias"] > 0
    assert first["val_nll"] - first["val_nll_bias"] == pytest.approx(exact, abs=0.02)
    assert VALIDATION_SAMPLES == 100


def test_classes_take_the_draws_that_are_asked_for() -> None:
    settings = EvalSettings(samples=5, number_samples=50)
    assert (settings.draws(num_classes=3), settings.draws(num_classes=0)) == (5, 50)
    with pytest.raises(UsageError, match=r"expected eval\.number_samples >= 1, got 0"):
        EvalSettings(number_samples=0)
