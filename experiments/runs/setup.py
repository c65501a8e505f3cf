"""Builds the objects of a run from its configuration: data, learner and tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.mixture.varied import VariedSampler
from pyro_metabayes.data.placement import place_bank
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.stream import Source, TaskStream
from pyro_metabayes.data.task_shape import BLOCK
from pyro_metabayes.device import device_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.choices import naming_choices
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.experiments.runs.build_learner import (
    build_learner,
    pretrain_learner,
    restored_bank,
    start_at_closed_form,
)
from pyro_metabayes.experiments.runs.tasks import (
    EstimatesSettings,
    RunTasks,
    fingerprint_of,
    load_data,
    note_narrower_validation,
    refuse_impossible,
    source_of,
)
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.pretrained.files import CHECKSUMS
from pyro_metabayes.specification.parts import check_parts
from pyro_metabayes.storage.weights import weights_follow


@runtime_checkable
class CentresFeatures(Protocol):
    """Guide that subtracts the mean feature of the training classes from each feature."""

    def centre_at(self, mean: Tensor) -> None:
        """Set the mean feature [features], before training."""


@dataclass(frozen=True, eq=False)
class RunSetup:
    """Objects of a run.

    learner: the learner with a pretrained backbone. The other weights are untrained or restored.
    data_fingerprint: a hash of the data; None for a simulator.
    new_data: whether a trained run reads a file of data=groups without its training groups.
    """

    config: Config
    device: torch.device
    learner: MetaLearner
    tasks: RunTasks
    data_fingerprint: str | None
    new_data: bool = False


def set_up(
    config: Config,
    num_classes: int | None = None,
    training: bool = True,
    restore: Callable[[MetaLearner], None] | None = None,
) -> RunSetup:
    """Load the data, build the learner and pretrain it.

    Args:
        config: the configuration of the run.
        num_classes: number of classes that the learner is built for. None: the way of the tasks; in a regression the
            number of outputs.
        training: whether the learner will be trained. If false, only the evaluation split must have enough data, and
            parameters do not start at closed-form estimates.
        restore: loads the weights of a trained learner, in place of pretraining; None: untrained weights.

    Raises:
        UsageError: the configuration cannot be run.
    """
    device = device_of(config.device)
    torch.set_num_threads(config.threads)
    with naming_choices(config):
        check_parts(config.specification())
        data = load_data(config)
    if isinstance(data, EstimatesSettings):
        config = replace(config, estimated=data.estimated_settings())
    fingerprint = fingerprint_of(data)
    source = source_of(config, data)
    _refuse_source(config, source, training)
    with nullcontext() if restore is None else weights_follow():
        learner = build_learner(config, data, source, num_classes)
    _refuse_varied_tasks(config, source, learner)
    start = restore or partial(start_at, init=config.init)
    start(learner)
    if training:
        start_at_closed_form(learner, source)
        note_narrower_validation(config, source, learner)
    if isinstance(data, Bank):
        bank = (pretrain_learner if restore is None else restored_bank)(config, learner, data, device)
        source = source_of(config, place_bank(bank, device, config.place))
    tasks = RunTasks(config, source, device)
    if training:
        _centre_features(config, learner, tasks)
    return RunSetup(config.with_absolute_path(), device, learner, tasks, fingerprint)


def _refuse_source(config: Config, source: Source, training: bool) -> None:
    """Check that a source can draw the tasks that the settings describe."""
    _refuse_unknown_classes(config, source)
    refuse_impossible(config, source, training)


def _refuse_unknown_classes(config: Config, source: Source) -> None:
    """Check that task.unknown is 0 if the tasks of the source cannot have unknown classes."""
    if config.task.unknown and type(source) not in (BankSampler, VariedSampler):
        base = " with task.base_query" if config.task.base_query else ""
        raise UsageError(
            f"expected a data set of classes for task.unknown={config.task.unknown}, got data="
            f"{config.choices.get('data')}{base}; set task.unknown=0, or take data such as data=features"
        )


def _refuse_varied_tasks(config: Config, source: Source, learner: MetaLearner) -> None:
    """Check that with task.vary=true the data, the guide and the training allow tasks of different shapes."""
    if not config.task.vary:
        return
    if not isinstance(source, VariedSampler):
        raise UsageError(
            f"expected a data set of classes without base classes for task.vary=true, got data="
            f"{config.choices.get('data')}; set task.vary=false"
        )
    if learner.guide.num_classes is not None:
        raise UsageError(
            f"expected a guide for any number of classes for task.vary=true, got guide={config.choices.get('guide')}; "
            "set task.vary=false"
        )
    if config.train.num_tasks or config.train.tasks_per_step > BLOCK:
        raise UsageError(
            f"expected train.num_tasks=0 and train.tasks_per_step <= {BLOCK} for task.vary=true, got "
            f"train.num_tasks={config.train.num_tasks} and train.tasks_per_step={config.train.tasks_per_step}; change "
            "these settings, or set task.vary=false"
        )


def _centre_features(config: Config, learner: MetaLearner, tasks: RunTasks) -> None:
    """Set the mean feature of a guide that centres features to the mean over training tasks."""
    if not isinstance(learner.guide, CentresFeatures):
        return
    if not config.frozen:
        guide = config.choices.get("guide")
        raise UsageError(
            f"expected a frozen backbone for guide={guide}, got backbone.frozen=false; set backbone.frozen=true"
        )
    learner.guide.centre_at(_mean_feature(tasks.stream("train")))


def _mean_feature(stream: TaskStream) -> Tensor:
    """Return the mean feature [features] over all points of the first training tasks (at most BLOCK tasks)."""
    episodes = stream.batch(0, min(stream.block, BLOCK))
    points = torch.cat((episodes.support_x, episodes.query_x), dim=1)
    weights = torch.cat((episodes.support_mask, episodes.query_mask), dim=1).unsqueeze(-1)
    return (points * weights).sum((0, 1)) / weights.sum()


def start_at(learner: MetaLearner, init: str) -> None:
    """Replace the initial weights of a learner by the weights of another learner.

    Args:
        learner: the learner of the run.
        init: the name of a learner that ships, or the folder of a run; "" keeps the initial weights.

    Raises:
        UsageError: the other learner has another guide or model.
    """
    if not init:
        return
    start = MetaLearner.pretrained(init) if init in CHECKSUMS else MetaLearner.load(init)
    try:
        learner.load_weights(start.state_dict())
    except UsageError as error:
        guide = type(start.guide).__module__.rpartition(".")[2]
        difference = str(error).partition("another: ")[2].partition(";")[0]
        raise UsageError(
            f"expected the model and guide of init={init}, got others ({difference}); set guide={guide} with its "
            "default settings on a data set of features, or remove init"
        ) from None
