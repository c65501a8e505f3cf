"""A new score is one entry of the registry, and appears in every result that the entry names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_metabayes import Episodes
from pyro_metabayes.evaluation.batch_scores import Evaluation
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate, score_batch
from pyro_metabayes.evaluation.score import Score, Weights
from pyro_metabayes.evaluation.scores import SCORES, logged_scores, scores_of
from pyro_metabayes.likelihoods.classes import BaseNovelPredictions, ClassPredictions
from pyro_metabayes.likelihoods.numbers import RealPredictions
from pyro_metabayes.prediction.averages import masked_mean
from pyro_metabayes.seeding import noise_of
from pyro_metabayes.training.step_metrics import LOGGED_SAMPLES, measure, metric_means
from tests.commands import lines_of, on_features, ran, results_of
from tests.pairs import BASE, Pair, stream_of

CLASSES = Pair("savi", "conditional")
NUMBERS = Pair("exact", model="linear_regression")
STEPS = Pair("sib", model="linear_regression", settings={"initialisation": "global", "num_steps": 2})
WITH_BASE = Pair("sib", "mixture", model="lwof")


def of_label(predictions: ClassPredictions) -> Tensor:
    """Mean probability of the right class [T]."""
    return masked_mean(predictions.log_prob.exp().mean(0), predictions.mask)


def absolute_error(predictions: RealPredictions) -> Tensor:
    """Mean absolute error of the mean prediction [T]."""
    return masked_mean((predictions.mean.mean(0) - predictions.labels).abs().mean(-1), predictions.mask)


def share_of_novel(predictions: BaseNovelPredictions) -> Tensor:
    """Share of novel classes among the queries [T]."""
    return masked_mean(predictions.is_novel.to(predictions.log_probs.dtype), predictions.mask)


@pytest.fixture
def registry() -> Iterator[list[Score[Any]]]:
    """The registry. It is restored afterwards."""
    before = list(SCORES)
    yield SCORES
    SCORES[:] = before


def evaluated(pair: Pair, episodes: Episodes) -> Evaluation:
    return evaluate(pair.learner(), stream_of(episodes), EvalSettings(40, samples=5), seed=0, progress=False)


def logged(pair: Pair) -> dict[str, Any]:
    """The metrics of a logged step."""
    return metric_means(*measure(pair.learner(), pair.tasks(), seed=0))


def test_a_new_score_is_in_an_evaluation_and_in_a_logged_step(registry: list[Score[Any]]) -> None:
    registry.append(Score("of_label", of_label, (ClassPredictions,), "share", interval=True, logged=5))
    got = evaluated(CLASSES, CLASSES.tasks(40))
    values = got.per_task["of_label"]
    assert values.shape == (40,) and values.std() > 0
    assert got.metrics["of_label"]["mean"] == pytest.approx(values.mean())
    assert got.metrics["of_label"]["ci95"] == pytest.approx(1.96 * values.std() / 40**0.5)
    learner, episodes = CLASSES.learner(), CLASSES.tasks()
    line = logged(CLASSES)
    assert list(line)[:5] == ["accuracy", "nll", "mse", "mutual_information", "of_label"]
    batch = measure(learner, episodes, seed=0)[0]
    assert line["of_label"] == pytest.approx(batch["of_label"].mean().item()) and 0 < line["of_label"] < 1
    numbers = evaluated(NUMBERS, NUMBERS.tasks(40))
    assert numbers.metrics["of_label"] is None and "of_label" not in numbers.per_task
    assert logged(NUMBERS)["of_label"] is None


@pytest.mark.usefixtures("empty_folder")
def test_a_new_score_is_in_every_file_of_a_run(registry: list[Score[Any]], features: Path) -> None:
    registry.append(Score("of_label", of_label, (ClassPredictions,), "share", logged=5))
    ran("run", *on_features(features), "guide=proto", "train.log_every=1", "hydra.run.dir=run")
    value = results_of(Path("run"))["of_label"]
    with np.load("run/tasks.npz") as archive:
        assert value == pytest.approx(archive["of_label"].mean()) and 0 < value < 1
    assert [0 < line["of_label"] < 1 for line in lines_of(Path("run"))] == [True, True]


def test_a_new_score_of_numbers_is_given_after_each_inner_step(registry: list[Score[Any]]) -> None:
    registry.append(Score("absolute_error", absolute_error, (RealPredictions,), "unit of y", by_step=4))
    got = evaluated(STEPS, STEPS.tasks(40)).metrics
    assert list(got["by_step"]) == ["0", "1", "2"]
    for means in got["by_step"].values():
        assert list(means) == ["mse", "nll", "coverage90", "absolute_error"]
        assert 0 < means["absolute_error"] ** 2 <= means["mse"]  # Jensen's inequality
    assert "absolute_error" not in logged(STEPS)


def with_base(episodes: Episodes) -> Episodes:
    """The same tasks, in which every other query has a base class."""
    labels = episodes.query_y.clone()
    labels[:, ::2] = episodes.num_classes + torch.arange(labels[:, ::2].shape[1]) % BASE
    return replace(episodes, query_y=labels)


def test_a_new_score_of_base_and_novel_classes_is_logged_too(registry: list[Score[Any]]) -> None:
    registry.append(Score("share_of_novel", share_of_novel, (BaseNovelPredictions,), "share", logged=5))
    learner, episodes = WITH_BASE.learner(), with_base(WITH_BASE.tasks())
    assert metric_means(*measure(learner, episodes, seed=0))["share_of_novel"] == pytest.approx(0.5)
    assert logged(CLASSES)["share_of_novel"] is None


def test_a_score_under_the_mean_weights_is_that_of_one_sample(registry: list[Score[Any]]) -> None:
    registry.append(Score("error_of_mean", absolute_error, (RealPredictions,), "unit of y", Weights.MEAN, logged=5))
    learner, episodes = NUMBERS.learner(), NUMBERS.tasks()
    with torch.no_grad():
        mean = learner.guide.posterior(episodes.observed()).mean
        error = (learner.model.outputs(mean, episodes.query_x) - episodes.query_y).abs().mean(-1)
    expected = masked_mean(error, episodes.query_mask)
    torch.testing.assert_close(measure(learner, episodes, seed=0)[0]["error_of_mean"], expected)


@pytest.mark.parametrize(("pair", "number"), [(CLASSES, 4), (NUMBERS, 1), (WITH_BASE, 8)], ids=str)
def test_shares_lie_between_zero_and_one(pair: Pair, number: int) -> None:
    episodes = with_base(pair.tasks()) if pair is WITH_BASE else pair.tasks()
    with torch.no_grad():
        batch = score_batch(pair.learner(), episodes, samples=5)
    shares = [score.name for score in SCORES if score.unit == "share" and score.name in batch.scores]
    assert len(shares) == number
    for name in shares:
        assert 0 <= batch.scores[name].min() <= batch.scores[name].max() <= 1, name


def test_every_score_has_a_name_of_its_own() -> None:
    names = [score.name for score in SCORES]
    assert len(set(names)) == len(names)
    assert [score.name for score in logged_scores()] == ["accuracy", "nll", "mse", "mutual_information"]


def test_logged_scores_are_those_of_the_predictions() -> None:
    """The same draws, the same scores as `scores_of`, which a table of exact inference uses."""
    learner, episodes = CLASSES.learner(), CLASSES.tasks()
    with noise_of(3), torch.no_grad():
        likelihood = learner.predictive(episodes.observed(), LOGGED_SAMPLES)
    expected = scores_of(likelihood, episodes.query_y, episodes.query_mask)
    got, _ = measure(learner, episodes, seed=3)
    for name in ("accuracy", "nll", "mutual_information"):
        np.testing.assert_array_equal(got[name].numpy(), expected[name].numpy())
