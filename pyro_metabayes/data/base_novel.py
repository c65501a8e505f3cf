"""Tasks of learning without forgetting: a few shots of novel classes, and queries of novel and of base classes.

Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018 (arXiv 1804.09458).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.holdout import halves, held_out_rows, without_rows
from pyro_metabayes.data.pool import Pool
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError


class BaseNovelSampler(BankSampler):
    """Sampler of few-shot tasks of novel classes, with task.base_query additional queries of base classes.

    Base classes are the B training classes, of which some images are held out. A training task takes `way` of the B
    classes as novel classes and the other B - way as base classes; it contains no held-out image. In validation and
    test tasks, all B classes are base classes. Their base queries are held-out images: validation uses one half of
    these images, and the test uses the other half. The class of a base query is drawn uniformly with replacement.
    Images of one class are drawn without replacement if the class has enough images.

    Novel classes have the labels 0 to way - 1. Base classes have the labels from way on: in task t, label way + i is
    the training class number auxiliary["base"][t, i], from 0 to B - 1.
    """

    def __init__(self, bank: Bank, holdout_per_class: int) -> None:
        super().__init__(bank)
        self.num_base_classes = len(bank.splits["train"])
        if bank.division != "classes":
            raise UsageError(
                f"expected data.split=classes for task.base_query, got data.split={bank.division}; set "
                "data.split=classes, or task.base_query=0"
            )
        if holdout_per_class < 2:
            raise UsageError(
                f"expected pretrain.holdout_per_class >= 2 for task.base_query, got {holdout_per_class}; raise it, so "
                "that validation and test have images of base classes"
            )
        holdout = held_out_rows(bank, holdout_per_class)
        self.training_bank = without_rows(bank, holdout)
        self.holdout = halves(holdout)

    @property
    def context(self) -> dict[str, int]:
        """The mapping {"num_base_classes": B}, for constructors of models and guides with this argument."""
        return {"num_base_classes": self.num_base_classes}

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Episodes]:
        bank = self.training_bank if split == "train" else self.bank
        draw_novel, pool = BankSampler(bank).rows_sampler(split, shape), Pool.of(bank, split)
        if split == "train" and self.num_base_classes == shape.way:
            raise UsageError(
                f"expected more than task.way={shape.way} training classes, got {self.num_base_classes}; lower "
                "task.way, so that some classes remain base classes"
            )

        def draw(generator: Generator) -> Episodes:
            novel = draw_novel(generator)
            tasks, base = novel.tasks(slice(None)), self._base_classes(novel.rows, split)
            labels = torch.randint(base.shape[1], (BLOCK, shape.base_query), generator=generator)
            rows = self._rows(base.gather(1, labels), split, generator)
            inputs = pool.at(pool.places(rows, generator))
            labels, base = (value.to(pool.device, non_blocking=True) for value in (shape.way + labels, base))
            return replace(
                tasks,
                query_x=torch.cat((tasks.query_x, inputs), dim=1),
                query_y=torch.cat((tasks.query_y, labels), dim=1),
                query_mask=torch.cat((tasks.query_mask, torch.ones_like(labels, dtype=torch.bool)), dim=1),
                auxiliary={"base": base},
            )

        return draw

    def _base_classes(self, tasks: Episodes, split: str) -> Tensor:
        """Return the base classes of each task in increasing order, as indices among the training classes."""
        if split != "train":
            return torch.arange(self.num_base_classes).expand(BLOCK, -1)
        assert tasks.classes is not None
        classes = self.bank.splits["train"]
        novel = (classes.unsqueeze(-1) == tasks.classes.unsqueeze(1)).any(-1)  # [T, B]
        return (~novel).nonzero()[:, 1].view(BLOCK, -1)

    def _rows(self, classes: Tensor, split: str, generator: Generator) -> Tensor:
        """Draw one image for each of Q queries in T tasks, given the base class of each query [T, Q].

        Returns the row numbers [T, Q] of the images in the bank (data set) of the split.
        """
        if split != "train":
            holdout = self.holdout[split]
            sizes = torch.full_like(classes, holdout.shape[1])
            return holdout[classes, distinct_positions(classes, sizes, generator)]
        ids = self.bank.splits["train"][classes]
        sizes = self.training_bank.class_sizes[ids]
        return self.training_bank.class_starts[ids] + distinct_positions(classes, sizes, generator)


def distinct_positions(groups: Tensor, sizes: Tensor, generator: Generator) -> Tensor:
    """Draw a random position (input number) within the class of each query.

    Positions 0, ..., size - 1 of a class are put in a random order. The queries of this class in the task get the first
    positions. If a class has more queries than positions, positions are repeated.

    Args:
        groups: [T, Q], the class of each of Q queries in T tasks.
        sizes: [T, Q], number of positions of the class of each query.
        generator: random generator.
    """
    same = groups.unsqueeze(2) == groups.unsqueeze(1)
    rank, first = same.tril(-1).sum(-1), same.to(torch.uint8).argmax(-1)
    largest = int(sizes.max())
    keys = torch.rand(*groups.shape, largest, generator=generator)
    keys.masked_fill_(torch.arange(largest) >= sizes.unsqueeze(-1), -1.0)
    order = keys.topk(min(int(rank.max()) + 1, largest)).indices
    of_group = order.gather(1, first.unsqueeze(-1).expand_as(order))
    return of_group.gather(2, (rank % sizes).unsqueeze(-1)).squeeze(-1)
