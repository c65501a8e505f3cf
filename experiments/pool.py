"""The runs of a study, side by side in processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing.synchronize import Event
from types import FrameType

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from tqdm import tqdm

from experiments.command import CONF, of_a_part
from experiments.config import Config, register, saved_config, typed
from experiments.evaluate import evaluate_run
from experiments.mistakes import MISTAKES, one_line
from experiments.run import run
from experiments.study import Job
from pyro_metabayes.errors import UsageError

_stop: Event | None = None  # of a worker: whether the jobs still waiting are to be left


def run_jobs(jobs: Sequence[Job], workers: int, title: str) -> None:
    """Every job that is not finished; the first of each data set before the others, since it fills the caches."""
    if workers < 1:
        raise UsageError(f"expected workers >= 1, got {workers}")
    todo = [job for job in jobs if not job.finished]
    first = list({_data_of(job): job for job in reversed(todo)}.values())
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=title, unit="run", disable=None)
    print(f"{title}: {len(todo)} of {len(jobs)} runs to do, {workers} at a time")
    processes = multiprocessing.get_context("spawn")
    stop = processes.Event()
    with bar, ProcessPoolExecutor(workers, processes, _begin, (stop,)) as pool, _stoppable():
        try:
            for batch in (first, [job for job in todo if job not in first]):
                with _without_interrupts():  # which the workers that it starts are spared, too, until they can listen
                    futures = [pool.submit(_run_job, job) for job in batch]
                for _ in _finished(futures):
                    bar.update()
            if stop.is_set():  # heard by a worker between two jobs
                raise KeyboardInterrupt
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the end of the block."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, which reaches this process alone, goes to the workers as the Ctrl-C that it stands for."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for worker in multiprocessing.active_children():
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGINT)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin(stop: Event) -> None:
    """Of a worker: between two jobs Ctrl-C means that there shall be no other."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _data_of(job: Job) -> str:
    """What the caches of a job hang on."""
    return " ".join(part for part in job.settings if part.startswith(("data", "backbone", "pretrain")))


def _finished(futures: Sequence[Future[str]]) -> Iterator[None]:
    for future in as_completed(futures):
        if mistake := future.result():
            raise UsageError(mistake)
        yield


def _run_job(job: Job) -> str:
    """In a process of its own: '' or what was wrong. What the run says goes to log.txt in its folder."""
    assert _stop is not None
    if _stop.is_set():
        return ""
    between = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _mistake_of(job)
    except KeyboardInterrupt:  # Interrupted among them
        _stop.set()
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, between)


def _mistake_of(job: Job) -> str:
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / "settings.txt").write_text(job.text)
    with (job.out / "log.txt").open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        try:
            _evaluate(job) if job.again else _train(job)
            return ""
        except MISTAKES as error:
            mistake = f"{job.out}: {one_line(error)}"
    if not (job.out / "checkpoint.pt").exists():  # nothing that could be gone on with
        shutil.rmtree(job.out)
        if not any(job.out.parent.iterdir()):
            job.out.parent.rmdir()
    return mistake


def config_of(settings: Sequence[str]) -> Config:
    """What `python -m experiments.run SETTINGS` runs."""
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose("config", [of_a_part(setting) for setting in settings], return_hydra_config=True)
        HydraConfig.instance().set_config(composed)  # the names of the choices stand there
        with open_dict(composed):
            del composed["hydra"]
        return typed(composed)


def _train(job: Job) -> None:
    run(config_of(job.settings), job.folder)


def _evaluate(job: Job) -> None:
    evaluate_run(job.folder, saved_config(job.folder, job.again), job.out)
