"""Scores of a learner on a stream of tasks, with intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor
from tqdm import tqdm

from pyro_metabayes.data.stream import KnownTruth, TaskStream
from pyro_metabayes.diagnostics import collapse
from pyro_metabayes.diagnostics.information import information
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.inner_steps import means_by_step, scores_by_step, stepping_part
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.evaluation.scores import base_novel_scores, calibration_error, confidence_and_hits, scores_of
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.seeding import noise_of

BATCH = 32  # tasks at once; larger batches leave the cache and gain nothing
MOST_NUMBERS = 2**25  # predictions per batch: with thousands of classes a batch has fewer tasks
# Scores of each task. Scores of the other kind of label are null in results.json and absent from tasks.npz.
SCORES = (
    *("accuracy", "accuracy_of_mean", "accuracy_of_sample", "nll", "joint_nll", "brier", "mutual_information"),
    *("mse", "oracle_mse", "coverage90"),
    *("novel", "base", "both", "base_over_all"),
)
INTERVAL_SCORES = ("accuracy", "novel", "base", "both", "base_over_all")  # reported as {mean, ci95}
BY_STEP = "by_step"
QUERY_VALUES = ("confidence", "right", "query_mask")  # one value per query


@dataclass
class EvalSettings:
    """Settings of an evaluation."""

    tasks: int = 600
    samples: int = 30  # draws of w per task; a point estimate needs one
    split: str = "test"
    information: bool = False  # information bounds, from tasks with two query sets: docs/information.md

    def __post_init__(self) -> None:
        if self.tasks < 2 or self.samples < 1:
            raise UsageError(f"expected eval.tasks >= 2 and eval.samples >= 1, got {self.tasks} and {self.samples}")


@dataclass(frozen=True)
class Evaluation:
    """Metrics over all tasks, and the scores of each task for paired comparisons."""

    metrics: dict[str, Any]
    per_task: dict[str, np.ndarray]


@torch.no_grad()
def evaluate(
    learner: MetaLearner,
    stream: TaskStream,
    settings: EvalSettings,
    seed: int,
    progress: bool = True,
    truth: KnownTruth | None = None,
    doubled: TaskStream | None = None,
) -> Evaluation:
    """Scores of the posterior predictive on tasks 0, 1, ... of the stream; deterministic given the seed.

    elbo, kl and posterior_sd are computed from training_posterior, which alone bounds the evidence; they are null for
    a point estimate or a flat prior. All other scores are computed from `posterior`, which sees no query label.

    Args:
        truth: the exact posterior of simulated tasks. With it the fit is measured too (`against_truth`), and
            oracle_mse is the mse of the exact posterior mean.
        doubled: tasks with twice the queries, for the bounds that settings.information asks for; null without it.
    """
    gathered: dict[str, list[Tensor]] = {}
    started = time.perf_counter()
    batches, stepping = list(_batches(stream, settings)), stepping_part(learner)
    bar = tqdm(batches, desc=f"evaluate on {settings.split}", unit="batch", disable=None if progress else True)
    # Without Pyro's validation a diverging inner loop yields a poor score, not an exception.
    with noise_of(seed), pyro.validation_enabled(False):
        for start, stop in bar:
            episodes = learner.featured(stream.batch(start, stop))
            batch = score_batch(learner, episodes, settings.samples, truth)
            if stepping is not None and "mse" in batch:
                batch[BY_STEP] = scores_by_step(learner, stepping.num_steps, episodes, settings.samples)
            for name, value in batch.items():
                gathered.setdefault(name, []).append(value.cpu())
        bounds = None if doubled is None else _information(learner, doubled, settings)
    seconds = time.perf_counter() - started
    values = {name: torch.cat(parts) for name, parts in gathered.items()}
    metrics = _metrics(values) | {"information": bounds, "seconds": seconds} | _collapse_metrics(values)
    return Evaluation(metrics, {name: values[name].numpy() for name in values if name in SCORES})


def _information(learner: MetaLearner, stream: TaskStream, settings: EvalSettings) -> dict[str, Any] | None:
    batches = (stream.batch(start, stop) for start, stop in _batches(stream, settings))
    return information(learner, batches, settings.samples)


def _batches(stream: TaskStream, settings: EvalSettings) -> Iterator[tuple[int, int]]:
    """(start, stop) of the tasks of each batch."""
    first = stream.batch(0, 1)
    numbers = settings.samples * first.query_x.shape[1] * max(first.num_classes, 1)
    batch_size = max(1, min(BATCH, MOST_NUMBERS // numbers))
    for start in range(0, settings.tasks, batch_size):
        yield start, min(start + batch_size, settings.tasks)


def score_batch(
    learner: MetaLearner, episodes: Episodes, samples: int, truth: KnownTruth | None = None
) -> dict[str, Tensor]:
    """Scores and spreads of each task [T]; in classification also QUERY_VALUES [T * Q]."""
    observed, mask = episodes.observed(), episodes.query_mask
    posterior = learner.guide.posterior(observed)
    _, likelihood = learner.predictive_under(posterior, observed, samples)
    batch = scores_of(likelihood, episodes.query_y, mask)
    if "accuracy" in batch:
        batch |= _classification_only(learner, episodes, posterior, likelihood, batch["accuracy"])
    sees_labels = learner.guide.sees_query_labels  # otherwise both posteriors are equal
    training = learner.guide.training_posterior(episodes) if sees_labels else posterior
    batch |= collapse.prior_spread(learner, observed, samples)
    batch |= collapse.posterior_spread(learner, episodes, training)
    if truth is not None:
        batch |= _fit_to_truth(learner, episodes, posterior, truth)
        if sees_labels:
            fit = collapse.against_truth(training, truth.truth(episodes.pooled()))
            batch |= {f"training_{name}": fit[name] for name in ("fit_variance", "true_variance") if name in fit}
    return batch


def _fit_to_truth(
    learner: MetaLearner, episodes: Episodes, posterior: TorchDistribution, truth: KnownTruth
) -> dict[str, Tensor]:
    """The fit of `posterior` to the exact posterior, and the mse of the exact posterior mean [T]."""
    observed = episodes.observed()
    exact = truth.truth(observed)
    oracle = learner.model.likelihood(exact.mean.unsqueeze(0), observed.query_x, observed)
    oracle_mse = scores_of(oracle, episodes.query_y, episodes.query_mask)["mse"]
    return collapse.against_truth(posterior, exact) | {"oracle_mse": oracle_mse}


def _classification_only(
    learner: MetaLearner, episodes: Episodes, posterior: TorchDistribution, likelihood: Any, accuracy: Tensor
) -> dict[str, Tensor]:
    """Scores of classification alone [T], and QUERY_VALUES [T * Q]."""
    observed, mask, labels = episodes.observed(), episodes.query_mask, episodes.query_y
    query_values = *confidence_and_hits(likelihood.logits.exp().mean(0), labels), mask
    batch = {name: value.flatten() for name, value in zip(QUERY_VALUES, query_values, strict=True)}
    batch["accuracy_of_mean"] = accuracy  # the mean of a point estimate is the estimate
    if not isinstance(innermost(posterior), Delta):
        of_mean = learner.model.likelihood(posterior.mean.unsqueeze(0), observed.query_x, observed)
        batch["accuracy_of_mean"] = scores_of(of_mean, labels, mask)["accuracy"]
    if likelihood.logits.shape[-1] > episodes.num_classes:  # base classes follow the classes of the task
        batch |= base_novel_scores(likelihood.logits, labels, mask, episodes.num_classes)
    return batch


def _metrics(values: dict[str, Tensor]) -> dict[str, Any]:
    """Means of SCORES over tasks, calibration error over queries, scores by step; null where a score is absent."""
    ece = None
    if "confidence" in values:
        mask = values["query_mask"]
        ece = calibration_error(values["confidence"][mask], values["right"][mask])
    return _means(values) | {"ece": ece, BY_STEP: means_by_step(values.get(BY_STEP))}


def _collapse_metrics(values: dict[str, Tensor]) -> dict[str, Any]:
    """The collapse metrics of all values that are spreads."""
    no_spread = {*SCORES, *QUERY_VALUES, BY_STEP}
    return collapse.summary({name: value for name, value in values.items() if name not in no_spread})


def _means(scores: dict[str, Tensor]) -> dict[str, Any]:
    """Means over tasks; null for the scores of another kind of label."""
    mean: dict[str, Any] = {name: scores[name].mean().item() if name in scores else None for name in SCORES}
    mean["rmse"] = None if mean["mse"] is None else math.sqrt(mean["mse"])
    for name in INTERVAL_SCORES:
        if name in scores:
            mean[name] = {"mean": mean[name], "ci95": ci95_of(scores[name].numpy())}
    return mean
