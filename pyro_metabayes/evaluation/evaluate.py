"""A stream of tasks in, scores with intervals out."""

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
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.evaluation.scores import answers, base_novel_scores, calibration_error, scores_of
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.seeding import noise_of

BATCH = 32  # tasks at once; larger batches leave the cache and gain nothing
MOST_NUMBERS = 2**25  # of predictions at once: with thousands of classes a batch has fewer tasks
# Of each task; those of the other kind of label are null in results.json and not in tasks.npz.
SCORES = (
    *("accuracy", "accuracy_of_mean", "accuracy_of_sample", "nll", "joint_nll", "brier", "mutual_information"),
    *("mse", "oracle_mse", "coverage90"),
    *("novel", "base", "both", "base_over_all"),
)
SHARES = ("accuracy", "novel", "base", "both", "base_over_all")  # told with an interval
BY_STEP, STEP_SCORES = "by_step", ("mse", "nll", "coverage90")  # of a regression whose guide or model takes inner steps
PREDICTED = ("confidence", "right", "query_mask")  # of each query, in one row


@dataclass
class EvalSettings:
    """How a trained learner is scored."""

    tasks: int = 600
    samples: int = 30  # draws of w a task; a point mass needs one
    split: str = "test"
    information: bool = False  # what the posterior knows of its queries, and its gap to others: docs/information.md

    def __post_init__(self) -> None:
        if self.tasks < 2 or self.samples < 1:
            raise UsageError(f"expected eval.tasks >= 2 and eval.samples >= 1, got {self.tasks} and {self.samples}")


@dataclass(frozen=True)
class Evaluation:
    """Figures over all tasks, and the scores of each task for paired comparisons."""

    figures: dict[str, Any]
    per_task: dict[str, np.ndarray]


@torch.no_grad()
def evaluate(
    learner: MetaLearner,
    stream: TaskStream,
    settings: EvalSettings,
    seed: int,
    progress: bool = True,
    truth: KnownTruth | None = None,
    twice: TaskStream | None = None,
) -> Evaluation:
    """Scores of the posterior predictive on tasks 0, 1, ... of the stream; the same for one seed.

    elbo, kl and posterior_sd are of training_posterior, which alone bounds the evidence; null for a
    point mass or a flat prior. All else is of `posterior`, which sees no query label. Against a known
    truth the fit is measured too (`against_truth`); oracle_mse is the mse of the mean of the truth.
    twice: tasks with twice the queries, where settings.information asks for those figures; else they are null.
    """
    gathered: dict[str, list[Tensor]] = {}
    started = time.perf_counter()
    batches, stepping = list(_batches(stream, settings)), taking_steps(learner)
    bar = tqdm(batches, desc=f"evaluate on {settings.split}", unit="batch", disable=None if progress else True)
    with noise_of(seed), pyro.validation_enabled(False):  # an inner loop that diverges is a score, if no good one
        for first, last in bar:
            episodes = learner.featured(stream.batch(first, last))
            batch = scored(learner, episodes, settings.samples, truth)
            if stepping is not None and "mse" in batch:
                batch[BY_STEP] = _by_step(learner, stepping, episodes, settings.samples)
            for name, value in batch.items():
                gathered.setdefault(name, []).append(value.cpu())
        known = None
        if twice is not None:
            known = information(learner, (twice.batch(*its) for its in _batches(twice, settings)), settings.samples)
    seconds = time.perf_counter() - started
    figures = {name: torch.cat(values) for name, values in gathered.items()}
    by_step = figures.pop(BY_STEP, None)
    predicted = [figures.pop(name) for name in PREDICTED if name in figures]
    spread = {name: figures.pop(name) for name in list(figures) if name not in SCORES}
    ece = None
    if predicted:
        confidence, right, mask = predicted
        ece = calibration_error(confidence[mask], right[mask])
    ends = _means(figures) | {"ece": ece, BY_STEP: _of_steps(by_step), "information": known, "seconds": seconds}
    ends |= collapse.summary(spread)
    return Evaluation(ends, {name: value.numpy() for name, value in figures.items()})


def _batches(stream: TaskStream, settings: EvalSettings) -> Iterator[tuple[int, int]]:
    """First task, and the one after the last, of all that are scored at once."""
    first = stream.batch(0, 1)
    numbers = settings.samples * first.query_x.shape[1] * max(first.num_classes, 1)
    at_once = max(1, min(BATCH, MOST_NUMBERS // numbers))
    for start in range(0, settings.tasks, at_once):
        yield start, min(start + at_once, settings.tasks)


def scored(
    learner: MetaLearner, episodes: Episodes, samples: int, truth: KnownTruth | None = None
) -> dict[str, Tensor]:
    """Scores and spreads of each task [T]; of classes also every answer and the mask of the queries [T * Q]."""
    observed, mask = episodes.observed(), episodes.query_mask
    posterior = learner.guide.posterior(observed)
    _, likelihood = learner.predictive_under(posterior, observed, samples)
    batch = scores_of(likelihood, episodes.query_y, mask)
    if "accuracy" in batch:
        batch |= _of_classes(learner, episodes, posterior, likelihood, batch["accuracy"])
    sees_labels = learner.guide.sees_query_labels  # else the two posteriors are one, and inferring it is the work
    training = learner.guide.training_posterior(episodes) if sees_labels else posterior
    batch |= collapse.prior_spread(learner, observed, samples)
    batch |= collapse.posterior_spread(learner, episodes, training)
    if truth is not None:
        true = truth.truth(observed)
        batch |= collapse.against_truth(posterior, true)
        oracle = learner.model.likelihood(true.mean.unsqueeze(0), observed.query_x, observed)
        batch["oracle_mse"] = scores_of(oracle, episodes.query_y, mask)["mse"]
        if sees_labels:
            given_all = collapse.against_truth(training, truth.truth(episodes.pooled()))
            kept = ("fit_variance", "true_variance")
            batch |= {f"training_{name}": given_all[name] for name in kept if name in given_all}
    return batch


def _of_classes(
    learner: MetaLearner, episodes: Episodes, posterior: TorchDistribution, likelihood: Any, accuracy: Tensor
) -> dict[str, Tensor]:
    """What is scored of classes alone, and every answer."""
    observed, mask, labels = episodes.observed(), episodes.query_mask, episodes.query_y
    answered = *answers(likelihood.logits.exp().mean(0), labels), mask
    batch = {name: value.flatten() for name, value in zip(PREDICTED, answered, strict=True)}
    batch["accuracy_of_mean"] = accuracy  # as it is for a point mass
    if not isinstance(innermost(posterior), Delta):
        of_mean = learner.model.likelihood(posterior.mean.unsqueeze(0), observed.query_x, observed)
        batch["accuracy_of_mean"] = scores_of(of_mean, labels, mask)["accuracy"]
    if likelihood.logits.shape[-1] > episodes.num_classes:  # base classes stand behind those of the task
        batch |= base_novel_scores(likelihood.logits, labels, mask, episodes.num_classes)
    return batch


def taking_steps(learner: MetaLearner) -> Any:
    """Whichever takes inner steps, the guide or the likelihood of the model; None if neither does."""
    return next((part for part in (learner.guide, learner.model) if hasattr(part, "num_steps")), None)


def _by_step(learner: MetaLearner, stepping: Any, episodes: Episodes, samples: int) -> Tensor:
    """STEP_SCORES [T, K + 1, scores] after 0, 1, ..., K inner steps; moves no random number of the other scores."""
    num_steps, observed, each = stepping.num_steps, episodes.observed(), []
    with noise_of(0):
        for stepping.num_steps in range(num_steps + 1):
            _, likelihood = learner.posterior_predictive(observed, samples)
            scores = scores_of(likelihood, episodes.query_y, episodes.query_mask)
            each.append(torch.stack([scores[name] for name in STEP_SCORES], -1))
    stepping.num_steps = num_steps
    return torch.stack(each, 1)


def _of_steps(by_step: Tensor | None) -> dict[str, dict[str, float | None]] | None:
    """Means over tasks, named by the number of steps; null for a score that diverges."""
    if by_step is None:
        return None
    return {
        str(step): {name: mean if math.isfinite(mean) else None for name, mean in zip(STEP_SCORES, means, strict=True)}
        for step, means in enumerate(by_step.mean(0).tolist())
    }


def _means(scores: dict[str, Tensor]) -> dict[str, Any]:
    """Means over tasks; null for the scores of another kind of label."""
    mean: dict[str, Any] = {name: scores[name].mean().item() if name in scores else None for name in SCORES}
    mean["rmse"] = None if mean["mse"] is None else math.sqrt(mean["mse"])
    for name in SHARES:
        if name in scores:
            mean[name] = {"mean": mean[name], "ci95": ci95_of(scores[name].numpy())}
    return mean
