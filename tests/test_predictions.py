"""A new likelihood is one class in the registry, and gets the right scores, PIT and spreads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import (
    Bernoulli,
    Categorical,
    Exponential,
    GammaPoisson,
    Geometric,
    Laplace,
    NegativeBinomial,
    Normal,
    OrderedLogistic,
    Poisson,
    StudentT,
    TorchDistribution,
)
from scipy import stats
from torch import Tensor

from pyro_metabayes import Episodes, MetaLearner, UsageError
from pyro_metabayes.data.sources.ordinal import Ordinal
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.diagnostics.calibration import LEVELS, calibration, calibration_of
from pyro_metabayes.diagnostics.collapse import prior_spread
from pyro_metabayes.diagnostics.predictive import discrepancies, predictive_draws
from pyro_metabayes.diagnostics.sbc import sbc_ranks, simulate
from pyro_metabayes.evaluation.batch_scores import Evaluation
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.evaluation.scores import SCORES, scores_of
from pyro_metabayes.evaluation.task_scores import predictions_under
from pyro_metabayes.guides import maml, mean_field
from pyro_metabayes.likelihoods.classes import ClassPredictions, class_log_probs
from pyro_metabayes.likelihoods.numbers import NumberPredictions
from pyro_metabayes.likelihoods.predictions import FAMILIES, predictions_of, register
from pyro_metabayes.likelihoods.student_t import student_t_cdf
from pyro_metabayes.models import priors
from pyro_metabayes.models.backbones import identity
from pyro_metabayes.models.linear_regression import Model as LinearRegression
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.prediction.numbers import predicted_numbers
from pyro_metabayes.prediction.pit import pit_histogram, share_below
from tests.commands import call, ran, results_of
from tests.pairs import Pair, random_regressions, stream_of

OF_CLASSES = {"accuracy", "accuracy_of_sample", "accuracy_of_mean", "brier", "mutual_information", "ece"}
OF_NUMBERS = {"mse", "rmse", "coverage90"}
OF_ALL = {"nll", "nll_monte_carlo_bias"}


def all_true(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


# ---------------------------------------------------------------- Student's t


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("df", [0.1, 0.5, 0.9, 1.0, 1.5, 1.99, 2.0, 2.1, 3.0, 7.3, 30.0, 1e3, 1e6])
def test_the_cdf_of_students_t_is_that_of_scipy(df: float, dtype: torch.dtype) -> None:
    t = torch.cat((torch.linspace(-60, 60, 2001), 10 ** torch.linspace(-6, 6, 400))).to(dtype)
    got = student_t_cdf(t, torch.tensor(df, dtype=dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(got.double().numpy(), stats.t.cdf(t.double().numpy(), df), rtol=0, atol=1e-6)


def test_the_cdf_of_students_t_takes_one_df_per_number() -> None:
    t, df = torch.randn(5, 1, 3).double(), torch.tensor([1.2, 3.0, 50.0]).double()
    expected = stats.t.cdf(t.numpy(), df.numpy())
    np.testing.assert_allclose(student_t_cdf(t, df).numpy(), expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- PIT and coverage


def drawn(name: str) -> tuple[TorchDistribution, Tensor]:
    """A predictive mixture of four draws, batch [4, 300, 30, ...], and labels drawn from it."""
    likelihoods: dict[str, TorchDistribution] = {
        "normal": Normal(torch.randn(4, 300, 30, 2), 0.5).to_event(1),
        "student": StudentT(3.0, torch.randn(4, 300, 30, 2), 0.5).to_event(1),
        "poisson": Poisson(3 * torch.rand(4, 300, 30, 1)).to_event(1),
        "bernoulli": Bernoulli(logits=2 * torch.randn(4, 300, 30)),
        "binary": Bernoulli(logits=2 * torch.randn(4, 300, 30, 1)).to_event(1),
        "ordinal": OrderedLogistic(2 * torch.randn(4, 300, 30, 1), torch.tensor([-1.0, 0.5, 2.0])).to_event(1),
        "levels": OrderedLogistic(2 * torch.randn(4, 300, 30), torch.tensor([-1.0, 0.5, 2.0])),
        "categorical": Categorical(logits=torch.randn(4, 300, 30, 5)),
    }
    likelihood = likelihoods[name]
    every = likelihood.sample()
    draw = torch.randint(4, (1, 300, 30, *[1] * (every.dim() - 3))).expand_as(every[:1])
    y = every.gather(0, draw)[0]
    return likelihood, y.long() if name in ("bernoulli", "levels", "categorical") else y


@pytest.mark.parametrize("name", ["normal", "student", "poisson", "ordinal", "levels"])
def test_the_pit_of_labels_from_the_predictive_is_uniform(name: str) -> None:
    likelihood, y = drawn(name)
    predictions = predictions_of(likelihood, y, all_true(300, 30))
    assert predictions.pit_bounds is not None
    shares = calibration_of(predictions)["pit"]
    assert shares.shape == (300, 10)
    torch.testing.assert_close(shares.sum(1), torch.ones(300))
    torch.testing.assert_close(shares.mean(0), torch.full((10,), 0.1), atol=0.015, rtol=0)
    wide = predictions_of(likelihood, y.clamp(max=0), all_true(300, 30))  # labels that are too small
    assert calibration_of(wide)["pit"].mean(0)[-1] < 0.05


@pytest.mark.parametrize("name", ["poisson", "ordinal"])
def test_shares_of_the_pit_are_those_of_its_random_draws(name: str) -> None:
    """u = F(y-) + v (F(y) - F(y-)) with v ~ U(0, 1)."""
    likelihood, y = drawn(name)
    bounds = predictions_of(likelihood, y, all_true(300, 30)).pit_bounds
    assert bounds is not None
    low, high = bounds
    u = low + torch.rand(200, *low.shape) * (high - low)
    for x in (0.05, 0.3, 0.95):
        torch.testing.assert_close(share_below(bounds, x), (u <= x).float().mean(0), atol=0.2, rtol=0)
        assert share_below(bounds, x).mean().item() == pytest.approx((u <= x).float().mean().item(), abs=1e-3)
    counts = torch.stack([((u > i / 4) & (u <= (i + 1) / 4)).float().mean() for i in range(4)])
    torch.testing.assert_close(pit_histogram(bounds, 4).flatten(0, -2).mean(0), counts, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["normal", "student", "poisson"])
def test_intervals_of_numbers_and_counts_cover_as_often_as_they_say(name: str) -> None:
    likelihood, y = drawn(name)
    scores = scores_of(likelihood, y, all_true(300, 30))
    assert scores["coverage90"].mean().item() == pytest.approx(0.9, abs=0.012)
    found = calibration_of(predictions_of(likelihood, y, all_true(300, 30)))["coverage"].mean(0)
    torch.testing.assert_close(found, torch.tensor(LEVELS), atol=0.02, rtol=0)
    assert found[LEVELS.index(0.9)].item() == pytest.approx(scores["coverage90"].mean().item(), abs=1e-5)


def test_the_cdf_of_counts_is_that_of_scipy() -> None:
    rate, y = 5 * torch.rand(3, 1, 7, 1).double() + 0.01, torch.arange(7).view(1, 7, 1).double()
    predictions = predictions_of(Poisson(rate).to_event(1), y, all_true(1, 7))
    assert isinstance(predictions, NumberPredictions)
    for count in (y - 1, y):
        got, expected = predictions.cdf(count).numpy(), stats.poisson.cdf(count.numpy(), rate.numpy())
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


# ---------------------------------------------------------------- the scores that a family has


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("normal", OF_NUMBERS),
        ("student", OF_NUMBERS),
        ("poisson", OF_NUMBERS),
        ("bernoulli", OF_CLASSES),
        ("binary", OF_CLASSES),
        ("ordinal", OF_CLASSES),
        ("levels", OF_CLASSES),
        ("categorical", OF_CLASSES),
    ],
)
def test_a_family_has_the_scores_of_its_labels(name: str, expected: set[str]) -> None:
    likelihood, y = drawn(name)
    got = scores_of(likelihood, y, all_true(300, 30))
    of_means = {score.name for score in SCORES if score.is_mean and score.name not in ("accuracy_of_mean",)}
    assert set(got) == (expected | OF_ALL) & of_means
    assert all(torch.isfinite(value).all() and value.shape == (300,) for value in got.values())
    log_prob = likelihood.log_prob(y.float())
    nll = -(log_prob.logsumexp(0) - np.log(4)).mean(-1)
    torch.testing.assert_close(got["nll"], nll, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bernoulli", "binary", "ordinal", "levels"])
def test_accuracy_counts_the_most_probable_class(name: str) -> None:
    likelihood, y = drawn(name)
    predictions = predictions_of(likelihood, y, all_true(300, 30))
    assert isinstance(predictions, ClassPredictions)
    classes = torch.arange(predictions.log_probs.shape[-1])
    shape = (-1, *[1] * y.dim())
    values = classes.view(shape).float()
    by_class = torch.stack([likelihood.log_prob(value.expand_as(y)).exp().mean(0) for value in values], -1)
    hits = (by_class.argmax(-1) == (y.squeeze(-1) if y.dim() == 3 else y)).float().mean(-1)
    torch.testing.assert_close(scores_of(likelihood, y, all_true(300, 30))["accuracy"], hits)
    torch.testing.assert_close(class_log_probs(likelihood).exp().mean(0), by_class, atol=1e-5, rtol=1e-5)


def test_several_classes_per_query_are_refused() -> None:
    likelihood, y = Bernoulli(logits=torch.zeros(1, 1, 4, 2)).to_event(1), torch.zeros(1, 4, 2)
    with pytest.raises(UsageError, match="expected one label per query for a Bernoulli likelihood, got 2"):
        scores_of(likelihood, y, all_true(1, 4))


# ---------------------------------------------------------------- a family of one's own


@pytest.fixture
def registry() -> Iterator[None]:
    """The registry without Laplace, which an example of a page may have registered. It is restored afterwards."""
    before = dict(FAMILIES)
    FAMILIES.pop(torch.distributions.Laplace, None)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


class Rates(LinearRegression):
    """A model of counts with the rate exp(w x)."""

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return Poisson(outputs.clamp(max=5).exp()).to_event(1)


class Peaked(LinearRegression):
    """A model with Laplace noise."""

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return Laplace(outputs, 0.5).to_event(1)


class Yes(LinearRegression):
    """Logistic regression with labels 0.0 and 1.0."""

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return Bernoulli(logits=outputs).to_event(1)


def learner_of(model: type[LinearRegression], steps: int | None = None) -> MetaLearner:
    """A learner with two features and one target: mean_field, or maml with this number of steps."""
    torch.manual_seed(0)
    prior = priors.Gaussian(num_weights=2, scale=0.5)
    built = model(prior, 1, 2)
    guide: Any = mean_field.Guide(built, 1, 2) if steps is None else maml.Guide(built, 1, 2, num_steps=steps)
    return MetaLearner(identity.Backbone(input_shape=[2], normalise=False), built, guide, Elbo())


def labelled_by(learner: MetaLearner, num_tasks: int = 40) -> Episodes:
    """Tasks with labels drawn from the model of the learner."""
    episodes = random_regressions(num_tasks, features=2, targets=1, query=6)
    observed = episodes.observed()
    w = learner.model.prior(observed).sample()
    support, query = (learner.model.likelihood(w, x, observed).sample() for x in (episodes.support_x, episodes.query_x))
    return replace(episodes, support_y=support.to(w), query_y=query.to(w))


def evaluated(learner: MetaLearner) -> Evaluation:
    stream = stream_of(labelled_by(learner))
    return evaluate(learner, stream, EvalSettings(40, samples=5), seed=0, progress=False)


def test_a_family_is_one_registered_class(registry: None) -> None:
    """Scores, scores by inner step, calibration, spreads and predictive checks follow."""
    with pytest.raises(UsageError, match=r"expected a likelihood of a registered family \(.*\), got Laplace; register"):
        evaluated(learner_of(Peaked))

    @register(torch.distributions.Laplace)
    class LaplacePredictions(NumberPredictions):
        def cdf(self, y: Tensor) -> Tensor:
            return self.family.cdf(y)

    learner = learner_of(Peaked, steps=2)
    metrics = evaluated(learner).metrics
    assert all(metrics[name] is not None for name in OF_NUMBERS | OF_ALL)
    assert all(metrics[name] is None for name in OF_CLASSES)
    assert list(metrics["by_step"]) == ["0", "1", "2"]
    check_diagnostics(learner_of(Peaked), {"pit", "coverage"}, {"logit_variance"})


def check_diagnostics(learner: MetaLearner, metrics: set[str], spreads: set[str]) -> None:
    """Calibration, collapse metrics and predictive checks of a likelihood."""
    episodes = labelled_by(learner)
    with torch.no_grad():
        assert set(calibration(learner, [episodes], 5)) == metrics
        spread = prior_spread(learner, episodes.observed(), 5)
    assert spreads <= set(spread) and ("disagreement" in spread) == ("disagreement" in spreads)
    assert all(torch.isfinite(spread[name]).all() and spread[name].min() >= 0 for name in spreads)
    draws = predictive_draws(learner, episodes, 5)
    checks = discrepancies(learner, episodes.observed(), draws.posterior, episodes.query_y)
    assert all(0 <= check.p_values.min() <= check.p_values.max() <= 1 for check in checks.values())


def test_counts_are_evaluated() -> None:
    metrics = evaluated(learner_of(Rates, steps=1)).metrics
    assert all(metrics[name] is not None for name in OF_NUMBERS | OF_ALL)
    assert all(metrics[name] is None for name in OF_CLASSES)
    check_diagnostics(learner_of(Rates), {"pit", "coverage"}, {"logit_variance"})


def test_a_closed_form_of_another_likelihood_is_not_inherited() -> None:
    """Counts from linear_regression, whose `predictive` is Gaussian: draws give scores and predicted numbers."""
    learner = learner_of(Rates)
    episodes = labelled_by(learner, num_tasks=1)
    q = learner.guide.posterior(episodes.observed())
    assert type(predictions_under(q, learner.model, episodes, 5)) is FAMILIES[torch.distributions.Poisson]
    predicted = predicted_numbers(learner.model, q, episodes.observed(), 50)
    assert predicted.lower.min() >= 0 and torch.equal(predicted.lower, predicted.lower.round())


def test_binary_labels_that_are_numbers_are_evaluated_as_classes() -> None:
    """Also after inner steps, which have scores of numbers only."""
    metrics = evaluated(learner_of(Yes, steps=1)).metrics
    assert all(metrics[name] is not None for name in OF_CLASSES | OF_ALL)
    assert all(metrics[name] is None for name in (*OF_NUMBERS, "by_step"))
    check_diagnostics(learner_of(Yes), {"bins", "coverage", "size", "mass"}, {"logit_variance", "disagreement"})


class CountsByCdf(NumberPredictions):
    """A family of counts that defines its cdf alone, by a sum of probabilities."""

    def cdf(self, y: Tensor) -> Tensor:
        below = [self.family.log_prob(torch.full_like(y, float(k))).exp() * (y >= k) for k in range(60)]
        return torch.stack(below).sum(0)


@pytest.mark.parametrize("family", ["negative binomial", "geometric", "pyro's negative binomial"])
def test_counts_with_a_cdf_alone_cover_as_often_as_they_say(family: str, registry: None) -> None:
    """The kind of labels is that of the support of the distribution."""
    mean = 0.3 + 1.5 * torch.rand(1, 300, 30, 1)
    likelihood: Any = {
        "negative binomial": NegativeBinomial(2.0, logits=(mean / 2).log()),
        "pyro's negative binomial": GammaPoisson(2.0, 2.0 / mean),
        "geometric": Geometric(1 / (1 + mean)),
    }[family]
    register(type(likelihood))(CountsByCdf)
    y = likelihood.sample()[0]
    found = calibration_of(predictions_of(likelihood.to_event(1), y, all_true(300, 30)))["coverage"].mean(0)
    torch.testing.assert_close(found, torch.tensor(LEVELS), atol=0.015, rtol=0)


def test_a_family_without_a_support_is_refused(registry: None) -> None:
    class Unsupported(Geometric):
        support = property(TorchDistribution.support.fget)  # type: ignore[assignment,attr-defined]

    register(Unsupported)(CountsByCdf)
    likelihood = Unsupported(torch.full((1, 2, 3, 1), 0.5), validate_args=False)
    with pytest.raises(
        UsageError, match=r"attribute support, got Unsupported without support; define Unsupported.support"
    ):
        _ = predictions_of(likelihood.to_event(1), torch.ones(2, 3, 1), all_true(2, 3)).pit_bounds


@pytest.mark.parametrize("model", ["ordinal", "generalised_regression", "few_shot_classifier"])
def test_drawn_labels_have_the_type_of_the_labels_of_the_data(model: str) -> None:
    """OrderedLogistic draws integers, also where levels are numbers: guides and checks refuse them."""
    pair = Pair("savi", "count_aware", model=model)
    learner, episodes = pair.learner(), pair.tasks()
    simulated = simulate(learner, episodes, None)[1]
    assert simulated.support_y.dtype == simulated.query_y.dtype == episodes.query_y.dtype
    assert predictive_draws(learner, episodes, 3).posterior.y.dtype == episodes.query_y.dtype
    for training in (False, True):
        ranks = sbc_ranks(learner, episodes, num_draws=9, training=training)
        assert ranks.names[-1] == "log likelihood"


def test_the_nearest_registered_class_is_taken(registry: None) -> None:
    class Narrow(Normal):
        pass

    assert (
        type(predictions_of(Narrow(torch.zeros(1, 1, 1, 1), 1.0), torch.zeros(1, 1, 1), all_true(1, 1)))
        is (FAMILIES[torch.distributions.Normal])
    )
    with pytest.raises(UsageError, match="got Exponential"):
        predictions_of(Exponential(torch.ones(1, 1, 1, 1)), torch.ones(1, 1, 1), all_true(1, 1))


def test_probabilities_of_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"likelihood over classes, got StudentT; use learner\.posterior_predictive"):
        class_log_probs(StudentT(3.0, torch.zeros(1, 1, 1, 1)).to_event(1))


# ---------------------------------------------------------------- the two models


def trained(learner: MetaLearner, batches: Any, steps: int, rate: float = 0.03) -> MetaLearner:
    """Train by Adam with a learning rate that falls to 0."""
    optimiser = torch.optim.Adam(learner.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    torch.manual_seed(1)
    for step in range(steps):
        optimiser.zero_grad()
        learner(batches(step))["loss"].backward()
        optimiser.step()
        schedule.step()
    return learner


def with_outliers(seed: int, num_tasks: int) -> Episodes:
    """Lines through the origin. The noise sd is 0.5, and 5 for a tenth of the labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tasks, 20, 1, generator=generator)
    w = torch.randn(num_tasks, 1, 1, generator=generator)
    noise = torch.where(torch.rand(num_tasks, 20, 1, generator=generator) < 0.1, 5.0, 0.5)
    y = x @ w.mT + noise * torch.randn(num_tasks, 20, 1, generator=generator)
    return Episodes(support_x=x[:, :10], support_y=y[:, :10], query_x=x[:, 10:], query_y=y[:, 10:])


def nll_of(model: str, seed: int) -> Tensor:
    """NLL on 300 new tasks with outliers, for maml trained on such tasks."""
    torch.manual_seed(seed)
    steps = {"num_steps": 3, "step_size": 0.4}
    settings = Pair("maml", "flat", model=model, settings=steps).specification() | {
        "input_shape": [1],
        "num_weights": 1,
    }
    learner = MetaLearner.from_specification(settings)
    trained(learner, lambda step: with_outliers(1000 * seed + step, 32), 100)
    test = with_outliers(1000 * seed + 999, 300)
    _, likelihood = learner.posterior_predictive(test.observed(), 1)
    return scores_of(likelihood, test.query_y, test.query_mask)["nll"]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_robust_model_predicts_better_where_there_are_outliers(seed: int) -> None:
    """Than a Gaussian likelihood with learned noise, of the same guide, steps and tasks."""
    gain = (nll_of("hierarchical_regression", seed) - nll_of("robust_regression", seed)).detach()
    assert gain.mean() - 5 * gain.std() / 300**0.5 > 0.2  # nats per query


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_ordinal_model_finds_the_cutpoints_of_its_simulator(seed: int) -> None:
    """By a bound with 20 draws; the ELBO of mean_field would leave the spread of the slopes out of account."""
    source = Ordinal(num_features=1, cutpoints=(-2.0, -0.5, 1.5), loc=1.0, scale=1.0)
    stream = TaskStream(source.sampler("train", TaskShape(way=1, shot=0, query=20)), seed, "train")
    pair = Pair("mean_field", objective="importance_weighted", model="ordinal")
    settings = pair.specification(particles=20) | {"input_shape": [1], "num_levels": 4}
    learner = MetaLearner.from_specification(settings | {"prior": {"_target_": "models.priors.Gaussian", "scale": 0.5}})
    trained(learner, lambda step: stream.batch(64 * step, 64 * step + 64), 120, rate=0.1)
    found: Any = learner.model
    prior = found.prior(stream.batch(0, 1).observed())
    torch.testing.assert_close(found.cutpoints.detach(), torch.tensor(source.cutpoints), atol=0.1, rtol=0)
    assert prior.mean.item() == pytest.approx(1.0, abs=0.1)
    assert prior.variance.sqrt().item() == pytest.approx(1.0, abs=0.1)


def test_simulated_levels_have_the_probabilities_of_the_model() -> None:
    source = Ordinal(num_features=2, cutpoints=[-1.0, 0.0, 2.0], loc=0.5, scale=1e-6)
    stream = TaskStream(source.sampler("test", TaskShape(way=1, shot=100, query=400)), 0, "test")
    episodes = stream.batch(0, 64)
    likelihood = OrderedLogistic(0.5 * episodes.query_x.sum(-1), torch.tensor(source.cutpoints))
    expected = likelihood.probs.mean((0, 1))
    got = torch.stack([(episodes.query_y == level).float().mean() for level in range(4)])
    torch.testing.assert_close(got, expected, atol=0.01, rtol=0)
    assert episodes.query_y.shape == (64, 400, 1) and source.context == {"num_levels": 4}


@pytest.mark.parametrize("cutpoints", [[], [1.0, 1.0], [2.0, 1.0], [0.0, float("nan")]], ids=str)
def test_cutpoints_that_do_not_rise_are_refused(cutpoints: list[float]) -> None:
    with pytest.raises(UsageError, match=r"increasing cutpoints.*change data\.\*"):
        Ordinal(cutpoints=cutpoints)


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize(
    ("data", "settings", "of_classes"),
    [
        ("ordinal", ("data.num_features=1", "guide=savi", "prior.count_aware=true"), True),
        ("linear_regression", ("model=robust_regression", "guide=mean_field"), False),
    ],
    ids=str,
)
def test_the_models_run_and_are_checked(data: str, settings: tuple[str, ...], of_classes: bool) -> None:
    small = "train.steps=2", "eval.tasks=8", "train.validation_tasks=8", "train.tasks_per_step=4"
    outcome = ran("run", f"data={data}", *settings, *small, "hydra.run.dir=run")
    results = results_of(Path("run"))
    assert "worse than chance" not in outcome.out and ("accuracy" in outcome.out) == of_classes
    missing = OF_NUMBERS if of_classes else OF_CLASSES
    assert all(results[name] is None for name in missing)
    assert all(results[name] is not None for name in (OF_CLASSES | OF_NUMBERS | OF_ALL) - missing)
    ran("calibration", "run=run", "tasks=4", "samples=3", "sbc_tasks=8", "draws=9")
    ran("predictive", "run=run", "tasks=4", "samples=3")
    assert Path("run/calibration/calibration.png").exists() and Path("run/predictive/predictive.png").exists()
    if of_classes:
        assert "expected a likelihood of numeric labels, got class labels" in call("predictive_band", "run").error


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize(("data", "model"), [("ordinal", "ordinal"), ("sinusoid", "robust_regression")])
def test_inner_loops_take_the_models(data: str, model: str) -> None:
    small = "train.steps=2", "eval.tasks=8", "train.validation_tasks=8", "train.tasks_per_step=4"
    ran("run", f"data={data}", f"model={model}", "guide=maml", *small, "hydra.run.dir=run")
    assert (results_of(Path("run"))["by_step"] is None) == (data == "ordinal")


@pytest.mark.usefixtures("empty_folder")
def test_other_data_are_refused_by_the_ordinal_model() -> None:
    error = call("run", "data=linear_regression", "model=ordinal", "guide=mean_field").error
    assert error == "expected data with ordinal labels for model=ordinal, got other data; set data=ordinal"
