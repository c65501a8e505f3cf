"""Tasks from a bank of classes: a whole block in one gather."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.stream import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError


class BankSampler:
    """Draws classes, then images of each, without replacement; a whole block in one gather."""

    num_targets = 0  # labels are classes
    num_base_classes = 0  # that are told apart beside those of a task

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.uneven = len(bank.class_sizes.unique()) > 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.bank.input_shape

    def sampler(self, split: str, shape: TaskShape) -> Callable[[Generator], Episodes]:
        """As `Source.sampler`; refuses a shape that the split cannot fill."""
        classes = self._checked_classes(split, shape)
        sizes, starts = self.bank.class_sizes[classes], self.bank.class_starts[classes]
        pool, place = self.pool(split)

        def draw(generator: Generator) -> Episodes:
            chosen = torch.rand(BLOCK, len(classes), generator=generator).topk(shape.way).indices
            within = self._draw_within(sizes[chosen], starts[chosen], shape, generator)
            rows = starts[chosen].unsqueeze(-1) + within  # [B, C, shot + most_queries]
            return self._gather(pool, self.rendered(rows, pool, place, generator), classes[chosen], shape, generator)

        return draw

    def pool(self, split: str) -> tuple[Tensor, Tensor | None]:
        """What inputs are drawn from; where there are views, those after one another, and the bank's rows of one."""
        if self.bank.views is None or split != "train":
            return self.bank.inputs, None
        rows = self.bank.rows("train")
        plain = self.bank.inputs[rows.to(self.bank.inputs.device)]
        return torch.cat([plain, self.bank.views.flatten(0, 1)]), rows

    def rendered(self, rows: Tensor, pool: Tensor, place: Tensor | None, generator: Generator) -> Tensor:
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
        largest = int(self.bank.class_sizes.max())
        keys = torch.rand(*sizes.shape, largest, generator=generator, dtype=torch.float64)
        beyond = torch.arange(largest) >= sizes.unsqueeze(-1)
        if self.bank.twin is None:
            keys = keys.masked_fill_(beyond, -1.0) if self.uneven else keys
            return _largest(keys, shape.shot + shape.most_queries)
        ties = torch.rand(keys.shape, generator=generator, dtype=torch.float64)
        rows = (starts.unsqueeze(-1) + torch.arange(largest)).clamp(max=len(self.bank.twin) - 1)
        partner = (self.bank.twin[rows] - starts.unsqueeze(-1)).clamp(0, largest - 1)
        return _twins_on_one_side(keys, ties, partner, beyond, shape)

    def _gather(self, pool: Tensor, rows: Tensor, classes: Tensor, shape: TaskShape, generator: Generator) -> Episodes:
        device, task = pool.device, torch.arange(BLOCK).unsqueeze(-1)
        labels, within = shape.query_points(generator)

        def take(points: Tensor) -> Tensor:
            flat = pool.index_select(0, points.flatten().to(device, non_blocking=True))
            return flat.view(BLOCK, -1, *self.input_shape)

        return Episodes(
            support_x=take(rows[..., : shape.shot]),
            support_y=shape.labels(shape.shot, BLOCK).to(device),
            query_x=take(rows[task, labels, shape.shot + within]),
            query_y=labels.to(device),
            num_classes=shape.way,
            classes=classes.to(device),
        )


def _largest(keys: Tensor, number: int) -> Tensor:
    """keys.topk(number).indices along the last axis, in half its time: numpy parts before it sorts. No two keys tie."""
    values = keys.numpy()
    if number == values.shape[-1]:
        return keys.argsort(-1, descending=True)
    found = np.argpartition(values, -number, axis=-1)[..., -number:]
    order = np.take_along_axis(values, found, axis=-1).argsort(-1)[..., ::-1]
    return torch.from_numpy(np.take_along_axis(found, order, axis=-1))


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
