"""Arrays are read from the pickles of any Python version, and nothing in a pickle is executed."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.unpickle import load_arrays, read_arrays, text_keys
from tests.published import dump

CONTENT = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "swapped": np.arange(3, dtype=">i4"),
    "nothing": np.zeros((0, 3), np.uint8),
    "words": np.array(["ab", "c"]),
    "bytes": np.array([b"\xff", b"xy"]),
    "of arrays": np.array([np.zeros(2, np.uint8), b"png", "text"], dtype=object),
    "scalar": np.float64(0.5),
    "plain": [1, 2.5, True, None, 1j, "ö", b"\xff\x00", bytearray(b"x"), (1, 2), {3}, frozenset([4]), 10**30],
    "ordered": OrderedDict(b=1, a=2),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(other, np.ndarray) and other.dtype != object:
        return (
            one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")
            and one.shape == other.shape
            and bool((np.asarray(one) == other).all())
        )
    if isinstance(other, np.ndarray | list | tuple):
        return len(one) == len(other) and all(map(same, list(one), list(other)))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_are_read(protocol: int, tmp_path: Path) -> None:
    read = load_arrays(dump(tmp_path / "file.pkl", CONTENT, protocol))
    assert read.keys() == CONTENT.keys()
    assert [name for name in CONTENT if not same(read[name], CONTENT[name])] == []


def test_a_pickle_of_python_2_is_read() -> None:
    """As Python 2 and numpy 1 wrote it: strings without an encoding, numpy.core, the content of an array as str."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    array += b"(I1\n(I2\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\xff\\x01'\ntb"
    read = read_arrays(io.BytesIO(b"(dS'data'\n" + array + b"sS'name'\nS'\\xe9'\ns."), "it")
    assert same(read["data"], np.array([255, 1], np.uint8)) and read["name"] == "é"


class Malicious:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "asked"), [(os.mkdir, "mkdir"), (os.system, "system"), (eval, "builtins.eval"), (getattr, "getattr")]
)
def test_code_is_not_run(function: Any, asked: str, protocol: int, tmp_path: Path) -> None:
    target = str(tmp_path / "made")
    arguments = {os.mkdir: (target,), os.system: (f"mkdir {target}",), eval: (f"__import__('os').mkdir({target!r})",)}
    harm = Malicious(function, *arguments.get(function, (np.zeros(1), "tofile")))
    path = dump(tmp_path / "file.pkl", {"embeddings": np.zeros(2), "keys": [harm]}, protocol)
    with pytest.raises(
        UsageError, match=f"got the function or class [a-z]+\\.{asked.rpartition('.')[2]}; download the file again"
    ):
        load_arrays(path)
    assert not (tmp_path / "made").exists()
    if function is os.mkdir:
        pickle.loads(path.read_bytes())
        assert (tmp_path / "made").exists(), "the pickle is harmless, so the test shows nothing"


def refused(content: bytes) -> str:
    with pytest.raises(UsageError) as caught:
        read_arrays(io.BytesIO(content), "it")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_forged_addresses_are_refused() -> None:
    """numpy itself takes bytes for the addresses of objects, if it is asked so."""
    address = struct.pack("P", 1)
    assert np.ndarray((1,), np.dtype("O"), address).dtype == object
    text = address.decode("latin1").encode("unicode_escape").decode()
    refused(f"cnumpy\nndarray\n((I1\ntS'O'\nS'{text}'\ntR.".encode())
    plain = b"cnumpy\ndtype\n(S'O'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"  # its flags say: no objects
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    refused(start + b"(I1\n(I1\nt" + plain + f"I00\nS'{text}'\ntb.".encode())
    refused(b"cnumpy.core.numeric\n_frombuffer\n(S'" + text.encode() + b"'\n" + plain + b"(I1\ntS'C'\ntR.")
    refused(start + b"(I1\n(I9\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntRI00\nS'too short, or long'\ntb.")


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\nndarray.tofile\n.", b"\x80\x04\x8c\x05numpy\x8c\x08fromfile\x93.", b"c__main__\nanything\n.",
        b"cnumpy\ndtype\n(S'V8'\ntR.", b"cnumpy\ndtype\n(S'i4,f4'\ntR.", b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
    ],
)  # fmt: skip
def test_other_names_are_refused(content: bytes) -> None:
    assert "no code in the file was run" in refused(content)


def test_damaged_pickles_are_named() -> None:
    whole = pickle.dumps(CONTENT, 2)
    for content in (b"", b"no pickle", whole[:100], whole[: len(whole) // 2], whole[:-1], whole[100:]):
        assert "expected a complete pickle in it, got a damaged or truncated one" in refused(content)


def test_keys_become_text() -> None:
    assert text_keys({b"data": 1, "labels": 2}, "it", "data", "labels") == {"data": 1, "labels": 2}
    for value, got in (({"other": 1}, "other"), ([1], "list")):
        with pytest.raises(UsageError, match=f"a dictionary with 'data' in it, got {got}; download"):
            text_keys(value, "it", "data")
