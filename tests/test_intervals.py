"""Coverage of the intervals over tasks, groups of tasks, training runs nested in backbones, and of the ECE."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_metabayes import Episodes
from pyro_metabayes.evaluation.batch_scores import GROUP, BatchScores
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.evaluation.expected_calibration_error import calibration_interval, pooled_calibration_error
from pyro_metabayes.evaluation.intervals import NORMAL, SMALL_SAMPLE, Estimate, ci95_of, over_runs, quantile95
from pyro_metabayes.experiments.compare.training_runs import training_runs_row
from pyro_metabayes.experiments.runs.comparison import (
    ci95_of_runs,
    differences_row,
    mean_and_ci95,
    mean_metric,
    over_tasks,
    pairs_of,
    scores_row,
)
from pyro_metabayes.experiments.runs.finished_runs import Run
from tests.pairs import Pair, random_regressions, stream_of


def test_quantiles_are_those_of_students_t() -> None:
    for units in range(2, SMALL_SAMPLE):
        assert quantile95(units) == pytest.approx(stats.t.ppf(0.975, units - 1), abs=1e-4)
    assert quantile95(SMALL_SAMPLE) == quantile95(600) == NORMAL


def test_an_interval_of_few_tasks_is_students() -> None:
    values = np.array([0.2, 0.4, 0.6, 0.8])
    assert ci95_of(values) == pytest.approx(3.1824 * values.std(ddof=1) / 2)
    assert ci95_of(values[:1]) == math.inf
    many = np.arange(40.0)
    assert ci95_of(many) == pytest.approx(1.96 * many.std() / 40**0.5)
    estimate = Estimate.over_tasks(torch.tensor(values))
    assert estimate.ci95.item() == pytest.approx(ci95_of(values))


def test_five_tasks_cover_their_mean_in_95_of_100_cases() -> None:
    noise = np.random.default_rng(0).normal(size=(4000, 5))
    covered = [abs(values.mean()) <= ci95_of(values) for values in noise]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_repeated_tasks_of_a_group_add_no_certainty() -> None:
    """Every group eight times, with equal scores: the interval is that of the groups."""
    values = np.random.default_rng(0).normal(size=20)
    repeated, groups = np.tile(values, 8), np.tile(np.arange(20), 8)
    assert ci95_of(repeated, groups) == pytest.approx(ci95_of(values), rel=1e-9)
    assert ci95_of(repeated) < 0.4 * ci95_of(values)
    alone = np.random.default_rng(1).normal(size=25)
    assert ci95_of(alone, np.arange(25)) == pytest.approx(ci95_of(alone), rel=1e-9)


def test_an_evaluation_knows_the_groups_of_its_tasks() -> None:
    pair = Pair("exact", model="linear_regression")
    episodes = random_regressions(num_tasks=6)
    episodes.classes = torch.tensor([[3], [5], [3], [5], [9], [9]])
    evaluation = evaluate(pair.learner(), stream_of(episodes), EvalSettings(6), progress=False)
    assert evaluation.per_task[GROUP].tolist() == [3, 5, 3, 5, 9, 9]
    expected = ci95_of(evaluation.per_task["nll"], evaluation.per_task[GROUP])
    assert f"+- {expected:.4f}" in str(evaluation)
    plain: Episodes = random_regressions(num_tasks=6)
    assert GROUP not in evaluate(pair.learner(), stream_of(plain), EvalSettings(6), progress=False).per_task


# ---------------------------------------------------------------- training runs


def test_seeds_are_nested_in_backbones() -> None:
    """The unit is the backbone; of a single one, the seed."""
    means, backbones = [1.0, 1.2, 2.0, 2.2, 2.4], ["a", "a", "b", "b", "b"]
    interval = over_runs(means, backbones)
    assert interval.mean == pytest.approx((1.1 + 2.2) / 2) and interval.unit == "backbone"
    assert interval.ci95 == pytest.approx(12.7062 * np.std([1.1, 2.2], ddof=1) / 2**0.5)
    given = over_runs([1.0, 1.2, 1.4], ["a"] * 3)
    assert given.unit == "seed" and given.ci95 == pytest.approx(4.3027 * 0.2 / 3**0.5)
    assert over_runs([1.0], ["a"]).ci95 is None and not over_runs([1.0], ["a"]).excludes_zero


def test_the_interval_over_runs_covers_the_mean_of_all_backbones() -> None:
    """Where backbones differ more than seeds, as here, seeds as units cover less than half of the time."""
    noise = np.random.default_rng(0)
    covered = {"backbone": [], "seed": []}  # type: dict[str, list[bool]]
    names = [name for name in "abcd" for _ in range(3)]
    for _ in range(2000):
        means = noise.normal(size=4).repeat(3) + 0.1 * noise.normal(size=12)
        for unit, of_runs in (("backbone", names), ("seed", ["one"] * 12)):
            interval = over_runs(list(means), of_runs)
            assert interval.ci95 is not None
            covered[unit].append(abs(interval.mean) <= interval.ci95)
    assert np.mean(covered["backbone"]) == pytest.approx(0.95, abs=0.015)
    assert np.mean(covered["seed"]) < 0.85


def run_of(guide: str, seed: int, backbone: str, accuracy: float, nll: float) -> Run:
    noise = np.random.default_rng(seed).normal(size=50)  # the difficulty of the tasks, the same for all guides
    results: dict[str, Any] = {
        "guide": guide, "seed": seed, "data": "d", "split": "test", "way": 5, "shot": 1, "tasks": 50, "query": 15,
        "backbone_fingerprint": backbone, "data_fingerprint": "f", "config": {},
    }  # fmt: skip
    return Run(Path(f"{guide}{seed}"), results, {"accuracy": accuracy + 0.1 * noise, "nll": nll + 0.1 * noise})


def test_better_is_what_the_interval_over_training_runs_says() -> None:
    """Three backbones: a gain on each of them is marked, one that changes its sign is not, however many the tasks."""
    first = [run_of("proto", seed, f"b{seed}", 0.7, 1.0) for seed in range(3)]
    gains = ((0.03, 0.031, 0.032), (0.06, -0.02, 0.05))
    other = [run_of("sib", i, f"b{i}", 0.7 + gains[0][i], 1.0 - gains[1][i]) for i in range(3)]
    row = training_runs_row("d", "sib", other, first)
    assert row["runs"] == "3, with 3 backbones"
    assert row["accuracy gain, points"] == "+3.1 +- 0.2, better"
    assert "better" not in row["NLL difference"] and "+-" in row["NLL difference"]
    assert training_runs_row("d", "proto", first, first)["accuracy gain, points"] == "-"
    worse = training_runs_row("d", "sib", [run_of("sib", i, f"b{i}", 0.6 - 0.01 * i, 1.2) for i in range(3)], first)
    assert worse["accuracy gain, points"].endswith("worse") and worse["NLL difference"].endswith("worse")


def test_runs_of_different_backbones_are_no_pairs() -> None:
    first, other = run_of("proto", 0, "a", 0.7, 1.0), run_of("sib", 0, "b", 0.8, 0.9)
    assert training_runs_row("d", "sib", [other], [first])["accuracy gain, points"] == "-"
    alone = training_runs_row("d", "sib", [run_of("sib", 0, "a", 0.8, 0.9)], [first])
    assert alone["accuracy gain, points"] == "+10.0"  # one run has no interval, and no mark


# ---------------------------------------------------------------- calibration error


def calibrated(tasks: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    """Confidence, hit and count [T, 15, 3] of predictions that are overconfident by `shift`."""
    noise = np.random.default_rng(seed)
    confidence = noise.uniform(0.5, 0.95, size=(tasks, 15))
    hits = noise.uniform(size=confidence.shape) < confidence - shift
    return torch.tensor(np.stack((confidence, hits, np.ones_like(confidence)), -1))


def test_the_floor_is_the_error_of_calibrated_predictions() -> None:
    for tasks in (20, 200):
        errors = [pooled_calibration_error(calibrated(tasks, seed)) for seed in range(200)]
        assert calibration_interval(calibrated(tasks))["ece_floor"] == pytest.approx(np.mean(errors), rel=0.1)


def test_the_interval_of_the_calibration_error_is_its_spread() -> None:
    errors = [pooled_calibration_error(calibrated(100, seed, shift=0.1)) for seed in range(200)]
    widths = [calibration_interval(calibrated(100, seed, shift=0.1))["ece_ci95"] for seed in range(10)]
    assert np.mean(widths) == pytest.approx(1.96 * np.std(errors), rel=0.2)


def test_masked_queries_count_in_neither() -> None:
    values = calibrated(30)
    values[:, 10:, 2] = 0
    changed = values.clone()
    changed[:, 10:, :2] = 0.123
    assert calibration_interval(values) == calibration_interval(changed)
    assert calibration_interval(values)["ece_floor"] > calibration_interval(calibrated(30))["ece_floor"]


def test_repeated_tasks_of_a_group_do_not_narrow_the_interval_of_the_calibration_error() -> None:
    """Every group eight times: the interval is that of the groups, by Student's t below 30 of them."""
    once = calibrated(20, shift=0.1)
    groups = torch.arange(20).repeat(8)
    repeated = calibration_interval(once.repeat(8, 1, 1), groups)["ece_ci95"]
    assert repeated == pytest.approx(calibration_interval(once)["ece_ci95"], rel=1e-9)
    assert calibration_interval(once.repeat(8, 1, 1))["ece_ci95"] < 0.5 * repeated
    assert calibration_interval(once, torch.zeros(20))["ece_ci95"] == math.inf


def test_the_interval_of_few_tasks_is_wider_by_students_t() -> None:
    """The spread of the error over 400 sets of 10 tasks, against the mean of the half widths."""
    errors = [pooled_calibration_error(calibrated(10, seed, shift=0.2)) for seed in range(400)]
    widths = [calibration_interval(calibrated(10, seed, shift=0.2))["ece_ci95"] for seed in range(40)]
    assert np.mean(widths) == pytest.approx(quantile95(10) * np.std(errors), rel=0.2)


def test_an_evaluation_resamples_groups_for_the_calibration_error() -> None:
    """Binary labels of groups that are drawn twice: the interval is that of the groups."""
    values, groups = calibrated(12, shift=0.1), torch.arange(6).repeat(2)
    scores = {"ece": values, "nll": torch.zeros(12)}
    evaluation = BatchScores(scores, {}, groups=groups).evaluation({})
    assert evaluation.metrics["ece_ci95"] == calibration_interval(values, groups)["ece_ci95"]
    assert evaluation.metrics["ece_ci95"] != calibration_interval(values)["ece_ci95"]


def test_tasks_count_once_for_all_backbones() -> None:
    """Backbones that score the same tasks are averaged per task; each is paired with itself."""
    first = [run_of("proto", seed, backbone, 0.7, 1.0) for seed in range(2) for backbone in "ab"]
    noisy = [run_of("sib", seed, backbone, 0.75, 0.9) for seed in range(2) for backbone in "ab"]
    for run, other in zip(noisy, first, strict=True):  # gains differ between tasks
        gain = np.random.default_rng(int(run.results["seed"]) + 9).normal(size=50)
        run.per_task["accuracy"][:] = other.per_task["accuracy"] + 0.05 + 0.1 * gain
    every, one = differences_row("d", "sib", noisy, first), differences_row("d", "sib", noisy[::2], first[::2])
    assert every["accuracy gain, points"] == one["accuracy gain, points"]
    first[3].per_task["accuracy"][:] += 0.02
    averaged = over_tasks((run, run.per_task["accuracy"]) for run in first)
    assert (
        averaged.tolist()[50:] == pytest.approx((first[2].per_task["accuracy"] + 0.01).tolist())
        and len(averaged) == 100
    )
    pairs = pairs_of("accuracy", noisy, first)
    assert len(pairs) == 4 and all(run.backbone == other.backbone for run, other in pairs)
    assert len(pairs_of("accuracy", [run_of("sib", 0, "c", 0.8, 1.0)], first)) == 1  # the tasks are the same


def test_metrics_of_runs_have_the_weights_of_their_tasks() -> None:
    """Two backbones on one set of tasks and one on another: the sets of tasks count equally, for tasks and runs."""
    scored = [run_of("sib", *of) for of in ((0, "a", 0.7, 1.0), (0, "b", 0.7, 2.0), (1, "a", 0.7, 5.0))]
    means = [{"nll": float(run.per_task["nll"].mean()), "elbo": None} for run in scored]
    runs = [replace(run, results={**run.results, **mean}) for run, mean in zip(scored, means, strict=True)]
    assert mean_metric(runs, "nll") == pytest.approx(mean_and_ci95(runs, "nll")[0])
    assert mean_metric(runs, "nll") == pytest.approx((1.0 + 2.0) / 4 + 5.0 / 2, abs=0.05)
    assert mean_metric(runs, "elbo") is None and mean_metric(runs, "ece_floor") is None


def test_the_interval_of_metrics_of_runs_is_that_of_their_tasks() -> None:
    """Runs on other tasks narrow the interval, as if their tasks were of one run; runs on the same tasks do not."""
    others = [run_of("sib", seed, "a", 0.7, 1.0) for seed in range(4)]
    widths = [ci95_of(run.per_task["accuracy"]) for run in others]
    assert ci95_of_runs(others, widths) == pytest.approx(mean_and_ci95(others, "accuracy")[1], rel=0.05)
    same = [run_of("sib", 0, backbone, 0.7, 1.0) for backbone in "abcd"]
    assert ci95_of_runs(same, [0.03] * 4) == pytest.approx(0.03)


def test_the_rmse_is_that_of_the_squared_errors_whose_differences_are_compared() -> None:
    """Two seeds with RMSEs 0.6 and 1.4, and two with 1.0: equal on average, but not in squared error."""

    def runs(*roots: float) -> list[Run]:
        unset = dict.fromkeys(("ece", "elbo", "kl", "collapsed", "steps", "transductive"))
        of_seeds = [run_of("mc", seed, "a", 0.0, 1.0) for seed in range(len(roots))]
        return [
            replace(
                run,
                results={**run.results, **unset},
                per_task={"nll": run.per_task["nll"], "mse": np.full(50, root**2)},
            )
            for run, root in zip(of_seeds, roots, strict=True)
        ]

    first, other = runs(1.0, 1.0), runs(0.6, 1.4)
    assert [scores_row("d", "mc", row)["RMSE"] for row in (first, other)] == ["1.000", "1.077"]
    assert differences_row("d", "mc", other, first)["squared error difference"].startswith("+0.1600 ")  # 1.077^2 - 1
