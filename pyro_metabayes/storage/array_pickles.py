"""Safe replacements of the functions and classes that pickles of arrays call. The replacements check their arguments.

numpy.ndarray itself is not safe: a pickle can pass a buffer with forged addresses of Python objects. The replacements
create arrays only from bytes, or from lists of objects in the pickle.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

KINDS = "biufcSUO"  # kinds of dtypes: bool, integers, floats, complex, bytes, text, objects (lists of arrays)


class ForbiddenName(Exception):
    """Error for a pickle that refers to a function, class or type that is not allowed."""


class _Array(np.ndarray):
    """Replacement of numpy.ndarray in pickles. It starts empty and accepts only content that fits shape and dtype."""

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
            raise ValueError(f"the content of an array does not fit its shape {shape} and type {dtype.value}")
        super().__setstate__((version, shape, dtype.value, bool(fortran), content))  # type: ignore[arg-type]


class _Type:
    """Replacement of numpy.dtype in pickles. It accepts only plain dtypes.

    The byte order is the only part of the pickled state that is used.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        value = np.dtype(code) if isinstance(code, str) else None
        if value is None or value.kind not in KINDS or value.fields or value.subdtype:
            raise ForbiddenName(f"an array of the type {code!r}")
        self.value = value

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _lengths(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"an array has the invalid shape {shape!r}")
    return shape


def _reconstruct(array: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _frombuffer(content: Any, dtype: _Type, shape: Any, order: str) -> np.ndarray:
    if dtype.value.hasobject:
        raise ForbiddenName("an array of objects that is read from a buffer")
    return np.frombuffer(content, dtype.value).reshape(_lengths(shape), order="F" if order == "F" else "C")


def _scalar(dtype: _Type, content: Any) -> Any:
    content = content.encode("latin1") if isinstance(content, str) else content
    return _frombuffer(content, dtype, (1,), "C")[0]


def _from_content(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Return a replacement of `bytes` or `bytearray` that accepts content, but no number.

    bytes(n) and bytearray(n) allocate n zeros.
    """

    def convert(content: Any = b"", *encoding: str) -> Any:
        if not isinstance(content, bytes | bytearray | str | list) or set(encoding) - {"latin1", "latin-1"}:
            raise ForbiddenName(f"{kind.__name__} made from an object of type {type(content).__name__}")
        return kind(content, *encoding)

    return convert


def _encode(text: str, encoding: str) -> bytes:
    """Encode text in latin1 (replacement of codecs.encode, which some pickles of bytes call)."""
    if encoding != "latin1":
        raise ForbiddenName(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


ALLOWED_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{("builtins", kind.__name__): kind for kind in (set, frozenset, complex)},
    **{("builtins", kind.__name__): _from_content(kind) for kind in (bytearray, bytes)},
}
