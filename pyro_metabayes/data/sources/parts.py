"""Converts data sets to arrays in the cache, one split at a time; later runs read the cache."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.errors import UsageError, how_many
from pyro_metabayes.storage.cache import cache_folder
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.checksums import verify
from pyro_metabayes.storage.untrusted import DAMAGED, reason_of
from pyro_metabayes.training.progress import counted


@dataclass(frozen=True)
class Rows:
    """Inputs of one split of a data set, sorted by class, and the number of inputs of each class (by class name)."""

    class_sizes: Mapping[str, int]
    inputs: Iterable[np.ndarray]  # sum of class_sizes arrays, all of one shape and type

    @classmethod
    def of_labels(cls, names: Sequence[str], input_of: Callable[[int], np.ndarray]) -> Rows:
        """Return the inputs sorted by class name.

        Args:
            names: the class name of each row.
            input_of: function from a row number to the input.
        """
        order = sorted(range(len(names)), key=names.__getitem__)  # stable: keeps the order within a class
        sizes = {name: len(list(rows)) for name, rows in itertools.groupby(order, names.__getitem__)}
        return cls(sizes, map(input_of, order))


@dataclass(frozen=True)
class Part:
    """Split of a data set in its published form: the files, and a function that reads them."""

    files: Sequence[Path]
    read: Callable[[], Rows]


def bank_of(name: str, parts: Mapping[str, Part], settings: Mapping[str, object], division: str = "classes") -> Bank:
    """Return a data set (bank) from its splits. Splits that are not in the cache are converted first.

    A split is cached as NAME/SPLIT-KEY.npy. A .json file of the same name lists the classes of the split. KEY is a hash
    of the settings and of the names, sizes and modification times of the files. Changed files are thus converted again.
    An interrupted conversion keeps the splits that were finished.

    Args:
        name: name of the data set.
        parts: the splits train, val and test; only train if the data are not divided.
        settings: settings on which the conversion depends.
        division: what the splits divide: "classes", "rows" or "none". With "classes", a class in two splits raises a
            UsageError.
    """
    paths = {split: _path(name, split, part, settings) for split, part in parts.items()}
    for split, path in paths.items():
        if _classes(path) is None:
            _convert(path, f"{name} {split}", parts[split])
    classes = {split: _classes(path) or {} for split, path in paths.items()}
    if division == "classes":
        refuse_shared({split: list(sizes) for split, sizes in classes.items()}, name)
    arrays = [np.load(path, mmap_mode="r") for path in paths.values()]
    if len({(array.shape[1:], array.dtype) for array in arrays}) > 1:
        shapes = ", ".join(f"{list(array.shape[1:])} in {split}" for split, array in zip(paths, arrays, strict=True))
        raise UsageError(f"expected inputs of one shape in all splits of {name}, got {shapes}; use files of one source")
    inputs = np.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    np.concatenate(arrays, out=inputs)  # the parts are memory-mapped: this is the only copy
    sizes = [size for counts in classes.values() for size in counts.values()]
    ends = np.cumsum([len(counts) for counts in classes.values()])
    return Bank(
        inputs=torch.from_numpy(inputs),
        class_sizes=torch.tensor(sizes),
        splits={s: torch.arange(end - len(classes[s]), end) for s, end in zip(classes, ends.tolist(), strict=True)},
        class_names=[name for counts in classes.values() for name in counts],
    )


def refuse_shared(names: Mapping[str, Sequence[str]], source: object) -> None:
    """Check that no split is empty and that no class is in several splits, else raise a UsageError."""
    if empty := [split for split in SPLITS if not names[split]]:
        raise UsageError(f"expected classes in every split of {source}, got none in {empty[0]}; add data")
    for one, other in itertools.combinations(SPLITS, 2):
        if both := sorted(set(names[one]) & set(names[other])):
            raise UsageError(
                f"expected each class in one split of {source}, got '{both[0]}' in {one} and {other} ("
                f"{how_many(len(both), 'such class', 'such classes')}); keep each class in "
                "one split, since test classes must be unseen in training"
            )


def _path(name: str, split: str, part: Part, settings: Mapping[str, object]) -> Path:
    times = [(str(file.absolute()), (status := file.stat()).st_size, status.st_mtime_ns) for file in part.files]
    key = sha256(repr((sorted(settings.items()), times)).encode()).hexdigest()[:16]
    return cache_folder() / name / f"{split}-{key}.npy"


def _classes(path: Path) -> dict[str, int] | None:
    """Return the number of inputs of each class of a converted split; None if its files are missing or damaged."""
    try:
        classes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        whole = len(np.load(path, mmap_mode="r")) == sum(classes.values())
        return classes if whole else None
    except DAMAGED:
        return None


def _convert(path: Path, what: str, part: Part) -> None:
    for file in part.files:
        verify(file)
    rows = _read(part, what)
    write_atomically(path, lambda temporary: _fill(temporary, what, rows))
    text = json.dumps(rows.class_sizes)
    write_atomically(path.with_suffix(".json"), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read(part: Part, what: str) -> Rows:
    try:
        return part.read()
    except UsageError:
        raise
    except DAMAGED as error:
        raise UsageError(
            f"expected {what} in a published form in {part.files[0]}, got another form ({type(error).__name__}: "
            f"{reason_of(error)}); download the file again"
        ) from error


def _fill(path: Path, what: str, rows: Rows) -> None:
    """Write the inputs to a .npy file, with only one row in memory at a time."""
    total = sum(rows.class_sizes.values())
    if total == 0:
        raise UsageError(f"expected at least one input in {what}, got none; add data")
    inputs = iter(rows.inputs)
    first = np.asarray(next(inputs))
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (total, *first.shape),
    }
    values = itertools.chain([first], inputs)
    with path.open("wb") as file:  # not memory-mapped, since a full disk would then kill the process
        np.lib.format.write_array_header_1_0(file, header)
        for value in counted(values, f"convert {what}", "rows", total):
            if (row := np.asarray(value, first.dtype)).shape != first.shape:
                raise UsageError(
                    f"expected inputs of one shape in {what}, got {first.shape} and {row.shape}; change the inputs"
                )
            file.write(row.tobytes())
