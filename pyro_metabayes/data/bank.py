"""A bank: all labelled inputs of a data set, sorted by class, on one device."""

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
    """Inputs sorted by class; a class belongs to one split, so test classes are not seen in training (but: division).

    Args:
        inputs: [M, *X], float features, uint8 images [M, channels, height, width], or features that stay in their file.
        class_sizes: [G], number of inputs of each of the G classes, in the order of the rows.
        splits: class ids (0 to G - 1) of train, val and test.
        class_names: [G].
        pairs: rows that must not be split between support and query set, if there are any.
        views: [V, N, *X], V augmented renderings of each of the N inputs of the training classes, in the order of
            rows("train"), or None. Training tasks draw from inputs and views with equal probability (pretrain.views).
        num_shared: number of classes that all tasks share, or 0. If positive, a split consists of one or more domains,
            each with these classes in the same order (domains.py).
        auxiliary: further inputs [M, ...] by name, which samplers may put into tasks (domains.py).
        division: what the splits divide: classes, rows or none (sources/division.py). By rows, a class is one class of
            the bank per split, with one name. With none, all splits are the same classes.
        origin: the name of a row for messages and tables: a file, or a row of the user's data; None: the row itself.
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
        """All inputs; raises a UsageError if the bank stays in its file."""
        if not isinstance(self.inputs, Tensor):
            raise UsageError(
                "expected features in memory for this model, got a folder or dataset whose rows are read one by one; "
                "use an .npz or .safetensors file, or a model that only draws tasks"
            )
        return self.inputs

    @property
    def class_starts(self) -> Tensor:
        """Row of the first input of each class [G]."""
        return self.class_sizes.cumsum(0) - self.class_sizes

    @property
    def labels(self) -> Tensor:
        """Class id of every row [M]."""
        return torch.repeat_interleave(torch.arange(len(self.class_sizes)), self.class_sizes)

    def rows(self, split: str) -> Tensor:
        """Rows of all inputs whose class belongs to the split."""
        return torch.isin(self.labels, self.splits[split]).nonzero().squeeze(1)

    def answers(self, split: str) -> Tensor:
        """Labels of the classes of a split for a classifier: the index in the split, or among the shared classes."""
        return torch.arange(len(self.splits[split])) % (self.num_shared or max(len(self.splits[split]), 1))

    def fingerprint(self) -> str:
        """Hash of inputs (of a sample of them if they stay in a file), classes and splits; a part of cache names."""
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
        """The same classes and splits with other inputs, one for each row, such as features of the images."""
        auxiliary = auxiliary or {}
        for name, rows in {"inputs": inputs, **auxiliary}.items():
            if len(rows) != len(self.inputs):
                raise UsageError(f"expected {len(self.inputs)} {name}, one per row of the bank, got {len(rows)}")
        return replace(self, inputs=inputs, views=views, auxiliary=auxiliary)

    def to(self, device: torch.device | str) -> Bank:
        """The bank with its inputs on a device; class sizes and splits stay on the CPU, where tasks are drawn."""
        views = None if self.views is None else self.views.to(device)
        auxiliary = {name: rows.to(device) for name, rows in self.auxiliary.items()}
        return replace(self, inputs=self.inputs.to(device), views=views, auxiliary=auxiliary)

    def tasks(
        self, split: str, way: int = 5, shot: int = 1, query: int = 15, seed: int = 0, num_tasks: int | None = None,
        unknown: int = 0,
    ) -> TaskStream:  # fmt: skip
        """Few-shot tasks of a split: `way` classes, with `shot` support and `query` query points of each.

        Args:
            split: train, val or test.
            way, shot, query: classes, support points per class and query points per class of every task.
            seed: seed of the tasks.
            num_tasks: number of different tasks, which are then repeated; None: endless.
            unknown: number of further classes of every task, with `query` queries each and no support points. Their
                queries have no label: a guide sees them, objectives and scores of labels do not count them.

        Raises:
            UsageError: an argument is no integer, or the split has too few classes, or too small ones.
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
        """A bank from rows in any order, integer labels [M], and the labels of each split (or a function to them)."""
        order = np.argsort(labels, kind="stable")
        names, sizes = np.unique(labels, return_counts=True)
        if len(names) == 0:
            raise UsageError("expected a bank with at least one labelled input, got an empty one")
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
