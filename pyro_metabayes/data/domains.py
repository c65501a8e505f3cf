"""Domains that share their classes: labelled ones to learn from, and one that is left out, to adapt to without labels.

A task is a minibatch of one domain: no support set, and the minibatch is the query set. (Unsupervised multi-source
domain adaptation as Hu et al. 2020 have it, "Empirical Bayes Transductive Meta-Learning with Synthetic Gradients".)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources.parts import Part, Rows, bank_of
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError

Pixels = Callable[[Sequence[Any]], Iterable[np.ndarray]]


def leave_one_out(names: Sequence[str], target: str, validation: str = "") -> dict[str, list[str]]:
    """The domains of each split: the target for the test, the others (sources) for training and validation.

    validation: a source to validate on that is not trained on either; without one, validation images of all sources.
    """
    for key, name in (("target", target), *((("validation", validation),) if validation else ())):
        if name not in names:
            raise UsageError(f"expected data.{key} to be one of {', '.join(names)}, got '{name}'")
    if validation == target:
        raise UsageError(f"expected data.validation to be a source, got the target '{target}'; take another")
    sources = [name for name in names if name not in (target, validation)]
    return {"train": sources, "val": [validation] if validation else sources, "test": [target]}


def domain_rows(split: str, domains: Mapping[str, Mapping[str, Sequence[Any]]], pixels: Pixels) -> Rows:
    """The images of a split, domain after domain and class after class; {domain: {class: images}} before `pixels`."""
    for domain, classes in domains.items():
        if empty := [name for name, images in classes.items() if not len(images)]:
            raise UsageError(f"expected {split} images of every class in domain '{domain}', got none of '{empty[0]}'")
    every = [(f"{split}/{domain}/{name}", its) for domain, classes in domains.items() for name, its in classes.items()]
    return Rows({name: len(its) for name, its in every}, pixels([image for _, its in every for image in its]))


def domain_bank(name: str, parts: Mapping[str, Part], settings: Mapping[str, object], num_shared: int) -> Bank:
    """The bank of parts that `domain_rows` reads, converted once; its domains share `num_shared` classes."""
    return replace(bank_of(name, parts, settings), num_shared=num_shared)


class DomainSampler:
    """Minibatches of task.way * task.query images, whatever their class, each of one domain of the split.

    Labels are the shared classes. Beside the queries stand their views turned by 1, 2 and 3 quarters,
    auxiliary["turned"] [T, Q, 3, *X]: the bank's features of them, or images where the bank holds images.
    """

    num_targets = 0  # labels are classes
    num_base_classes = 0

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        answers = torch.zeros(len(bank.class_sizes), dtype=torch.int64)
        for split in SPLITS:
            answers[bank.splits[split]] = bank.answers(split)
        self.labels = answers[bank.labels]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.bank.input_shape

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Episodes]:
        """As `Source.sampler`; refuses a shape that is no minibatch, or larger than a domain."""
        self._check(split, shape)
        classes = self.bank.splits[split].view(-1, self.bank.num_shared)  # [domains, C]
        starts, sizes = self.bank.class_starts[classes[:, 0]], self.bank.class_sizes[classes].sum(1)
        size, largest = shape.way * shape.query, int(sizes.max())
        if size > (smallest := int(sizes.min())):
            raise UsageError(
                f"expected minibatches (task.way * task.query) of at most {smallest} images, the smallest domain of "
                f"the {split} split, got {size}; lower task.query"
            )

        def draw(generator: Generator) -> Episodes:
            domain = torch.randint(len(starts), (BLOCK,), generator=generator)
            keys = torch.rand(BLOCK, largest, generator=generator)
            keys.masked_fill_(torch.arange(largest) >= sizes[domain].unsqueeze(1), -1.0)
            return self._gather(starts[domain].unsqueeze(1) + keys.topk(size).indices, classes[domain])

        return draw

    def _check(self, split: str, shape: TaskShape) -> None:
        if split not in SPLITS:
            raise UsageError(f"no split '{split}'; there are {', '.join(SPLITS)}")
        if shape.way != self.bank.num_shared or shape.shot or shape.query < 1:
            raise UsageError(
                f"expected task.way={self.bank.num_shared}, the classes that all domains share, task.shot=0 and "
                f"task.query >= 1, got {shape}"
            )
        if shape.query_counts or shape.query_concentration:
            raise UsageError("expected no task.query_counts or query_concentration for minibatches; drop them")

    def _gather(self, rows: Tensor, classes: Tensor) -> Episodes:
        images, device = self.bank.in_memory, self.bank.inputs.device
        place, labels, classes = (its.to(device, non_blocking=True) for its in (rows, self.labels[rows], classes))
        query = images[place]
        return Episodes(
            support_x=query[:, :0],
            support_y=labels[:, :0],
            query_x=query,
            query_y=labels,
            num_classes=self.bank.num_shared,
            classes=classes,
            auxiliary={"turned": turns(query) if self.bank.turned is None else self.bank.turned[place]},
        )


def turns(images: Tensor) -> Tensor:
    """Square images [T, Q, channels, size, size] turned by 1, 2 and 3 quarters [T, Q, 3, ...]."""
    return torch.stack([images.rot90(quarters, (-2, -1)) for quarters in (1, 2, 3)], dim=2)
