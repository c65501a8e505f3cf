"""Pickles of arrays from elsewhere, read without running what they may hold.

A pickle is a program: it may call any importable function. Here it reaches only the few names below that
arrays, strings, numbers and containers are written with, and those of numpy not as they are (numpy.ndarray
called with a buffer would take forged addresses for objects) but through stand-ins that check what they get.
No other file of this package unpickles anything.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.untrusted import DAMAGED, MOST_VALUES, Bounded, reason_of, walked

KINDS = "biufcSUO"  # of dtypes: bool, integers, floats, complex, bytes, text, and lists of arrays


def load_arrays(path: Path) -> Any:
    """The arrays, builtin containers, strings and numbers that a pickle file holds; Python 2's as latin1."""
    with path.open("rb") as file:
        return read_arrays(file, str(path))


def read_arrays(file: IO[bytes], name: str) -> Any:
    """As `load_arrays`, from an open file; `name` is what a message calls it."""
    try:
        value = _Restricted(Bounded(file)).load()
        walked(value)
        return value
    except _Refused as refused:
        raise UsageError(
            f"expected arrays, containers, strings and numbers alone in {name}, but it asks for {refused}; "
            "nothing of it was run: take the published file"
        ) from None
    except DAMAGED as error:
        raise UsageError(
            f"expected a whole pickle in {name}, got a damaged or truncated one ({reason_of(error)}); copy or download "
            "it anew"
        ) from None


def text_keys(value: Any, name: str, *needed: str) -> dict[str, Any]:
    """A dictionary with its keys as text (Python 2 wrote bytes), refused if one that is needed is missing."""
    keyed = {_text(key): item for key, item in value.items()} if isinstance(value, dict) else {}
    if missing := [key for key in needed if key not in keyed]:
        got = ", ".join(sorted(keyed)) or type(value).__name__
        raise UsageError(f"expected a dictionary with '{missing[0]}' in {name}, got {got}; take the published file")
    return keyed


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def flat_array(value: Any, name: str) -> np.ndarray:
    """An array, or one made of a list of numbers or strings; lists of lists could be anything but small."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if isinstance(value, list | tuple) and all(
        isinstance(item, int | float | str | bytes | np.generic) for item in value
    ):
        return np.asarray(value)
    raise UsageError(f"expected an array, or a list of numbers or strings, in {name}, got {type(value).__name__}")


class _Refused(Exception):
    """The name that a pickle asked for."""


def _load_bytearray(unpickler: Any) -> None:
    """Read first: Python's own makes room for as many bytes as the file says that there are."""
    unpickler.append(bytearray(unpickler.read(int.from_bytes(unpickler.read(8), "little"))))


def _weighed(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """A tuple as a key of a dictionary is hashed with all that it holds, however often that stands in it."""

    def loading(unpickler: Any) -> None:
        load(unpickler)
        made = unpickler.stack[-1]
        weight = 1 + sum(unpickler.weights.get(id(item), (1,))[0] for item in made)
        if weight > MOST_VALUES:
            raise ValueError("it is nested without end")
        unpickler.weights[id(made)] = weight, made

    return loading


class _Restricted(pickle._Unpickler):
    """Python's own in Python: that in C makes room for as many objects as a single number of the file tells it to."""

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BYTEARRAY8[0]: _load_bytearray,
        **{
            code[0]: _weighed(pickle._Unpickler.dispatch[code[0]])
            for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
        },
    }

    def __init__(self, file: Bounded) -> None:
        super().__init__(file, encoding="latin1")  # of Python 2
        self.weights: dict[int, tuple[int, Any]] = {}  # of every tuple, which is kept so that no other takes its id

    def find_class(self, module: str, name: str) -> Any:
        """The only way of a pickle to anything that can be called."""
        module = module.replace("numpy._core.", "numpy.core.").replace("__builtin__", "builtins")
        if (module, name) not in ADMITTED:
            raise _Refused(f"{module}.{name}")
        return ADMITTED[module, name]


class _Array(np.ndarray):
    """What stands for numpy.ndarray: starts empty, and is filled with what fits its shape and type."""

    def __new__(cls) -> _Array:
        return super().__new__(cls, (0,))

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran, content = state
        size = math.prod(_lengths(shape))
        if dtype.value.hasobject:
            fits = isinstance(content, list) and len(content) == size
        else:
            content = content.encode("latin1") if isinstance(content, str) else bytes(content)
            fits = len(content) == size * dtype.value.itemsize
        if not fits:
            raise ValueError(f"an array of shape {shape} and type {dtype.value} does not fit its content")
        super().__setstate__((version, shape, dtype.value, bool(fortran), content))  # type: ignore[arg-type]


class _Type:
    """What stands for numpy.dtype: a plain type; of the state that follows it only the byte order is used."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        value = np.dtype(code) if isinstance(code, str) else None
        if value is None or value.kind not in KINDS or value.fields or value.subdtype:
            raise _Refused(f"the array type {code!r}")
        self.value = value

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _lengths(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"an array of shape {shape!r}")
    return shape


def _reconstruct(array: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _frombuffer(content: Any, dtype: _Type, shape: Any, order: str) -> np.ndarray:
    if dtype.value.hasobject:
        raise _Refused("objects from a buffer")
    return np.frombuffer(content, dtype.value).reshape(_lengths(shape), order="F" if order == "F" else "C")


def _scalar(dtype: _Type, content: Any) -> Any:
    content = content.encode("latin1") if isinstance(content, str) else content
    return _frombuffer(content, dtype, (1,), "C")[0]


def _content(kind: Callable[..., Any]) -> Callable[..., Any]:
    """bytes or bytearray of a content; of a number they would be so many zeros."""

    def made(content: Any = b"", *encoding: str) -> Any:
        if not isinstance(content, bytes | bytearray | str | list) or set(encoding) - {"latin1", "latin-1"}:
            raise _Refused(f"{kind.__name__} of {type(content).__name__}")
        return kind(content, *encoding)

    return made


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{("builtins", kind.__name__): kind for kind in (set, frozenset, complex)},
    **{("builtins", kind.__name__): _content(kind) for kind in (bytearray, bytes)},
}
