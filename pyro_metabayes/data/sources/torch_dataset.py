"""Reads the items of any map-style torch Dataset of (input, label) when a task needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from pyro_metabayes.errors import UsageError
from pyro_metabayes.seeding import drawing, noise_of
from pyro_metabayes.training.progress import counted

SAMPLE = 64  # largest number of items in a fingerprint


class LabelledItems(Protocol):
    """Torch Dataset with a length, whose items are (input, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class DatasetRows:
    """Inputs [M, *X] of a torch Dataset of M items on the CPU, where *X is the shape of one input.

    The class has the tensor methods that samplers use. Transforms of the dataset are applied whenever an item is read.
    For random transforms, torch's seed is a hash of the indices of the items that are read together. A resumed training
    thus repeats the same transforms. Other random numbers of the training are not changed.

    Args:
        dataset: items (input, label); all inputs are tensors or arrays of the same shape.
        order: [M], the index of the item in each row.
        labels: the expected label of every item, for a check when the item is read.

    Raises:
        UsageError: inputs are not tensors of real numbers, inputs differ in shape, or an item has another label than
            expected.
    """

    device = torch.device("cpu")

    def __init__(self, dataset: LabelledItems, order: np.ndarray, labels: np.ndarray) -> None:
        self.dataset, self.order, self.labels = dataset, order, labels
        self._item_shape = tuple(self._read(order[:1]).shape[1:])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self._item_shape))

    def dim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.order)

    def to(self, device: torch.device | str) -> DatasetRows:
        """Return the object itself: only the inputs of drawn tasks are moved to a device."""
        return self

    def in_order(self, order: np.ndarray) -> DatasetRows:
        """Return the same rows in another order."""
        return DatasetRows(self.dataset, self.order[order], self.labels)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Read n inputs, of shape *X each, by their row numbers, as a tensor [n, *X]; `dim` must be 0."""
        assert dim == 0
        return self._read(self.order[rows.numpy()])

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all rows in tensors of `size` rows."""
        for start in range(0, len(self), size):
            yield self._read(self.order[start : start + size])

    def sample(self) -> bytes:
        """Return bytes that identify the content, for `Bank.fingerprint`: the shape and evenly spaced rows."""
        rows = np.linspace(0, len(self) - 1, min(len(self), SAMPLE)).astype(np.int64)
        return f"{tuple(self.shape)}".encode() + self._read(self.order[rows]).numpy().tobytes()

    def _read(self, items: np.ndarray) -> Tensor:
        with noise_of(_seed_of(items)), drawing():
            inputs = [self._input(item) for item in items.tolist()]
        for item, value in zip(items.tolist(), inputs, strict=True):
            if value.shape != inputs[0].shape:
                raise UsageError(
                    f"expected inputs of one shape, got {list(inputs[0].shape)} in item {items[0]} and "
                    f"{list(value.shape)} in item {item}; add a transform that resizes the inputs"
                )
        return torch.stack(inputs)

    def _input(self, item: int) -> Tensor:
        pair = self.dataset[item]
        _check_label(_label(pair, item), self.labels[item], item)
        return _as_tensor(pair[0], item)


def _as_tensor(value: Any, item: int) -> Tensor:
    """Convert an input to a tensor: uint8 stays uint8, all other types become float32."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
    if not isinstance(value, Tensor):
        raise UsageError(
            f"expected tensors or arrays as inputs of the dataset, got {type(value).__name__} in item {item}; add a "
            "transform such as torchvision.transforms.PILToTensor()"
        )
    if value.is_complex():
        raise UsageError(
            f"expected real inputs of the dataset, got {value.dtype} in item {item}; add a transform such as "
            "torch.view_as_real"
        )
    return value if value.dtype == torch.uint8 else value.float()


def _seed_of(items: np.ndarray) -> int:
    return int.from_bytes(sha256(items.astype(np.int64).tobytes()).digest()[:7], "little")


def labels_of(dataset: LabelledItems) -> np.ndarray:
    """Return the label, integer or text, of each of the M items: an array [M].

    Labels come from the attribute `targets` or `labels` of the dataset, or from the second tensor of a TensorDataset.
    If there is none, all items are read.

    Raises:
        UsageError: the dataset is not map-style, it is empty, a label is not an integer or text, or `targets` or
            `labels` differ from the items.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or not len(dataset):
        raise UsageError(
            "expected a torch Dataset of (input, label) with a length and at least one item, got "
            f"{type(dataset).__name__}; read a dataset without a length into a list first"
        )
    first = _label(dataset[0], 0)
    listed = _listed_labels(dataset)
    if listed is None:
        items = counted(range(len(dataset)), "read labels", "items")
        return np.asarray([_label(dataset[item], item) for item in items])
    if len(listed) != len(dataset):
        raise UsageError(
            f"expected one label for each of the {len(dataset)} items in `targets` or `labels` of the dataset, got "
            f"{len(listed)} labels; change labels together with items, for example with torch.utils.data.Subset"
        )
    _check_label(first, listed[0], 0)
    return listed


def _check_label(label: Any, listed: Any, item: int) -> None:
    if label != listed:
        raise UsageError(
            f"expected item {item} of the dataset to have the label {listed}, as `targets` or `labels` say, got "
            f"{label}; correct `targets` or `labels`, or remove them from the dataset"
        )


def _listed_labels(dataset: Any) -> np.ndarray | None:
    """Return labels from `targets`, `labels` or the second tensor; None without any, or with a target_transform."""
    if isinstance(dataset, Subset):
        inner = _listed_labels(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [part for inner in dataset.datasets if (part := _listed_labels(inner)) is not None]
        return np.concatenate(parts) if len(parts) == len(dataset.datasets) else None
    if isinstance(dataset, TensorDataset):
        return _plain_labels(dataset.tensors[1]) if len(dataset.tensors) > 1 else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    return _plain_labels(getattr(dataset, "targets", getattr(dataset, "labels", None)))


def _plain_labels(values: Any) -> np.ndarray | None:
    labels = None if values is None else np.asarray(values)
    return labels if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iuU" else None


def _label(pair: Any, item: int) -> Any:
    """Return the label of a pair (input, label), as a Python int or str."""
    label = pair[1] if isinstance(pair, tuple | list) and len(pair) == 2 else None
    array = np.asarray(label)
    value = array.item() if array.size == 1 else label
    if type(value) not in (int, str):
        raise UsageError(
            f"expected items (input, label) with an integer or text as label, got {type(pair).__name__} with the label "
            f"{label!r} as item {item}; add a target_transform, or wrap the dataset"
        )
    return value


def class_names_of(dataset: Any, labels: Sequence[Any]) -> list[str]:
    """Return the name of each label in the attribute `classes` of the dataset, or else the label as text."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = dict(enumerate(getattr(dataset, "classes", ())))
    return [str(names.get(label, label)) for label in labels]
