"""Conversion of arrays of any library to dense tensors of real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_metabayes.errors import UsageError

Array = np.ndarray | Tensor | Sequence[Any]

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # torch supports few operations on these types
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LONGEST = 40  # values in messages are cut to this number of characters


def tensor_of(name: str, x: Array) -> Tensor:
    """Convert x to a dense tensor without gradient, of dtype bool, uint8, int64 or a floating-point type.

    Args:
        name: name of the argument, for messages.
        x: a tensor, a list of tensors of the same shape, or anything that `numpy.asarray` converts to real numbers
            (arrays, data frames, nullable columns of pandas, lists).

    Returns:
        Tensor with the shape of x. A tensor keeps its device; other arrays are copied to the CPU.

    Raises:
        UsageError: x is sparse or complex; entries are masked or missing; or values are not numbers.
    """
    if _is_list_of_tensors(x):
        x = _stacked(name, x)
    if not isinstance(x, Tensor):
        return torch.from_numpy(array_of(name, x))
    _refuse_unreadable(name, x)
    return _widened(name, x.detach())


def array_of(name: str, x: Any) -> np.ndarray:
    """Copy x to a C-contiguous array in native byte order, of dtype bool, uint8, int64 or float (at most 64 bits)."""
    _refuse_masked(name, x)
    array = _numbers(name, _as_array(name, x))
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "f":
        dtype = np.dtype(f"f{min(size, 8)}")
    elif kind == "b" or array.dtype == np.uint8:
        dtype = array.dtype
    else:
        dtype = np.dtype(np.float64 if array.size and array.max() > np.iinfo(np.int64).max else np.int64)
    with np.errstate(over="ignore"):  # a longdouble beyond float64 is reported as infinite
        return np.array(array, dtype=dtype, order="C")


def returned_like(x: Array, values: Tensor) -> Tensor | np.ndarray:
    """Return values as a tensor if x is a tensor or a list of tensors, else as a numpy array."""
    values = values.detach()
    if isinstance(x, Tensor) or _is_list_of_tensors(x):
        return values
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()


def readable(name: str, x: Any) -> Any:
    """Convert tensors to numpy arrays for scikit-learn's checks of inputs.

    Other objects are returned unchanged, so data frames keep their column names.

    Raises:
        UsageError: x is a sparse or complex tensor, or an array with masked entries.
    """
    if isinstance(x, Tensor) or _is_list_of_tensors(x):
        return returned_like((), tensor_of(name, x))
    _refuse_masked(name, x)
    return x


def shown(value: Any) -> str:
    """Return the representation of a value for a message, cut to 40 characters."""
    return repr(value)[:LONGEST]


def _is_list_of_tensors(x: Any) -> bool:
    """Return whether x is a non-empty list or tuple of tensors."""
    return isinstance(x, list | tuple) and len(x) > 0 and all(isinstance(point, Tensor) for point in x)


def _refuse_masked(name: str, x: Any) -> None:
    """Raise a UsageError for an array with masked entries; numpy.asarray would return the masked values."""
    if np.ma.is_masked(x):
        raise UsageError(
            f"expected {name} without masked entries, got {np.ma.count_masked(x)} masked entries; remove the rows "
            "with masked entries, or replace the entries by .filled(value)"
        )


def _stacked(name: str, tensors: Any) -> Tensor:
    try:
        return torch.stack(list(tensors))
    except (RuntimeError, TypeError):
        raise UsageError(
            f"expected tensors of one shape and type in the list {name}, got several shapes or types; convert them to "
            "one shape and type"
        ) from None


def _refuse_unreadable(name: str, x: Tensor) -> None:
    dense = x.layout == torch.strided and not x.is_nested and not x.is_quantized and not x.is_meta
    if not dense or x.is_complex():
        advice = "use .real or .abs()" if dense else "convert it, for example with .to_dense()"
        layout = str(x.layout).removeprefix("torch.")
        raise UsageError(
            f"expected a dense tensor of real numbers in {name}, got {x.dtype} ({layout}, {x.device}); {advice}"
        )


def _widened(name: str, x: Tensor) -> Tensor:
    if x.is_floating_point():
        return x if x.dtype in FLOATS else x.float()
    if x.dtype in UNSIGNED:
        return torch.from_numpy(array_of(name, x.cpu().numpy())).to(x.device)
    return x if x.dtype in (torch.bool, torch.uint8) else x.long()


def _as_array(name: str, x: Any) -> np.ndarray:
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"expected an array of numbers in {name}, got rows of several lengths or types; pass rows of one "
            "length and one type"
        ) from None


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == object:
        array = _from_objects(name, array)
    if array.dtype.kind == "c":
        raise UsageError(
            f"expected real numbers in {name}, got complex numbers ({array.dtype}); use .real or numpy.abs"
        )
    if array.dtype.kind not in "biuf":
        first = f", such as {shown(array.flat[0].item())}" if array.size else ""
        raise UsageError(f"expected numbers in {name}, got type {array.dtype}{first}; convert {name} to numbers")
    return array


def _from_objects(name: str, array: np.ndarray) -> np.ndarray:
    """Convert an array of Python objects, such as a pandas column of mixed or nullable type, to numbers."""
    if not array.ndim:
        found = type(array.item()).__name__
        raise UsageError(
            f"expected an array of numbers in {name}, got an object of type {found}; pass a dense array (a sparse "
            "matrix has .toarray())"
        )
    for value in array.flat:
        if isinstance(value, complex | np.complexfloating):
            raise UsageError(
                f"expected real numbers in {name}, got {value} (complex); use .real of each entry, or numpy.abs"
            )
        if not isinstance(value, Real | Decimal | np.bool_):
            raise UsageError(
                f"expected numbers in {name}, got {shown(value)} ({type(value).__name__}); convert this entry to a "
                "number, or remove the row"
            )
    inferred = np.array(array.tolist()).reshape(array.shape)
    return inferred if inferred.dtype != object else array.astype(np.float64)
