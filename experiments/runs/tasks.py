"""The tasks of a run: the source from which they are drawn, and a stream of tasks for each split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from pyro_metabayes.build import arguments_of, build, check, target_of
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.base_novel import BaseNovelSampler
from pyro_metabayes.data.domains import DomainBank, DomainSampler
from pyro_metabayes.data.mixture.varied import VariedSampler
from pyro_metabayes.data.perturbed import with_noise
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.data.stream import Block, DrawsBlocks, HasRandomShapes, KnownTruth, Source, TaskStream
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.learner import MetaLearner


@runtime_checkable
class HasFingerprint(Protocol):
    """Data set with a hash of its content. Simulators have none: their settings define them."""

    def fingerprint(self) -> str:
        """Return a hash of the data."""


@runtime_checkable
class EstimatesSettings(Protocol):
    """Data with settings that are estimated from the training groups, such as scales of columns."""

    def estimated_settings(self) -> dict[str, Any]:
        """Return the estimated settings. A run records these settings to read other data in the same way."""


@runtime_checkable
class HasNotes(Protocol):
    """Data with notes to print for the user."""

    notes: Sequence[str]


@runtime_checkable
class HasConstants(Protocol):
    """Data with constant predictions (such as the grand mean), with which a regression is compared."""

    def constant_errors(self, episodes: Episodes) -> dict[str, Tensor]:
        """Return mean squared errors [tasks] by the name of the constant; {} if constants are no useful baseline."""


@dataclass(frozen=True)
class RunTasks:
    """The tasks of each split of a run, drawn from a source and moved to the device of the run."""

    config: Config
    source: Source
    device: torch.device

    def stream(self, split: str, evaluation: bool = False) -> TaskStream:
        """Return the tasks of a split. They have unknown classes (task.unknown) only if `evaluation` is true."""
        num_tasks = self.config.train.num_tasks if split == "train" else None
        return self._stream(split, self.config.task.of(split, evaluation), num_tasks)

    @property
    def validation(self) -> TaskStream:
        """Validation tasks. If the split has fewer than task.way classes, each task has all classes of the split."""
        return self._stream("val", validation_shape(self.config, self.source))

    @property
    def twice(self) -> TaskStream | None:
        """Evaluation tasks with twice the number of queries, for eval.information=true; else None."""
        if not self.config.eval.information:
            return None
        return self._stream(self.config.eval.split, self.config.task.of(self.config.eval.split).twice())

    def with_other_classes(self, most: int) -> tuple[TaskStream, int] | None:
        """Return evaluation tasks with up to `most` additional classes, and the number of additional classes.

        Each class has task.query queries. None for a regression, with base classes, and if the split has no others.
        """
        shape = replace(self.config.task, unknown=0)
        if self.source.num_targets or shape.base_query:
            return None
        for more in range(most, 0, -1):
            wider = replace(shape, way=shape.way + more, query_counts=[], query_concentration=0.0, query_balanced=0.0)
            with suppress(UsageError):  # too few classes
                return self._stream(self.config.eval.split, wider), more
        return None

    def constant_rmse(self) -> dict[str, float] | None:
        """Return the RMSE on evaluation tasks by name of the constant prediction; None if the data define none."""
        if not isinstance(self.source, HasConstants):
            return None
        stream, number = self.stream(self.config.eval.split), self.config.eval.tasks
        starts = range(0, number, BLOCK)
        parts = [self.source.constant_errors(stream.batch(start, min(start + BLOCK, number))) for start in starts]
        return {name: torch.cat([part[name] for part in parts]).mean().sqrt().item() for name in parts[0]} or None

    def response(self) -> dict[str, Any] | None:
        """Return name and sd of the response. Labels are divided by this sd. None without standardisation."""
        source = self.source
        if not isinstance(source, Groups) or source.family != "gaussian":
            return None
        return {"name": source.scales.columns[-1], "sd": source.scale}

    @property
    def truth(self) -> KnownTruth | None:
        """Simulator with a known true posterior p(w | observed data); None for other data."""
        return self.source if isinstance(self.source, KnownTruth) else None

    def _stream(self, split: str, shape: TaskShape, num_tasks: int | None = None) -> TaskStream:
        draw = with_noise(self.source.sampler(split, shape), shape.feature_noise)
        block = self.source.block(split) if isinstance(self.source, DrawsBlocks) else BLOCK
        one_shape = split != "train" or not isinstance(self.source, HasRandomShapes)
        return TaskStream(_on(self.device, draw), self.config.seed, split, num_tasks, block, one_shape)


def load_data(config: Config) -> Bank | Source:
    """Load a data set of classes, or a source that draws tasks itself, after checking the names of data.*."""
    source = config.source()
    if "train_shift" in source and "train_shift" not in arguments_of(target_of(source, "data")):
        raise UsageError(
            f"expected data with several domains for data.train_shift (guide=sib_rotation sets it), got data="
            f"{config.choices.get('data')}; take data=digit_domains or data=pacs"
        )
    check(source, "data", ())
    data: Bank | Source = build(source, "data")
    return data


def source_of(config: Config, data: Bank | Source) -> Source:
    """Return the task sampler of the data. task.base_query and task.vary choose it for a data set of classes."""
    if not isinstance(data, Bank):
        return data
    if isinstance(data, DomainBank):
        return DomainSampler(data)
    if config.task.base_query:
        return BaseNovelSampler(data, config.pretrain.holdout_per_class)
    return VariedSampler(data, config.train.tasks_per_step) if config.task.vary else BankSampler(data)


def validation_shape(config: Config, source: Source) -> TaskShape:
    """Return the shape of validation tasks, with fewer than task.way classes if the split has fewer classes."""
    shape = config.task.of("val")
    if not isinstance(source, BankSampler):
        return shape
    way = min(shape.way, max(2, len(source.bank.splits["val"])))  # a task needs two classes
    return replace(shape, way=way, query_counts=shape.query_counts[:way])


def note_narrower_validation(config: Config, source: Source, learner: MetaLearner) -> None:
    """Print a note if validation has fewer classes than training. Raise UsageError if the guide cannot handle this."""
    way, narrower = config.task.way, validation_shape(config, source).way
    if narrower == way:
        return
    if learner.guide.num_classes is not None:
        raise UsageError(
            f"expected at least task.way={way} classes in the val split for guide={config.choices.get('guide')}, got "
            f"{narrower}; lower task.way, add classes, or take a guide for any number of classes"
        )
    print(
        f"note: the val split has {narrower} classes; validation is {narrower}-way, training {way}-way", file=sys.stderr
    )


def refuse_impossible(config: Config, source: Source, training: bool) -> None:
    """Check, before anything is pretrained, that the splits have enough data for the shapes of the tasks."""
    if training:
        source.sampler("train", config.task.of("train"))
        source.sampler("val", validation_shape(config, source))
    source.sampler(config.eval.split, config.task.of(config.eval.split, evaluation=True))
    shift = source.bank.train_shift if isinstance(source, DomainSampler) else 0.0
    for name, value in {"task.feature_noise": config.task.feature_noise, "data.train_shift": shift}.items():
        if value and len(source.input_shape) > 1 and not config.frozen:
            raise UsageError(f"expected features for {name}, got images; set backbone.frozen=true or {name}=0")
    if config.eval.information:
        try:
            source.sampler(config.eval.split, config.task.twice())
        except UsageError as error:
            raise UsageError(f"eval.information=true needs twice the queries per task: {error}") from None


def fingerprint_of(data: Bank | Source) -> str | None:
    """Return a hash of the data; None for a simulator."""
    return data.fingerprint() if isinstance(data, HasFingerprint) else None


def _on(device: torch.device, draw: Callable[[Generator], Block]) -> Callable[[Generator], Block]:
    """Return a sampler that moves tasks to the device. Tasks are drawn on the CPU, to be equal on all devices."""
    return lambda generator: draw(generator).to(device)
