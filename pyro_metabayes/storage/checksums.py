"""Verification of the SHA-256 checksums of data files, if the folder METABAYES_DATA has a list of checksums."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.paths import folder_of_variable

LIST = "SHA256SUMS"  # lines in the format of sha256sum: checksum, blanks, path relative to METABAYES_DATA


def verify(path: Path) -> Path:
    """Verify the checksum of a file if METABAYES_DATA/SHA256SUMS lists the file; return its path.

    Raises:
        UsageError: the file has another checksum than the listed one.
    """
    root = (folder_of_variable("METABAYES_DATA") or Path()).absolute()
    sums = root / LIST
    if not os.environ.get("METABAYES_DATA") or not sums.is_file() or not path.absolute().is_relative_to(root):
        return path
    expected = _read_list(sums, sums.stat().st_mtime_ns).get(path.absolute().relative_to(root).as_posix())
    if expected is not None:
        with path.open("rb") as file:
            refuse_other(hashlib.file_digest(file, "sha256").hexdigest(), expected, f"{path} (listed in {sums})")
    return path


def refuse_other(got: str, expected: str, what: str) -> None:
    """Raise a UsageError if a checksum differs from the expected one.

    Args:
        got: checksum of the file.
        expected: expected checksum.
        what: name of the file, for the message.
    """
    if got != expected:
        raise UsageError(
            f"expected the SHA-256 checksum {expected[:16]}... of {what}, got {got[:16]}...; copy or download the file "
            "again"
        )


@functools.lru_cache(maxsize=4)
def _read_list(sums: Path, modified: int) -> dict[str, str]:
    """Read the list of checksums as {path: checksum}.

    Args:
        sums: the file with the list.
        modified: time of the last change of `sums`, part of the cache key: a changed list is read again.
    """
    lines = [
        line.split(maxsplit=1)
        for line in sums.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        if line.strip()
    ]
    if malformed := [line for line in lines if len(line) != 2]:
        raise UsageError(
            f"expected a checksum and a path in each line of {sums}, got a line with only '{malformed[0][0]}'; write "
            "the file with sha256sum"
        )
    return {name.lstrip("*").removeprefix("./"): digest.lower() for digest, name in lines}
