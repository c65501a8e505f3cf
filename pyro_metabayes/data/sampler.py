"""Tasks from a bank of classes: which rows they have is drawn by the block, what is in them gathered by the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.mapped import MappedRows
from pyro_metabayes.data.stream import Block
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.device import PINNING
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError

# Random keys for every input of the chosen classes are sorted in part, or, where that would be more of them, as many
# positions as are needed are drawn one after the other. Part of what defines a task.
MOST_KEYS = 2**21


@dataclass(frozen=True)
class RowsOfTasks:
    """A block of tasks as rows of a pool: [T, S] and [T, Q] numbers stand in `rows` for the inputs."""

    pool: Tensor | MappedRows
    rows: Episodes
    device: torch.device | str

    def tasks(self, index: slice) -> Episodes:
        """Those that `index` picks, their inputs gathered."""
        part = self.rows.tasks(index)
        return replace(part, support_x=self._inputs(part.support_x), query_x=self._inputs(part.query_x)).to(self.device)

    def to(self, device: torch.device | str) -> RowsOfTasks:
        return replace(self, device=device)

    def _inputs(self, rows: Tensor) -> Tensor:
        flat = self.pool.index_select(0, rows.flatten().to(self.pool.device, non_blocking=True))
        if self.pool.device != torch.device(self.device) and torch.device(self.device).type in PINNING:
            flat = flat.pin_memory()  # from where a copy to the device goes on beside the host
        return flat.view(*rows.shape, *flat.shape[1:])


class BankSampler:
    """Draws classes, then images of each, without replacement; a whole block at once."""

    num_targets = 0  # labels are classes
    num_base_classes = 0  # that are told apart beside those of a task

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.uneven = len(bank.class_sizes.unique()) > 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.bank.input_shape

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Block]:
        """As `Source.sampler`; refuses a shape that the split cannot fill."""
        return self.rows_sampler(split, shape)

    def rows_sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], RowsOfTasks]:
        """As `sampler`, with the rows of each task on the CPU."""
        classes = self._checked_classes(split, shape)
        sizes, starts = self.bank.class_sizes[classes], self.bank.class_starts[classes]
        pool, place = self.pool(split)

        def draw(generator: Generator) -> RowsOfTasks:
            chosen = torch.rand(BLOCK, len(classes), generator=generator).topk(shape.way).indices
            within = self._draw_within(sizes[chosen], starts[chosen], shape, generator)
            rows = starts[chosen].unsqueeze(-1) + within  # [B, C, shot + most_queries]
            rows = self.rendered(rows, pool, place, generator)
            return RowsOfTasks(pool, self._tasks(rows, classes[chosen], shape, generator), pool.device)

        return draw

    def pool(self, split: str) -> tuple[Tensor | MappedRows, Tensor | None]:
        """What inputs are drawn from; where there are views, those after one another, and the bank's rows of one."""
        if self.bank.views is None or split != "train":
            return self.bank.inputs, None
        rows = self.bank.rows("train")
        plain = self.bank.in_memory[rows.to(self.bank.inputs.device)]
        return torch.cat([plain, self.bank.views.flatten(0, 1)]), rows

    def rendered(self, rows: Tensor, pool: Tensor | MappedRows, place: Tensor | None, generator: Generator) -> Tensor:
        """Rows of `pool` for rows of the bank: each image in one of its renderings, where there are any."""
        if place is None:
            return rows
        views = torch.randint(len(pool) // len(place), rows.shape, generator=generator)
        return views * len(place) + torch.searchsorted(place, rows)

    def _checked_classes(self, split: str, shape: TaskShape) -> Tensor:
        shape.check_classes(split)
        classes = self.bank.splits[split]
        if len(classes) < shape.way:
            raise UsageError(
                f"expected at least task.way={shape.way} classes in the {split} split, got {len(classes)}; "
                "lower task.way or bring more classes"
            )
        smallest, needed = int(self.bank.class_sizes[classes].min()), shape.shot + shape.most_queries
        if smallest < needed:
            name = self.bank.class_names[int(classes[self.bank.class_sizes[classes].argmin()])]
            queries = "task.query" if shape.most_queries == shape.query else "the most queries of a class"
            raise UsageError(
                f"expected at least task.shot + {queries} = {needed} inputs in every "
                f"class of the {split} split, got {smallest} in class '{name}'; lower task.shot or task.query"
            )
        self._check_twins(classes, shape)
        return classes

    def _check_twins(self, classes: Tensor, shape: TaskShape) -> None:
        """Nothing but twins, all of them needed: an odd number of shots would part a pair."""
        if self.bank.twin is None or shape.shot % 2 == 0:
            return
        alone = self.bank.twin == torch.arange(len(self.bank.twin))
        singles = torch.bincount(self.bank.labels[alone], minlength=len(self.bank.class_sizes))
        sizes = self.bank.class_sizes
        if ((sizes == shape.shot + shape.most_queries) & (singles == 0))[classes].any():
            raise UsageError(
                f"expected an even task.shot where a task needs all inputs of a class and they are pairs of "
                f"twins, got {shape.shot}; change it, or lower task.query"
            )

    def _draw_within(self, sizes: Tensor, starts: Tensor, shape: TaskShape, generator: Generator) -> Tensor:
        """Positions inside each chosen class [B, C, shot + most_queries], all different."""
        largest, number = int(self.bank.class_sizes.max()), shape.shot + shape.most_queries
        if self.bank.twin is None and sizes.numel() * largest > MOST_KEYS:
            return _one_after_the_other(sizes, number, generator)
        keys = torch.rand(*sizes.shape, largest, generator=generator, dtype=torch.float64)
        beyond = torch.arange(largest) >= sizes.unsqueeze(-1)
        if self.bank.twin is None:
            keys = keys.masked_fill_(beyond, -1.0) if self.uneven else keys
            return _largest(keys, number)
        ties = torch.rand(keys.shape, generator=generator, dtype=torch.float64)
        rows = (starts.unsqueeze(-1) + torch.arange(largest)).clamp(max=len(self.bank.twin) - 1)
        partner = (self.bank.twin[rows] - starts.unsqueeze(-1)).clamp(0, largest - 1)
        return _twins_on_one_side(keys, ties, partner, beyond, shape)

    def _tasks(self, rows: Tensor, classes: Tensor, shape: TaskShape, generator: Generator) -> Episodes:
        """Class-ordered tasks of `rows` [B, C, shot + most_queries], whose inputs are the numbers of their rows."""
        labels, within = shape.query_points(generator)
        return Episodes(
            support_x=rows[..., : shape.shot].flatten(1),
            support_y=shape.labels(shape.shot, BLOCK),
            query_x=rows[torch.arange(BLOCK).unsqueeze(-1), labels, shape.shot + within],
            query_y=labels,
            num_classes=shape.way,
            classes=classes,
        )


def _largest(keys: Tensor, number: int) -> Tensor:
    """keys.topk(number).indices along the last axis, in half its time: numpy parts before it sorts. No two keys tie."""
    values = keys.numpy()
    if number == values.shape[-1]:
        return keys.argsort(-1, descending=True)
    found = np.argpartition(values, -number, axis=-1)[..., -number:]
    order = np.take_along_axis(values, found, axis=-1).argsort(-1)[..., ::-1]
    return torch.from_numpy(np.take_along_axis(found, order, axis=-1))


def _one_after_the_other(sizes: Tensor, number: int, generator: Generator) -> Tensor:
    """`number` different positions below each of sizes [B, C], in random order, at a cost that no size enters.

    For j = size - number, ..., size - 1 take a random one of 0, ..., j; j itself if that was taken before. All subsets
    are as likely then (Bentley and Floyd 1987, "A sample of brilliance"), but not all of their orders: these are drawn.
    """
    chosen = torch.empty(*sizes.shape, number, dtype=torch.int64)
    for i in range(number):
        last = sizes - number + i
        drawn = (torch.rand(sizes.shape, generator=generator, dtype=torch.float64) * (last + 1)).long()
        taken = (chosen[..., :i] == drawn.unsqueeze(-1)).any(-1)
        chosen[..., i] = torch.where(taken, last, drawn)
    return chosen.gather(-1, torch.rand(chosen.shape, generator=generator, dtype=torch.float64).argsort(-1))


def _twins_on_one_side(keys: Tensor, ties: Tensor, partner: Tensor, beyond: Tensor, shape: TaskShape) -> Tensor:
    """A random order in which no pair of twins straddles support and query.

    keys, ties [B, C, n] uniform; partner [B, C, n] position of the twin, or the own position. Twins
    are put side by side; where the end of the support would part a pair, the second twin leaves the
    task if there are inputs to spare, and changes places with an input without twin if not.
    """
    positions = torch.arange(keys.shape[-1])
    leader = torch.minimum(positions.expand_as(partner), partner)
    # Twins share their leader's key. What orders the two must not depend on it: where they come first
    # the leader's key is small, so by their own keys it would always lead, and be the one of one shot.
    paired = keys.gather(-1, leader) + 1e-9 * ties
    order = paired.masked_fill(beyond, 2.0).argsort(-1)
    last_support, first_query = order[..., shape.shot - 1], order[..., shape.shot]
    parted = partner.gather(-1, last_support.unsqueeze(-1)).squeeze(-1) == first_query
    sizes = (~beyond).sum(-1)
    spare = sizes > shape.shot + shape.most_queries
    single = (partner == positions).gather(-1, order) & (positions < sizes.unsqueeze(-1))
    any_single = single.to(torch.uint8).argmax(-1)
    here = torch.where(any_single < shape.shot, torch.tensor(shape.shot), torch.tensor(shape.shot - 1))
    here = torch.where(spare, torch.tensor(shape.shot), here)
    there = torch.where(spare, sizes - 1, any_single)
    swapped = _swap(order, here, there)
    order = torch.where(parted.unsqueeze(-1), swapped, order)
    return order[..., : shape.shot + shape.most_queries]


def _swap(order: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """`order` with the entries at positions here and there exchanged, row by row."""
    here, there = here.unsqueeze(-1), there.unsqueeze(-1)
    swapped = order.scatter(-1, here, order.gather(-1, there))
    return swapped.scatter(-1, there, order.gather(-1, here))
