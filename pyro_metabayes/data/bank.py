"""A bank: the labelled inputs of a data set, sorted by class, on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyro_metabayes.data.mapped import StoredRows
from pyro_metabayes.data.pairs import Pairs
from pyro_metabayes.data.sources.from_users import FromUsers
from pyro_metabayes.errors import UsageError
from pyro_metabayes.validation.arguments import check_integers
from pyro_metabayes.validation.splits import check_splits

if TYPE_CHECKING:
    from pyro_metabayes.data.stream import TaskStream

SPLITS = ("train", "val", "test")
DIVISIONS = ("classes", "rows", "none")


@dataclass(frozen=True, eq=False)
class Bank(FromUsers):
    """Data set of M labelled inputs of G classes, sorted by class.

    By default each class belongs to one split, so that test classes are not seen in training.

    Args:
        inputs: [M, *X], where *X is the shape of one input. Float features, uint8 images [M, channels, height, width],
            or features that stay in a file.
        class_sizes: [G], number of inputs of each class, in the order of the rows.
        splits: ids of the classes (0 to G - 1) of each split: train, val and test.
        class_names: [G], names of the classes.
        pairs: pairs of rows that must not be split between support and query set; None: there are none.
        views: [V, N, *X], V augmented copies of the N training inputs, in the order of rows("train"). Training tasks
            draw inputs and copies with equal probability (pretrain.views). None: no copies.
        num_shared: number of classes that all tasks share; 0: tasks have different classes. If positive, a split
            consists of one or more domains, and every domain has the same classes in the same order (domains.py).
        auxiliary: further inputs [M, ...] by name, which samplers may put into tasks (domains.py).
        division: what differs between splits (sources/division.py). "classes": each class belongs to one split. "rows":
            each class has rows in several splits; the bank then has one class per split, all with the same name.
            "none": all splits are the same.
        origin: function that returns the name of a row in messages, given the row number; None: the number.
    """

    inputs: Tensor | StoredRows
    class_sizes: Tensor
    splits: Mapping[str, Tensor]
    class_names: Sequence[str]
    pairs: Pairs | None = None
    views: Tensor | None = None
    num_shared: int = 0
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)
    division: str = "classes"
    origin: Callable[[int], str] | None = field(default=None, compare=False, repr=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.inputs.shape[1:])

    @property
    def in_memory(self) -> Tensor:
        """All M inputs, of shape *X each: [M, *X]. Inputs that stay in a file or dataset raise a UsageError."""
        if not isinstance(self.inputs, Tensor):
            raise UsageError(
                "expected features in memory, since a setting needs the whole data set, got a folder or dataset whose "
                "rows are read one by one; use an .npz or .safetensors file, or settings that only draw tasks"
            )
        return self.inputs

    @property
    def class_starts(self) -> Tensor:
        """Row number of the first input of each of the G classes [G]."""
        return self.class_sizes.cumsum(0) - self.class_sizes

    @property
    def labels(self) -> Tensor:
        """Class id of each of the M rows [M]."""
        return torch.repeat_interleave(torch.arange(len(self.class_sizes)), self.class_sizes)

    def rows(self, split: str) -> Tensor:
        """Return the row numbers of all inputs whose class belongs to the split."""
        return torch.isin(self.labels, self.splits[split]).nonzero().squeeze(1)

    def answers(self, split: str) -> Tensor:
        """Return the labels 0, 1, ... of the classes of a split, for a classifier that is trained on this split.

        If several domains share the classes (num_shared > 0), a class has the same label in every domain.
        """
        return torch.arange(len(self.splits[split])) % (self.num_shared or max(len(self.splits[split]), 1))

    def fingerprint(self) -> str:
        """Return a hash of inputs, classes and splits, which names files in the cache.

        If the inputs stay in a file, only some of them are hashed.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        if isinstance(self.inputs, Tensor):
            digest = sha256(self.inputs.cpu().contiguous().numpy().tobytes())
        else:
            digest = sha256(self.inputs.sample())
        digest.update(self.class_sizes.numpy().tobytes())
        for split in SPLITS:
            digest.update(split.encode() + self.splits[split].numpy().tobytes())
        if self.num_shared:
            digest.update(f"shared {self.num_shared}".encode())
        return digest.hexdigest()[:16]

    def with_inputs(
        self, inputs: Tensor | StoredRows, views: Tensor | None = None, auxiliary: Mapping[str, Tensor] | None = None
    ) -> Bank:
        """Return a bank with the same classes and splits, but new inputs (one per row), views and auxiliary inputs."""
        auxiliary = auxiliary or {}
        for name, rows in {"inputs": inputs, **auxiliary}.items():
            if len(rows) != len(self.inputs):
                raise UsageError(
                    f"expected {len(self.inputs)} {name}, one per row of the data set, got {len(rows)}; pass one per "
                    "row"
                )
        return replace(self, inputs=inputs, views=views, auxiliary=auxiliary)

    def to(self, device: torch.device | str) -> Bank:
        """Return the bank with the inputs on a device; inputs in a file, class sizes and splits stay on the CPU."""
        views = None if self.views is None else self.views.to(device)
        auxiliary = {name: rows.to(device) for name, rows in self.auxiliary.items()}
        return replace(self, inputs=self.inputs.to(device), views=views, auxiliary=auxiliary)

    def tasks(
        self, split: str, way: int = 5, shot: int = 1, query: int = 15, seed: int = 0, num_tasks: int | None = None,
        unknown: int = 0,
    ) -> TaskStream:  # fmt: skip
        """Return a stream of tasks from a split: `way` classes with `shot` support and `query` query points each.

        Args:
            split: train, val or test.
            way, shot, query: classes, support points per class and query points per class of every task.
            seed: seed of the tasks.
            num_tasks: number of different tasks, after which the stream starts again; None: no task is repeated.
            unknown: number of unknown classes per task, i.e. classes with `query` queries but no support points. These
                queries have no label: a guide sees them, but objectives and scores do not count them.

        Raises:
            UsageError: an argument is not an integer or too small; or the split does not exist, or has too few classes
                or inputs per class.
        """
        from pyro_metabayes.data.sampler import BankSampler  # here, since it imports this file
        from pyro_metabayes.data.stream import TaskStream
        from pyro_metabayes.data.task_shape import TaskShape

        check_integers(1, way=way, shot=shot, query=query)
        check_integers(0, seed=seed, unknown=unknown)
        if num_tasks is not None:
            check_integers(1, num_tasks=num_tasks)
        draw = BankSampler(self).sampler(split, TaskShape(way, shot, query, unknown=unknown))
        return TaskStream(draw, seed, split, num_tasks)

    @classmethod
    def from_arrays(
        cls,
        inputs: np.ndarray | StoredRows,
        labels: np.ndarray,
        split_of_class: Callable[[np.ndarray], Mapping[str, np.ndarray]] | Mapping[str, np.ndarray],
        class_names: Sequence[str] | None = None,
    ) -> Bank:
        """Return a bank from inputs in any order and their labels.

        Args:
            inputs: [M, *X], M inputs of shape *X.
            labels: [M], the label of each input.
            split_of_class: the labels of each split, or a function that returns these, given all labels.
            class_names: names of the classes in increasing order of the labels; None: the labels.
        """
        order = np.argsort(labels, kind="stable")
        names, sizes = np.unique(labels, return_counts=True)
        if len(names) == 0:
            raise UsageError("expected at least one labelled input in the data set, got none; add data")
        splits = split_of_class(names) if callable(split_of_class) else split_of_class
        check_splits(splits, SPLITS)
        ids = {split: torch.from_numpy(np.flatnonzero(np.isin(names, splits.get(split, [])))) for split in SPLITS}
        if isinstance(inputs, np.ndarray):
            rows: Tensor | StoredRows = torch.from_numpy(np.ascontiguousarray(inputs[order]))
        else:
            rows = inputs.in_order(order)
        return cls(
            inputs=rows,
            class_sizes=torch.from_numpy(sizes.astype(np.int64)),
            splits=ids,
            class_names=list(class_names) if class_names is not None else [str(name) for name in names],
        )
