"""Reading of pickles of arrays from untrusted sources, without running code in the pickles.

A pickle is a program that may call any importable function. Here it can call only the functions in `array_pickles`,
which suffice for arrays, strings, numbers and containers. No other file of this package uses the module pickle to read.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.array_pickles import ALLOWED_NAMES, ForbiddenName
from pyro_metabayes.storage.untrusted import DAMAGED, MOST_VALUES, BoundedFile, nested_values, reason_of


def load_arrays(path: Path) -> Any:
    """Read a pickle file of arrays, builtin containers, strings and numbers.

    Strings of Python 2 are read as latin1.

    Raises:
        UsageError: the pickle contains other objects, or is damaged.
    """
    with path.open("rb") as file:
        return read_arrays(file, str(path))


def read_arrays(file: IO[bytes], name: str) -> Any:
    """Read a pickle of arrays from an open file, like `load_arrays`; messages call the file `name`."""
    try:
        value = _RestrictedUnpickler(BoundedFile(file)).load()
        nested_values(value)
        return value
    except ForbiddenName as error:
        raise UsageError(
            f"expected only arrays, containers, strings and numbers in {name}, got {error}; download the file again "
            "(no code in the file was run)"
        ) from None
    except DAMAGED as error:
        raise UsageError(
            f"expected a complete pickle in {name}, got a damaged or truncated one ({reason_of(error)}); copy or "
            "download the file again"
        ) from None


def text_keys(value: Any, name: str, *needed: str) -> dict[str, Any]:
    """Convert the keys of a dictionary to text. Python 2 wrote keys as bytes.

    Args:
        value: the dictionary.
        name: name of the file, for the message.
        needed: keys that must be present.

    Raises:
        UsageError: the value is not a dictionary, or a needed key is missing.
    """
    entries = {_text(key): item for key, item in value.items()} if isinstance(value, dict) else {}
    if missing := [key for key in needed if key not in entries]:
        got = ", ".join(sorted(entries)) or type(value).__name__
        raise UsageError(f"expected a dictionary with '{missing[0]}' in {name}, got {got}; download the file again")
    return entries


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def flat_array(value: Any, name: str) -> np.ndarray:
    """Convert a list of numbers or strings to an array; return an array unchanged.

    A nested list raises a UsageError, since its array can be much larger than the file.
    """
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if isinstance(value, list | tuple) and all(
        isinstance(item, int | float | str | bytes | np.generic) for item in value
    ):
        return np.asarray(value)
    raise UsageError(
        f"expected an array, or a list of numbers or strings, in {name}, got an object of type {type(value).__name__}; "
        "download the file again"
    )


def _load_bytearray(unpickler: Any) -> None:
    """Read a bytearray from a pickle, without first allocating the size that the file claims."""
    unpickler.append(bytearray(unpickler.read(int.from_bytes(unpickler.read(8), "little"))))


def _with_bounded_size(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap an unpickling function of tuples so that tuples with too many nested values raise a ValueError.

    Hashing a tuple with many nested values would take very long.
    """

    def load_bounded(unpickler: Any) -> None:
        load(unpickler)
        value = unpickler.stack[-1]
        size = 1 + sum(unpickler.tuple_sizes.get(id(item), (1,))[0] for item in value)
        if size > MOST_VALUES:
            raise ValueError("values in the file are nested too deeply")
        unpickler.tuple_sizes[id(value)] = size, value

    return load_bounded


class _RestrictedUnpickler(pickle._Unpickler):
    """Unpickler that can call only the harmless functions and classes in ALLOWED_NAMES.

    The base class is the unpickler written in Python. The one in C would allocate as much memory as the file claims to
    need.
    """

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BYTEARRAY8[0]: _load_bytearray,
        **{
            code[0]: _with_bounded_size(pickle._Unpickler.dispatch[code[0]])
            for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
        },
    }

    def __init__(self, file: BoundedFile) -> None:
        super().__init__(file, encoding="latin1")  # for strings of Python 2
        # Nested size of every tuple, and the tuple itself, so that its id is not reused.
        self.tuple_sizes: dict[int, tuple[int, Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the safe replacement of a function or class.

        A function or class that is not in ALLOWED_NAMES raises ForbiddenName.
        """
        module = module.replace("numpy._core.", "numpy.core.").replace("__builtin__", "builtins")
        if (module, name) not in ALLOWED_NAMES:
            raise ForbiddenName(f"the function or class {module}.{name}")
        return ALLOWED_NAMES[module, name]
