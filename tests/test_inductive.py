"""Do the inductive baselines predict as scikit-learn, or as their papers' algorithms?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pyro_metabayes import Episodes, MetaLearner, Observed, UsageError
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.sources.features import load
from pyro_metabayes.data.sources.gaussian_features import GaussianFeatures
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.guides import simple_shot
from pyro_metabayes.inference.laplace import LowRankPrecision
from tests.commands import call, on_features, ran
from tests.pairs import WAY, Pair, random_tasks

TASKS = 3
REGRESSION = Pair("logistic_regression", "gaussian", "linear", "monte_carlo")


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


# ---------------------------------------------------------------- logistic regression


def regression(scale: float, features: int, **settings: Any) -> MetaLearner:
    """A learner with a head of scale 2 and the prior N(0, scale^2) for each weight."""
    pair = replace(REGRESSION, settings=settings)
    learner = MetaLearner.from_specification(pair.specification(features=features))
    with torch.no_grad():
        learner.model.prior_over_weights.log_scale.fill_(np.log(scale))
    return learner


def mode(learner: MetaLearner, observed: Observed) -> Tensor:
    return learner.guide.posterior(observed).mean


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("shot", [1, 5])
def test_logistic_regression_is_scikit_learns(shot: int, scale: float) -> None:
    """The inverse regularisation is C = (2 scale)^2; the offset is the weight of a feature 1, with the same prior."""
    episodes = random_tasks(TASKS, shot=shot, features=20)
    got = 2 * mode(regression(scale, 20), episodes.observed()).detach()
    for task in range(TASKS):
        x = np.concatenate((episodes.support_x[task].numpy(), np.ones((WAY * shot, 1))), axis=1)
        reference = LogisticRegression(C=(2 * scale) ** 2, fit_intercept=False, tol=1e-12, max_iter=10_000)
        reference.fit(x, episodes.support_y[task].numpy())
        np.testing.assert_allclose(got[task].numpy(), reference.coef_, atol=1e-4 * max(1, scale))


def test_newton_steps_have_converged() -> None:
    """The gradient of the log posterior vanishes, with masked points and another prior for each weight."""
    observed = random_tasks(TASKS, shot=4, features=20).observed()
    observed.support_mask = torch.rand(observed.support_mask.shape) < 0.7
    learner = replace(REGRESSION).learner(features=20)
    w = mode(learner, observed).detach().requires_grad_()
    log_p = learner.model.likelihood(w, observed.support_x, observed).log_prob(observed.support_y)
    ((log_p * observed.support_mask).sum() + learner.model.prior(observed).log_prob(w).sum()).backward()
    assert w.grad is not None and w.grad.abs().max() < 1e-6


def test_the_gradient_of_the_mode_is_that_of_implicit_differentiation() -> None:
    """Against finite differences of the whole algorithm in the scale of the prior and of the head."""
    episodes, learner = random_tasks(TASKS, shot=3), regression(0.5, 5)
    direction = torch.randn(TASKS, WAY, 6)
    parameters = [learner.model.prior_over_weights.log_scale, learner.model.head.scale]

    def value() -> Tensor:
        return (mode(learner, episodes.observed()) * direction).sum()

    for parameter, gradient in zip(parameters, torch.autograd.grad(value(), parameters), strict=True):
        step, values = 1e-5, []
        with torch.no_grad():
            for sign in (1, -2):
                parameter.add_(sign * step)
                values.append(value())
            parameter.add_(step)
        torch.testing.assert_close(gradient.sum(), (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-7)


def test_the_laplace_approximation_has_the_curvature_of_the_log_posterior() -> None:
    observed, learner = random_tasks(1, shot=2).observed(), regression(0.5, 5, posterior="laplace")
    q = learner.guide.posterior(observed)
    assert isinstance(q, LowRankPrecision)

    def log_posterior(w: Tensor) -> Tensor:
        w = w.view(1, WAY, 6)
        log_p = learner.model.likelihood(w, observed.support_x, observed).log_prob(observed.support_y)
        return log_p.sum() + Normal(0.0, 0.5).log_prob(w).sum()

    precision = -torch.func.hessian(log_posterior)(q.mean.detach().flatten())
    torch.testing.assert_close(q.variance.flatten(), precision.inverse().diagonal(), rtol=1e-6, atol=0)


def test_a_task_without_support_has_the_prior_mean() -> None:
    observed, learner = random_tasks(shot=0).observed(), REGRESSION.learner()
    torch.testing.assert_close(mode(learner, observed), learner.model.prior(observed).mean)


# ---------------------------------------------------------------- discriminant analysis


@pytest.mark.parametrize("shrinkage", [0.1, 0.7])
def test_lda_is_scikit_learns(shrinkage: float) -> None:
    """Whose target is the mean variance of the task, given to the guide here."""
    episodes = random_tasks(TASKS, shot=5, features=20)
    learner = Pair("lda", "flat", "linear").learner(features=20)
    for task in range(TASKS):
        x, y = episodes.support_x[task].numpy(), episodes.support_y[task].numpy()
        within = x - np.stack([x[y == c].mean(0) for c in range(WAY)])[y]
        with torch.no_grad():
            learner.guide.log_variance.fill_(np.log(within.var(0).mean()))
            learner.guide.shrinkage_logit.copy_(torch.tensor(shrinkage).logit())
        w = mode(learner, episodes.observed())[task].detach().numpy()
        reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y)
        np.testing.assert_allclose(w[:, :-1], reference.coef_, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(w[:, -1], reference.intercept_ + np.log(WAY), rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------- SimpleShot


def shot_of(mean: np.ndarray, x: np.ndarray, y: np.ndarray, query: np.ndarray) -> np.ndarray:
    """CL2N: centre, scale to unit length, nearest centroid (section 3)."""
    x, query = ((z - mean) / np.linalg.norm(z - mean, axis=1, keepdims=True) for z in (x, query))
    centroids = np.stack([x[y == c].mean(0) for c in np.unique(y)])
    return ((query[:, None] - centroids) ** 2).sum(-1).argmin(1)


def features_of(split: str, shot: int) -> Episodes:
    source = GaussianFeatures(num_features=256, separation=0.35)
    return source.sampler(split, TaskShape(way=5, shot=shot, query=15))(torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shot", [1, 5])
def test_simple_shot_predicts_as_its_algorithm(shot: int) -> None:
    torch.set_default_dtype(torch.float32)
    mean, episodes = features_of("train", 5).support_x.mean((0, 1)), features_of("test", shot).tasks(slice(0, 20))
    specification = Pair("simple_shot", "flat", "linear").specification(way=5, features=256)
    learner = MetaLearner.from_specification(specification)
    assert isinstance(learner.guide, simple_shot.Guide)
    plain = learner.guide.posterior(episodes.observed()).mean
    learner.guide.centre_at(mean)
    with torch.no_grad():
        w, likelihood = learner.posterior_predictive(episodes.observed(), 1)
    assert not torch.allclose(w[0], plain)
    arrays = (episodes.support_x.numpy(), episodes.support_y.numpy(), episodes.query_x.numpy())
    expected = np.stack([shot_of(mean.numpy(), *task) for task in zip(*arrays, strict=True)])
    agreement = (likelihood.probs[0].argmax(-1) == torch.as_tensor(expected)).double().mean()
    assert agreement == 1 if shot == 1 else agreement >= 0.99


def test_a_run_centres_at_the_mean_training_feature(features: Path, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    ran("run", *on_features(features), "guide=simple_shot", f"hydra.run.dir={tmp_path}/run")
    guide = MetaLearner.load(tmp_path / "run").guide
    assert isinstance(guide, simple_shot.Guide)
    source = BankSampler(load(str(features)))
    block = source.sampler("train", TaskShape(way=5, shot=1, query=15))(torch.Generator().manual_seed(1))
    points = block.tasks(slice(0, BLOCK)).query_x
    cosine = torch.cosine_similarity(guide.centre, points.mean((0, 1)), dim=0)
    assert cosine > 0.8, "another mean than that of the training classes"


def test_a_mean_of_features_that_change_is_refused(features: Path, tmp_path: Path) -> None:
    folder = f"hydra.run.dir={tmp_path}/run"
    error = call("run", *on_features(features), "guide=simple_shot", "backbone.frozen=false", folder).error
    assert "expected a frozen backbone for guide=simple_shot" in error and "\n" not in error


@pytest.mark.parametrize(
    ("guide", "prior", "settings"),
    [
        ("logistic_regression", "gaussian", {"posterior": "exact"}),
        ("logistic_regression", "gaussian", {"num_steps": 0}),
        ("lda", "flat", {"shrinkage": 1.0}),
        ("lda", "flat", {"variance": 0.0}),
    ],
)
def test_settings_out_of_range_are_refused(guide: str, prior: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"expected .*guide\."):
        Pair(guide, prior, "linear", settings=settings).learner()


@pytest.mark.parametrize("guide", ["logistic_regression", "lda", "simple_shot"])
def test_another_head_is_refused_in_one_line(guide: str) -> None:
    with pytest.raises(UsageError, match=f"expected head=linear for guide={guide}, got head=cosine; set head=linear"):
        Pair(guide, "gaussian", "cosine").learner()


def test_logistic_regression_needs_a_gaussian_prior() -> None:
    learner = Pair("logistic_regression", "mixture", "linear").learner()
    with pytest.raises(UsageError, match="expected a diagonal Gaussian prior for guide=logistic_regression"):
        learner.guide.posterior(random_tasks().observed())
