"""Damaged files, and files with false contents, are read correctly or refused with a one-line message."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pyro_metabayes import UsageError
from tests.fuzzing import FORMATS, byte_edits, edited, lying, tree_edits

QUICK, MANY = 20, 10_000
MEGABYTES = 700  # that all of it may take; an image may have MOST_PIXELS
pytestmark = pytest.mark.filterwarnings("ignore")


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Context manager that fails after this number of seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def try_out(name: str, examples: int, folder: Path) -> dict[str, int]:
    """Read damaged files, and return how many were refused and how many were read."""
    its, counts = FORMATS[name], {"refused": 0, "read": 0}
    its.lay_out(folder)
    (path,) = folder.glob(its.file)
    right = its.content(path) if its.content else path.read_bytes()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # a failure is a few edits long as it stands
        suppress_health_check=list(HealthCheck),
    )
    @given(tree_edits if its.content else byte_edits)
    def attempt(edits: list[Any]) -> None:
        with contextlib.suppress(OverflowError, ValueError):  # a value that the format cannot hold
            path.write_bytes(its.dump(lying(right, edits)) if its.content else edited(right, edits))
        try:
            with at_most(30):
                its.load(folder)
            counts["read"] += 1
        except UsageError as error:
            counts["refused"] += 1
            assert len(str(error)) > 20 and str(error).isprintable()

    attempt()
    return counts


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path))
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
def test_wrong_files_are_refused_in_one_line(name: str, data: Path) -> None:
    before = megabytes()
    counts = try_out(name, QUICK, data)
    assert sum(counts.values()) >= QUICK and megabytes() - before < MEGABYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_wrong_files_are_refused_in_one_line(name: str, data: Path) -> None:
    before, started = megabytes(), time.process_time()
    counts = try_out(name, MANY, data)
    print(f"{name}: {counts}, {time.process_time() - started:.0f} s, {megabytes() - before:.0f} MB more")
    assert sum(counts.values()) >= MANY and megabytes() - before < MEGABYTES


@pytest.mark.parametrize("name", FORMATS)
def test_the_right_file_is_read(name: str, data: Path) -> None:
    """Else all of the above would be refusals of something else."""
    its = FORMATS[name]
    its.lay_out(data)
    (path,) = data.glob(its.file)
    if its.content:
        path.write_bytes(its.dump(its.content(path)))
    its.load(data)
