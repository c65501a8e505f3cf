"""A stopped run loses only the steps since its last checkpoint, however and whenever it is stopped."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from omegaconf import flag_override

from pyro_metabayes import UsageError
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.lock import alone_in
from tests.commands import (
    ROOT,
    call,
    checkpoint_of,
    figures_of,
    finish,
    lines_of,
    on_features,
    process,
    ran,
    results_of,
    same_weights,
)
from tests.processes import forked

pytestmark = pytest.mark.usefixtures("empty_folder")
LONG = ("train.steps=60", "train.log_every=2", "train.validate_every=6", "seed=3")
KILLS = 60
KILLED = ("sib", "mc", "maml")  # two whose posteriors are sampled, a normal and an amortised one, and a point mass


@pytest.fixture
def copied(finished: Path) -> Path:
    shutil.copytree(finished, "run")
    return Path("run").resolve()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# ---------------------------------------------------------------- two in one folder


def test_a_folder_in_which_another_run_works_is_refused(features: Path) -> None:
    """Even before there is anything in it that a run would be known by, and nothing of it is touched."""
    with alone_in(made(Path("run")), "name another folder"):
        Path("run/metrics.jsonl").write_text("")
        before = contents(Path("run"))
        error = call("run", *on_features(features), "guide=proto", "hydra.run.dir=run").error
        assert f"in use by process {os.getpid()} on " in error and "name another folder: hydra.run.dir=DIR" in error
        assert contents(Path("run")) == before
    assert not Path("run/.lock").exists()


def test_a_resume_of_a_run_that_works_is_refused(copied: Path) -> None:
    before = contents(copied)
    with alone_in(copied, "name another folder"):
        error = call("run", f"resume={copied}").error
    assert "; wait until the other process has ended, or name another folder" in error
    assert contents(copied) == before


def test_the_lock_of_a_killed_run_locks_nobody_out(copied: Path) -> None:
    (copied / ".lock").write_text("process 1 on here")
    (copied / ".checkpoint.pt.1.tmp").write_text("half of it")
    ran("run", f"resume={copied}")
    assert not (copied / ".lock").exists() and not (copied / ".checkpoint.pt.1.tmp").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_a_note(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone_in(tmp_path, "name another folder"):
        reason = os.strerror(number)
        expected = f"note: {tmp_path} cannot be locked ({reason}): do not start a second run in this folder\n"
        assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gone", [(), ("checkpoint.pt",)])
def test_a_new_run_writes_over_nothing_of_another(gone: tuple[str, ...], copied: Path, features: Path) -> None:
    """Nor over the settings that it was started with."""
    for name in gone:
        (copied / name).unlink()
    before = contents(copied)
    error = call("run", *on_features(features), "guide=mc", f"hydra.run.dir={copied}").error
    assert "expected a new folder" in error and "hydra.run.dir=DIR" in error and (bool(gone) or "resume=" in error)
    assert contents(copied) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(features: Path) -> None:
    made(Path("run/.hydra"))
    Path("run/metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n{"step": 2, "lo')
    ran("run", *on_features(features), "guide=proto", "hydra.run.dir=run")
    assert [line["step"] for line in lines_of(Path("run"))] == [2]


def test_half_a_line_is_dropped_on_resume(copied: Path) -> None:
    before = lines_of(copied)
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    ran("run", f"resume={copied}")
    assert lines_of(copied) == before


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# ---------------------------------------------------------------- disks


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Context manager in which no file can exceed `size` bytes, so that writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("every_picture_is_drawn")
@pytest.mark.parametrize("size", [10, 1500, 9000])
def test_a_full_disk_leaves_whole_files(size: int, copied: Path) -> None:
    """10 bytes: not even a line of metrics.jsonl; 1500: no checkpoint; 9000: no picture."""
    before = contents(copied)
    with disk_full_after(size):
        error = call("run", f"resume={copied}", "train.steps=4", "train.log_every=1").error
    assert "File too large" in error or "no space left" in error
    if size < 9000:
        kept, metrics = contents(copied), copied / "metrics.jsonl"
        assert kept.pop(metrics).startswith(before.pop(metrics)) and kept == before
    assert_whole(copied)
    assert not list(copied.glob(".*.tmp"))
    ran("run", f"resume={copied}", "train.steps=4")
    assert [line["step"] for line in lines_of(copied)][-1] == 4 and results_of(copied)["steps"] == 4


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A small mounted disk. The test is skipped if no disk can be mounted."""
    folder.mkdir(exist_ok=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_on_a_disk_that_fills_up_goes_on_when_there_is_room(finished: Path) -> None:
    with small_disk(Path("disk"), "size=1m") as disk:
        folder = (disk / "run").resolve()
        shutil.copytree(finished, folder)
        checkpoint_before = (folder / "checkpoint.pt").read_bytes()
        with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
            while True:
                ballast.write(bytes(4096))
        assert "No space left on device" in call("run", f"resume={folder}", "train.steps=4").error
        assert (folder / "checkpoint.pt").read_bytes() == checkpoint_before
        (disk / "ballast").unlink()
        ran("run", f"resume={folder}", "train.steps=4")
        assert results_of(folder)["steps"] == 4


def test_a_read_only_folder_is_refused(finished: Path) -> None:
    with small_disk(Path("disk"), "size=1m") as disk:
        folder = (disk / "run").resolve()
        shutil.copytree(finished, folder)
        before = contents(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        error = call("run", f"resume={folder}", "train.steps=4").error
        assert error == f"expected to write into {folder}, got: Read-only file system; free space or change the folder"
        assert contents(folder) == before
        assert "Read-only file system" in call("run", "data=gaussian_features", f"hydra.run.dir={disk}/new").error


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "file.pt", {"number": 1})
    with disk_full_after(100), pytest.raises(UsageError, match=r"expected to write .*file\.pt, got: File too large"):
        checkpoint.save(tmp_path / "file.pt", {"number": 2})
    assert checkpoint.load(tmp_path / "file.pt") == {"number": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


# ---------------------------------------------------------------- divergence

HUGE = ("train.learning_rate=1e30", "train.log_every=1", "train.validate_every=2", "train.steps=4")


@pytest.mark.parametrize("guide", ["sib", "mean_field", "savi", "maml", "llama", "abml", "sib_savi"])
def test_parameters_that_overflow_end_the_run_in_one_line(guide: str, features: Path) -> None:
    """Also where they are finite when a line is logged, but nothing can be sampled or factorised with them."""
    outcome = call("run", *on_features(features), *HUGE, f"guide={guide}", "hydra.run.dir=run")
    *notes, error = outcome.err.strip().split("\n")
    assert outcome.code == 1 and all(note.startswith("note: ") for note in notes)
    assert re.match("error: training has diverged: (first non-finite value at|after) step ", error)
    assert error.endswith("or clip the gradient (train.clip) (the last good checkpoint: none yet)")
    assert not Path("run/results.json").exists()


def test_skipped_steps_are_told_at_the_end(features: Path) -> None:
    settings = (*on_features(features), *HUGE, "guide=sib", "train.on_nan=skip")
    outcome = ran("run", *settings, "hydra.run.dir=run")
    assert "3 of 4 steps were skipped: a loss or gradient was not finite" in outcome.out
    assert results_of(Path("run"))["skipped"] == 3 and lines_of(Path("run"))[-1]["loss"] is None


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_gets_one_line(number: signal.Signals) -> None:
    started = process("run", "data=gaussian_features")
    time.sleep(0.3)
    started.send_signal(number)
    outcome = finish(started)
    assert outcome.code == 128 + number and outcome.err.split("\n")[1:] == ["interrupted; nothing was started", ""]


def test_a_signal_that_omegaconf_trips_over_is_a_signal(capsys: pytest.CaptureFixture[str]) -> None:
    """It restores the flags of a node in `finally`: on one that is half made its error hides the interruption."""

    def main() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            with flag_override(None, "struct", False):  # type: ignore[arg-type]
                pass

    with pytest.raises(SystemExit) as ended:
        run_program(main)
    assert ended.value.code == 130 and capsys.readouterr().err.startswith("\ninterrupted; of the unfinished")


def test_sigterm_stops_an_evaluation_as_ctrl_c_does(features: Path) -> None:
    end = time.monotonic() + 60
    with forked("run", *on_features(features), "guide=proto", "eval.tasks=1000000", "hydra.run.dir=run") as started:
        while not Path("run/checkpoint.pt").exists():
            assert started.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        time.sleep(0.2)  # from the last save to the first batch
        started.send_signal(signal.SIGTERM)
        outcome = started.finish()
    assert outcome.code == 130 and "Traceback" not in outcome.err
    assert outcome.err.strip().endswith(f"continue with: python -m experiments.run resume={Path('run').resolve()}")
    assert not Path("run/results.json").exists() and not Path("run/.lock").exists()


# ---------------------------------------------------------------- killed at any moment

# Imports once, then runs each command that a line names in a process of its own, and says how it ended.
SERVER = """
import os, runpy, signal, sys
import experiments, pyro_metabayes.experiments.run
for number in experiments.STOP:  # as where the command is imported anew
    signal.signal(number, experiments._leave)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.argv = ["run", *line.split()]
        os.dup2(os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, text=True, env=environment) as it:
        yield it
        assert it.stdin is not None
        it.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("guide", KILLED)
def test_runs_killed_at_random_moments_end_as_if_they_had_not_been(
    guide: str, server: subprocess.Popen[str], features: Path
) -> None:
    """KILLS times each: the run is stopped at a random moment of what a whole one takes, and gone on with."""
    settings, folder = [*on_features(features), *LONG, f"guide={guide}"], Path("killed").resolve()
    moments, by_signal = random.Random(guide), Counter[str]()
    assert stopped(server, [*settings, "hydra.run.dir=first"], 300, signal.SIGKILL) == 0  # waits for the imports
    started = time.monotonic()
    assert stopped(server, [*settings, "hydra.run.dir=whole"], 300, signal.SIGKILL) == 0
    whole, ends, lost = time.monotonic() - started, 0, 0
    start = [*settings, f"hydra.run.dir={folder}"]
    while (kills := by_signal.total()) < KILLS or not (folder / "results.json").exists():
        if (folder / "results.json").exists():  # finished: compared, and begun again
            assert_equal_runs(folder, Path("whole"))
            shutil.rmtree(folder)
            ends += 1
        before = step_of(folder)
        number = moments.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        arguments = [f"resume={folder}"] if before else start
        code = stopped(server, arguments, moments.uniform(0, whole) if kills < KILLS else 300, number)
        assert code in (0, 130, 128 + number, -number), Path("log.txt").read_text()[-2000:]
        by_signal[number.name] += code != 0
        assert_whole(folder)
        assert step_of(folder) >= before, "a checkpoint was lost"
        lost += code != 0 and step_of(folder) == before
    assert_equal_runs(folder, Path("whole"))
    print(f"{guide}: {dict(by_signal)}, {ends + 1} runs ended the same, {lost} kills before the next checkpoint")
    assert "Traceback" not in Path("log.txt").read_text()


def stopped(server: subprocess.Popen[str], arguments: list[str], seconds: float, number: signal.Signals) -> int:
    """The exit code of a run that gets the signal after this number of seconds, unless it has ended."""
    assert server.stdin is not None and server.stdout is not None
    print(*arguments, file=server.stdin, flush=True)
    child, end = int(server.stdout.readline()), time.monotonic() + seconds
    handle = os.pidfd_open(child)
    while time.monotonic() < end and not ended(handle):
        time.sleep(0.002)
    if not ended(handle):
        signal.pidfd_send_signal(handle, number)
    os.close(handle)
    return int(server.stdout.readline())


def ended(handle: int) -> bool:
    return bool(select.select([handle], [], [], 0)[0])


def step_of(folder: Path) -> int:
    return checkpoint_of(folder)["training"]["step"] if (folder / "checkpoint.pt").exists() else 0


def assert_whole(folder: Path) -> None:
    """Check that existing files are complete, and each line of metrics.jsonl is."""
    if (folder / "metrics.jsonl").exists():
        assert all(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    if (folder / "results.json").exists():
        results_of(folder)
    for path in (folder / ".hydra").glob("*.yaml"):
        assert yaml.safe_load(path.read_text()), path


def assert_equal_runs(one: Path, other: Path) -> None:
    assert figures_of(one) == figures_of(other)
    assert lines_of(one) == lines_of(other)
    for which in ("learner", "best"):
        assert same_weights(checkpoint_of(one)[which]["weights"], checkpoint_of(other)[which]["weights"])
    left = {path.name for path in one.iterdir()}
    assert left == {path.name for path in other.iterdir()}, "what a killed process left behind is still there"
