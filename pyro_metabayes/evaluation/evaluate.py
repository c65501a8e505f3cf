"""Scores of a learner on a stream of tasks, with intervals."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import RLock
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_metabayes.data.sources.given import Fixed, task_stream
from pyro_metabayes.data.stream import KnownTruth, TaskStream
from pyro_metabayes.diagnostics.information import information
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.batch_scores import BatchScores, Evaluation
from pyro_metabayes.evaluation.inner_steps import scores_by_step
from pyro_metabayes.evaluation.settings import EvalSettings
from pyro_metabayes.evaluation.task_scores import score_batch
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.recalibration.recalibrated import Recalibration
from pyro_metabayes.seeding import noise_of
from pyro_metabayes.training.progress import counted
from pyro_metabayes.validation.arguments import check_instance
from pyro_metabayes.validation.trained_on import warn_if_unfamiliar
from pyro_metabayes.validation.values import check_points, check_values

BATCH = 32  # tasks per batch; larger batches exceed the processor's cache and are not faster
_alone = RLock()  # all threads share Pyro's handler stack and its validation setting
VALIDATION_TASKS = 300  # number of tasks of an endless stream on which a temperature is fitted
MOST_NUMBERS = 2**25  # largest number of predictions per batch: with thousands of classes a batch has fewer tasks


@torch.no_grad()
def evaluate(
    learner: MetaLearner,
    stream: Fixed,
    settings: EvalSettings | None = None,
    seed: int = 0,
    progress: bool = True,
    truth: KnownTruth | None = None,
    doubled: TaskStream | None = None,
    validation: Fixed | None = None,
    others: Sequence[MetaLearner] = (),
) -> Evaluation:
    """Evaluate the predictions of a learner on the first tasks of a stream.

        print(evaluate(learner, bank.tasks("test")))

    The scores come from `posterior`, which does not use query labels. Only elbo, kl, active_dimensions, posterior_sd,
    posterior_entropy and training_sd_ratio come from `training_posterior`, the distribution in the ELBO. These metrics
    are None for a point estimate. elbo, kl and active_dimensions are None for a flat prior, too.

    The result is deterministic given the seed. No global random state is read or changed. Calls in several threads run
    one after the other.

    Args:
        learner: the learner to evaluate.
        stream: the tasks: a stream of tasks, Episodes, or a list of Episodes. Their inputs are inputs of the backbone,
            or features if the backbone is frozen.
        settings: number of tasks, draws of w and split; None: the defaults, with all tasks unless the stream is
            endless.
        seed: seed of all draws of w.
        progress: whether to show a progress bar.
        truth: the exact posterior of simulated tasks; None: unknown. A known posterior adds oracle_mse, the mse of the
            exact posterior mean, and the metrics of `against_truth`. These metrics are None if model and simulator
            have different latents.
        doubled: the same tasks with twice the queries, for the information bounds (settings.information).
        validation: tasks of validation classes, for the fit of the temperature (settings.temperature). An endless
            stream contributes its first 300 tasks.
        others: an ensemble: learners whose predictions are averaged with the predictions of `learner`. Metrics of a
            posterior are then None.

    Returns:
        Metrics over all tasks, and the scores of each task. print() shows a table.

    Warns:
        UnfamiliarTasks: a transductive guide was trained on tasks that differ from the first batch of tasks.

    Raises:
        UsageError: the family of the likelihood is not registered (`likelihoods/predictions.py`); the model does not
            accept the features; or there are fewer tasks than settings.tasks.
    """
    check_instance("learner", learner, MetaLearner, "construct one with MetaLearner.build")
    if settings is not None:
        check_instance("settings", settings, EvalSettings, "pass for example EvalSettings(tasks=100)")
    started = time.perf_counter()
    stream, settings = _tasks_and_settings(stream, settings)
    first = _on_device(learner, stream.batch(0, 1))
    check_points(first)
    learner.check_features(featured := learner.featured(first))
    integrated = learner.model.event_shape(featured).numel() if settings.joint else 0
    batches = list(_batches(stream, settings, integrated))
    shown = counted(batches, f"evaluate on {settings.split}", "batches") if progress else batches
    # Without Pyro's validation a diverging inner loop yields a poor score, not an exception.
    with _alone, noise_of(seed), pyro.validation_enabled(False):
        recalibration = Recalibration((learner, *others)) if others or settings.temperature else None
        if recalibration is not None and settings.temperature:
            recalibration = recalibration.fitted(_validation_batches(learner, validation, settings), settings.samples)
        tasks_of = (_on_device(learner, stream.batch(*tasks)) for tasks in shown)
        parts = [_scored(learner, episodes, settings, truth, recalibration) for episodes in tasks_of]
        bounds = None if doubled is None else _information(learner, doubled, settings)
    warn_if_unfamiliar(learner.guide, learner.trained_on, stream.batch(*batches[0]))
    values = BatchScores.concatenate(parts)
    temperature = None if recalibration is None else recalibration.temperature
    others_of = {"temperature": temperature, "learners": 1 + len(others), "information": bounds}
    return values.evaluation(others_of | {"seconds": time.perf_counter() - started})


def _validation_batches(learner: MetaLearner, tasks: Fixed | None, settings: EvalSettings) -> Iterator[Episodes]:
    if tasks is None:
        raise UsageError("expected validation tasks for eval.temperature=true, got None; pass validation=TASKS")
    stream = task_stream(tasks, "the validation tasks")
    settings = replace(settings, tasks=stream.num_tasks or VALIDATION_TASKS)
    return (_on_device(learner, stream.batch(*part)) for part in _batches(stream, settings))


def _tasks_and_settings(tasks: Fixed, settings: EvalSettings | None) -> tuple[TaskStream, EvalSettings]:
    """Return the tasks as a stream, and the settings with defaults; check that there are enough tasks."""
    stream = task_stream(tasks, "the tasks of an evaluation")
    given = None if isinstance(tasks, TaskStream) else stream.num_tasks
    settings = settings or EvalSettings(tasks=stream.num_tasks or EvalSettings.tasks)
    if given and settings.tasks > given:
        raise UsageError(
            f"expected settings.tasks <= {given} (the given tasks), got {settings.tasks}; reduce settings.tasks"
        )
    return stream, settings


def _on_device(learner: MetaLearner, episodes: Episodes) -> Episodes:
    """Move the tasks to the device of the learner."""
    like = next(learner.parameters(), None)
    return episodes if like is None or episodes.query_x.is_meta else episodes.to(like.device)


def _scored(
    learner: MetaLearner,
    episodes: Episodes,
    settings: EvalSettings,
    truth: KnownTruth | None,
    recalibration: Recalibration | None,
) -> BatchScores:
    """Compute all scores and spreads of one batch of tasks, and copy them to the CPU."""
    check_values(episodes, learner.model)
    check_points(episodes)
    draws = settings.draws(episodes.num_classes)
    if recalibration is not None:
        return recalibration.scores(episodes, draws).cpu()
    episodes = learner.featured(episodes)
    batch = score_batch(learner, episodes, draws, truth, settings.integrated)
    return replace(batch, by_step=scores_by_step(learner, episodes, draws), groups=_groups(episodes)).cpu()


def _groups(episodes: Episodes) -> Tensor | None:
    """Return the group of each task [T]; several tasks may share a group. None for classification tasks."""
    classes = episodes.classes
    return None if episodes.num_classes or classes is None or classes.shape[1] != 1 else classes[:, 0]


def _information(learner: MetaLearner, stream: TaskStream, settings: EvalSettings) -> dict[str, Any] | None:
    batches = (_on_device(learner, stream.batch(*tasks)) for tasks in _batches(stream, settings))
    return information(learner, batches, settings.samples)


def _batches(stream: TaskStream, settings: EvalSettings, integrated: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the tasks of each batch; tasks with more predictions form smaller batches.

    `integrated` is the number of weights of a task if the joint NLL is computed, else 0. The joint NLL needs a matrix
    with one row per weight.
    """
    first = stream.batch(0, 1)
    numbers = max(settings.draws(first.num_classes), integrated) * first.query_x.shape[1] * max(first.num_classes, 1)
    batch_size = max(1, min(BATCH, MOST_NUMBERS // numbers))
    for start in range(0, settings.tasks, batch_size):
        yield start, min(start + batch_size, settings.tasks)
