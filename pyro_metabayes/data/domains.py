"""Domain adaptation: labelled source domains for training, and an unlabelled target domain with the same classes.

A task is a minibatch of one domain. The minibatch is the query set, and there is no support set.

Source: unsupervised multi-source domain adaptation of Hu et al. 2020, "Empirical Bayes Transductive Meta-Learning with
Synthetic Gradients".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.perturbed import with_shift
from pyro_metabayes.data.sources.parts import Part, Rows, bank_of
from pyro_metabayes.data.stream import Block
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError, check_choice

Pixels = Callable[[Sequence[Any]], Iterable[np.ndarray]]


def leave_one_out(names: Sequence[str], target: str, validation: str = "") -> dict[str, list[str]]:
    """Return the domains of each split: the target for test, the others (sources) for training and validation.

    Args:
        names: names of all domains.
        target: the domain that is left out of training.
        validation: a source that is used for validation only; "": validation uses validation images of all sources.
    """
    for key, name in (("target", target), *((("validation", validation),) if validation else ())):
        check_choice(f"data.{key}", name, names)
    if validation == target:
        raise UsageError(f"expected data.validation to differ from data.target, got '{target}' for both; change one")
    sources = [name for name in names if name not in (target, validation)]
    return {"train": sources, "val": [validation] if validation else sources, "test": [target]}


def domain_rows(split: str, domains: Mapping[str, Mapping[str, Sequence[Any]]], pixels: Pixels) -> Rows:
    """Convert the images of a split to arrays, sorted by domain and class.

    Args:
        split: name of the split.
        domains: the images of each class of each domain, as {domain: {class: images}}.
        pixels: function that converts such images to arrays.
    """
    for domain, classes in domains.items():
        if empty := [name for name, images in classes.items() if not len(images)]:
            raise UsageError(
                f"expected {split} images of every class in domain '{domain}', got none of '{empty[0]}'; add images"
            )
    images_of = {f"{split}/{domain}/{name}": images for domain in domains for name, images in domains[domain].items()}
    sizes = {name: len(images) for name, images in images_of.items()}
    return Rows(sizes, pixels([image for images in images_of.values() for image in images]))


@dataclass(frozen=True, eq=False)
class DomainBank(Bank):
    """Data set (bank) of several domains that share `num_shared` classes.

    auxiliary["turned"] [M, 3, *X] is optional. It holds the features of the M images after rotation by 90, 180 and
    270 degrees, where *X is the shape of the features of one image.

    Args:
        train_shift: largest random shift of the features of a training task (perturbed.with_shift); 0: no shift.
    """

    train_shift: float = 0.0


def domain_bank(
    name: str, parts: Mapping[str, Part], settings: Mapping[str, object], num_shared: int, train_shift: float
) -> DomainBank:
    """Return the data set of several domains that share `num_shared` classes.

    Args:
        name, parts, settings: as in `parts.bank_of`.
        num_shared: number of classes.
        train_shift: largest random shift of the features of a training task (`DomainBank`).
    """
    if not 0 <= train_shift < math.inf:
        raise UsageError(f"expected data.train_shift to be finite and >= 0, got {train_shift}")
    bank = bank_of(name, parts, settings)
    values = {field.name: getattr(bank, field.name) for field in fields(bank)}
    return DomainBank(**values | {"num_shared": num_shared, "train_shift": train_shift})


class DomainSampler:
    """Sampler of tasks that are minibatches: task.way * task.query images of any class from one domain of the split.

    All domains have the same classes. The features of training tasks are shifted at random by up to `bank.train_shift`.

    In a batch of T tasks with Q queries of shape *X, auxiliary["turned"] [T, Q, 3, *X] has the queries rotated by 90,
    180 and 270 degrees. The entries are features if the bank (data set) holds features, otherwise images.
    """

    num_targets = 0  # labels are classes

    def __init__(self, bank: DomainBank) -> None:
        self.bank = bank
        answers = torch.zeros(len(bank.class_sizes), dtype=torch.int64)
        for split in SPLITS:
            answers[bank.splits[split]] = bank.answers(split)
        self.labels = answers[bank.labels]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.bank.input_shape

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Block]:
        """Return a function that draws a block of tasks of a split from a random generator.

        Raises:
            UsageError: the task shape has support points, another number of classes than the domains, or more queries
                than a domain has images.
        """
        self._check(split, shape)
        classes = self.bank.splits[split].view(-1, self.bank.num_shared)  # [domains, C]
        starts, sizes = self.bank.class_starts[classes[:, 0]], self.bank.class_sizes[classes].sum(1)
        size, largest = shape.way * shape.query, int(sizes.max())
        if size > (smallest := int(sizes.min())):
            raise UsageError(
                f"expected task.way * task.query <= {smallest}, the number of images in the smallest domain of the "
                f"{split} split, got {size}; lower task.query"
            )

        def draw(generator: Generator) -> Episodes:
            domain = torch.randint(len(starts), (BLOCK,), generator=generator)
            keys = torch.rand(BLOCK, largest, generator=generator)
            keys.masked_fill_(torch.arange(largest) >= sizes[domain].unsqueeze(1), -1.0)
            return self._gather(starts[domain].unsqueeze(1) + keys.topk(size).indices, classes[domain])

        return with_shift(draw, self.bank.train_shift if split == "train" else 0.0)

    def _check(self, split: str, shape: TaskShape) -> None:
        if split not in SPLITS:
            raise UsageError(f"expected a split among {', '.join(SPLITS)}, got '{split}'")
        if shape.way != self.bank.num_shared or shape.shot or shape.query < 1:
            raise UsageError(
                f"expected task.shot=0, task.query >= 1 and task.way={self.bank.num_shared} (the number of classes of "
                f"every domain), got {shape}; change task.*"
            )
        if shape.query_counts or shape.query_concentration:
            raise UsageError(
                "expected no task.query_counts and no task.query_concentration for domain adaptation, got "
                f"query_counts={shape.query_counts} and query_concentration={shape.query_concentration}; remove both"
            )

    def _gather(self, rows: Tensor, classes: Tensor) -> Episodes:
        images, device = self.bank.in_memory, self.bank.inputs.device
        numbers = (rows, self.labels[rows], classes)
        places, labels, classes = (number.to(device, non_blocking=True) for number in numbers)
        query, rotations = images[places], self.bank.auxiliary.get("turned")
        return Episodes(
            support_x=query[:, :0],
            support_y=labels[:, :0],
            query_x=query,
            query_y=labels,
            num_classes=self.bank.num_shared,
            classes=classes,
            auxiliary={"turned": rotated_views(query) if rotations is None else rotations[places]},
        )


def rotated_views(images: Tensor) -> Tensor:
    """Rotate square images [T, Q, channels, size, size] by 90, 180 and 270 degrees; returns [T, Q, 3, ...].

    T is the number of tasks, Q the number of queries per task.
    """
    return torch.stack([images.rot90(quarters, (-2, -1)) for quarters in (1, 2, 3)], dim=2)
