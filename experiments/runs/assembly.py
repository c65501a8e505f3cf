"""From a configuration to the objects of a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from pyro_metabayes.build import arguments_of, build, check, target_of
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.base_novel import BaseNovelSampler
from pyro_metabayes.data.domains import DomainBank, DomainSampler
from pyro_metabayes.data.holdout import held_out_rows, without_rows
from pyro_metabayes.data.perturbed import with_noise
from pyro_metabayes.data.placement import place_bank
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.data.stream import Block, KnownTruth, Source, TaskStream, context_of
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.device import device_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import Config
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.pretraining import embed_bank, pretrain


class Assembly:
    """A learner with fresh weights (its backbone pretrained), and streams of the tasks it is for."""

    def __init__(self, config: Config, num_classes: int | None = None) -> None:
        """num_classes: what the learner is built for, where it is not the way of the tasks."""
        self.config, self.device = config, device_of(config.device)
        torch.set_num_threads(config.threads)
        specification = config.specification()
        MetaLearner.check(specification)
        self._refuse_shift_without_domains()
        check(config.source(), "data", ())
        data = build(config.source(), "data")
        fingerprint = getattr(data, "fingerprint", None)  # simulators are their settings, and have none
        self.data_fingerprint = fingerprint() if fingerprint else None
        source = self._sampler(data) if isinstance(data, Bank) else data
        self._refuse_impossible(source)
        specification |= {
            "input_shape": list(source.input_shape),
            "num_classes": num_classes or source.num_targets or config.task.way,
            "num_targets": source.num_targets,
            "particles": config.train.particles,
            **context_of(source),
        }
        torch.manual_seed(config.seed)
        self.learner = MetaLearner.from_specification(specification, config.frozen)
        self._refuse_base_classes_without_their_model(source)
        self._refuse_classes_of_their_own(data)
        self.source: Source = self._embedded(data) if isinstance(data, Bank) else source

    def stream(self, split: str) -> TaskStream:
        """Tasks of a split, on the run's device; those to learn from are as many as train.num_tasks."""
        num_tasks = self.config.train.num_tasks if split == "train" else None
        return self._stream(split, self.config.task.of(split), num_tasks)

    @property
    def twice(self) -> TaskStream | None:
        """Tasks to evaluate with twice the queries, where eval.information asks for them."""
        if not self.config.eval.information:
            return None
        return self._stream(self.config.eval.split, self.config.task.of(self.config.eval.split).twice())

    def with_other_classes(self, most: int) -> tuple[TaskStream, int] | None:
        """Tasks to evaluate with classes beside their own, at most so many; None where the split has none to spare.

        Queries are balanced: task.query of every class.
        """
        shape = self.config.task
        if self.source.num_targets or shape.base_query:
            return None
        for more in range(most, 0, -1):
            wider = replace(shape, way=shape.way + more, query_counts=[], query_concentration=0.0, query_balanced=0.0)
            with suppress(UsageError):  # too few classes
                return self._stream(self.config.eval.split, wider), more
        return None

    def _stream(self, split: str, shape: TaskShape, num_tasks: int | None = None) -> TaskStream:
        draw = with_noise(self.source.sampler(split, shape), shape.feature_noise)
        block = self.source.block(split) if isinstance(self.source, Groups) else BLOCK
        return TaskStream(_on(self.device, draw), self.config.seed, split, num_tasks, block)

    @property
    def truth(self) -> KnownTruth | None:
        """The simulator, where it knows p(w | what is observed)."""
        return self.source if isinstance(self.source, KnownTruth) else None

    def _refuse_impossible(self, source: Source) -> None:
        """Shapes that the data cannot fill, before anything is pretrained."""
        for split in dict.fromkeys(("train", "val", self.config.eval.split)):
            source.sampler(split, self.config.task.of(split))
        perturbed = {"task.feature_noise": self.config.task.feature_noise, "data.train_shift": _shift_of(source)}
        for name, value in perturbed.items():
            if value and len(source.input_shape) > 1 and not self.config.frozen:
                raise UsageError(f"expected features for {name}, got images; freeze the backbone, or set it to 0")
        if self.config.eval.information:
            try:
                source.sampler(self.config.eval.split, self.config.task.twice())
            except UsageError as error:
                raise UsageError(f"eval.information=true draws twice the queries: {error}") from None

    def _refuse_shift_without_domains(self) -> None:
        source = self.config.source()
        if "train_shift" in source and "train_shift" not in arguments_of(target_of(source, "data")):
            raise UsageError(
                f"expected data with several domains for data.train_shift (guide=sib_rotation sets it), got data="
                f"{self.config.choices.get('data')}; take data=digit_domains or data=pacs"
            )

    def _refuse_base_classes_without_their_model(self, source: Source) -> None:
        asked, given = self.config.task.base_query, isinstance(source, BaseNovelSampler)
        if asked and not (given and hasattr(self.learner.model, "start_at_classes")):
            raise UsageError(
                f"expected model=lwof and data with a bank of classes for task.base_query={asked}, got model="
                f"{self.config.model['_target_']} on data={self.config.choices.get('data')}; set task.base_query=0"
            )

    def _refuse_classes_of_their_own(self, data: Any) -> None:
        if self.learner.guide.needs_shared_classes and not getattr(data, "num_shared", 0):
            raise UsageError(
                f"expected data whose tasks share their classes for guide={self.config.choices.get('guide')}, got data="
                f"{self.config.choices.get('data')}; take data=digit_domains or data=pacs"
            )

    def _sampler(self, bank: Bank) -> BankSampler | DomainSampler:
        """Few-shot tasks of a bank, with queries of base classes where asked; minibatches of one of domains."""
        if isinstance(bank, DomainBank):
            return DomainSampler(bank)
        if self.config.task.base_query:
            return BaseNovelSampler(bank, self.config.pretrain.holdout_per_class)
        return BankSampler(bank)

    def _embedded(self, bank: Bank) -> Source:
        """The bank of features of the (pretrained) backbone; of the inputs where the backbone is trained."""
        backbone = self.learner.backbone
        if any(True for _ in backbone.parameters()):
            specification = self.config.specification()["backbone"]
            found = pretrain(backbone, specification, bank, self.config.pretrain, self.device)
            features, classes = found.bank, found.classes
            self.learner.backbone.requires_grad_(not self.config.frozen)
        else:
            features, classes = embed_bank(backbone, bank, self.device), None
        source = self._sampler(place_bank(features if self.config.frozen else bank, self.device, self.config.place))
        if isinstance(source, BaseNovelSampler):
            self._start_at_classes(self.learner.model, features, classes)
        elif bank.num_shared and hasattr(self.learner.guide, "start_at_classes"):
            self._start_at_classes(self.learner.guide, features, classes)
        return source

    def _start_at_classes(self, part: Any, features: Bank, classes: Tensor | None) -> None:
        """Where known classes start: at their weights in the classifier of the pretraining, else at mean features."""
        if classes is None:
            seen = without_rows(features, held_out_rows(features, self.config.pretrain.holdout_per_class))
            rows = seen.rows("train")
            each = seen.in_memory[rows].split(seen.class_sizes[seen.splits["train"]].tolist())
            classes = torch.stack([its.mean(0) for its in each])
        part.start_at_classes(classes)


def _shift_of(source: Source) -> float:
    return source.bank.train_shift if isinstance(source, DomainSampler) else 0.0


def _on(device: torch.device, draw: Callable[[Generator], Block]) -> Callable[[Generator], Block]:
    """Tasks of simulators, and those of a bank in a file, are drawn on the CPU, the same everywhere, and moved."""
    return lambda generator: draw(generator).to(device)
