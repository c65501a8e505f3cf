"""Temperature scaling and ensembles, compared with known temperatures and explicit averages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical

from pyro_metabayes import UsageError
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.recalibration.temperature import SMALLEST, fitted_temperature, scaled
from tests.commands import call, on_features, ran, results_of
from tests.pairs import Pair, random_regressions, random_tasks

PAIR = Pair("proto", "flat")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    """Labels are drawn from the predictions at that temperature."""
    log_probs = (3 * torch.randn(40_000, 4)).log_softmax(-1)
    labels = Categorical(logits=scaled(log_probs, temperature)).sample()
    assert fitted_temperature(log_probs, labels) == pytest.approx(temperature, rel=0.05)


def test_predictions_without_errors_have_a_finite_temperature() -> None:
    log_probs = torch.tensor([[-0.1, -2.35], [-0.2, -1.7]])
    assert fitted_temperature(log_probs, torch.tensor([0, 0])) < 0.1  # as far as rounding shows
    assert fitted_temperature(log_probs, torch.tensor([1, 1])) == pytest.approx(1 / SMALLEST, rel=1e-3)
    impossible = torch.tensor([[0.0, -torch.inf]] * 3)
    assert fitted_temperature(impossible, torch.tensor([0, 0, 1])) > 1


def test_scaling_moves_no_decision_and_one_changes_nothing() -> None:
    log_probs = torch.randn(50, 3).log_softmax(-1)
    torch.testing.assert_close(scaled(log_probs, 1.0), log_probs)
    assert torch.equal(scaled(log_probs, 7.0).argmax(-1), log_probs.argmax(-1))


def test_an_overconfident_learner_is_cooled_on_validation_tasks() -> None:
    learner = PAIR.learner()
    learner.model.head.scale.data.fill_(200.0)  # type: ignore[union-attr, operator]
    test, val = random_tasks(num_tasks=40, seed=1), random_tasks(num_tasks=40, seed=2)
    plain = evaluate(learner, test, EvalSettings(40), progress=False).metrics
    scaled_ = evaluate(learner, test, EvalSettings(40, temperature=True), progress=False, validation=val).metrics
    assert plain["temperature"] is None and scaled_["temperature"] > 1.5
    assert scaled_["nll"] < plain["nll"] and scaled_["ece"] < plain["ece"]
    assert scaled_["accuracy"] == plain["accuracy"] and scaled_["joint_nll"] is None


def test_a_temperature_needs_validation_tasks_and_classes() -> None:
    with pytest.raises(UsageError, match=r"expected validation tasks for eval\.temperature=true"):
        evaluate(PAIR.learner(), random_tasks(), EvalSettings(3, temperature=True), progress=False)
    numbers = random_regressions(num_tasks=3)
    regression = Pair("exact", model="linear_regression").learner()
    with pytest.raises(UsageError, match="expected class labels for temperature scaling and ensembles"):
        evaluate(regression, numbers, EvalSettings(3, temperature=True), progress=False, validation=numbers)
    with pytest.raises(UsageError, match=r"expected eval\.temperature=false and .* for eval\.joint=true"):
        EvalSettings(joint=True, temperature=True)


def test_an_ensemble_averages_probabilities() -> None:
    learners = [PAIR.learner(seed) for seed in (0, 1)]
    for learner, scale in zip(learners, (1.0, 8.0), strict=True):
        learner.model.head.scale.data.fill_(scale)  # type: ignore[union-attr, operator]
    episodes = random_tasks(num_tasks=5)
    probs = []
    for learner in learners:
        with torch.no_grad():
            w = learner.guide.posterior(episodes.observed()).mean
            probs.append(learner.model.likelihood(w, episodes.query_x, episodes).probs)  # type: ignore[attr-defined]
    expected = -((probs[0] + probs[1]) / 2).gather(-1, episodes.query_y.unsqueeze(-1)).log().mean().item()
    metrics = evaluate(learners[0], episodes, EvalSettings(5), progress=False, others=learners[1:]).metrics
    assert metrics["nll"] == pytest.approx(expected, rel=1e-5) and metrics["learners"] == 2
    assert metrics["mutual_information"] > 0 and metrics["kl"] is None and metrics["collapsed"] is None


def test_an_ensemble_of_equal_learners_is_the_learner() -> None:
    learner, episodes = PAIR.learner(), random_tasks(num_tasks=5)
    one, two = (
        evaluate(learner, episodes, EvalSettings(5), progress=False, others=o).metrics for o in ((), (learner,))
    )
    assert two["nll"] == pytest.approx(one["nll"], rel=1e-6) and two["accuracy"] == one["accuracy"]


@pytest.mark.usefixtures("empty_folder")
def test_evaluate_has_both_and_compare_has_them_as_rows(features: Path) -> None:
    for seed in (0, 1):
        ran("run", *on_features(features), "guide=proto", f"seed={seed}", f"hydra.run.dir=proto{seed}")
    ran("evaluate", "proto0", "eval.temperature=true")
    ran("evaluate", "proto0", "eval.ensemble=[proto1]")
    scaled_ = results_of(Path("proto0/evaluations/eval.temperature=true"))
    together = results_of(Path("proto0/evaluations/eval.ensemble=[proto1]"))
    assert scaled_["temperature"] > 0 and together["learners"] == 2
    assert "eval.temperature=True" in ran("compare", "proto0").out
    error = call("run", *on_features(features), "eval.ensemble=[proto1]", "hydra.run.dir=again").error
    assert error.startswith("expected eval.ensemble only in experiments.evaluate")
