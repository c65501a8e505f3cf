"""Runs the jobs of a study (training runs or evaluations) in parallel processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from pyro_metabayes.device import keep_freed_memory
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.composition import config_of
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.messages import MISTAKES, one_line
from pyro_metabayes.experiments.runs.evaluation import evaluate_run
from pyro_metabayes.experiments.runs.train import run
from pyro_metabayes.experiments.studies.study import Job
from pyro_metabayes.training.interruption import SIGNALS
from pyro_metabayes.training.progress import progress

_stopped = False  # True in a worker that must not start another job


def run_grid(jobs: Sequence[Job], workers: int, title: str, advice: str) -> None:
    """Run every unfinished job in parallel worker processes.

    First one job of each data set and backbone runs, and fills the caches that the other jobs read.

    Args:
        jobs: the jobs; finished jobs are skipped.
        workers: the number of worker processes.
        title: a name for the progress bar.
        advice: the part of an error message that says how to name another folder.

    Raises:
        UsageError: workers < 1, or a job has failed because of a mistake in its settings or data.
    """
    if workers < 1:
        raise UsageError(f"expected workers >= 1, got {workers}")
    todo = [job for job in jobs if not job.is_finished(advice)]
    first = list({_data_of(job): job for job in reversed(todo)}.values())
    bar = progress(title, "runs", len(jobs), len(jobs) - len(todo))
    print(f"{title}: {len(todo)} of {len(jobs)} runs to do, {workers} in parallel")
    with bar, ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
        try:
            for batch in (first, [job for job in todo if job not in first]):
                with _signals_blocked():  # new workers inherit this: they cannot handle signals during imports
                    futures = [pool.submit(_run_job, job) for job in batch]
                for future in as_completed(futures):
                    if mistake := future.result():
                        raise UsageError(mistake)
                    bar.update()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def start_worker() -> None:
    """Initialise a worker process. After SIGTERM, the worker starts no further job. SIGINT stays blocked.

    On Ctrl-C the main process sends SIGTERM to its workers. A spawned process has the default settings of malloc, so
    `keep_freed_memory` is called in each worker.
    """
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _start_no_further_job)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _start_no_further_job(*_: object) -> None:
    global _stopped
    _stopped = True


def _data_of(job: Job) -> str:
    """Return the settings of a job that determine which cached data set and backbone it uses."""
    return " ".join(part for part in job.settings if part.startswith(("data", "backbone", "pretrain")))


def _run_job(job: Job) -> str:
    """Run a job in a worker process, with its output in log.txt.

    Returns:
        A one-line message if the job has failed because of a mistake in its settings or data, else ''.
    """
    between = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if _stopped:
            raise KeyboardInterrupt
        return _mistake_of(job)
    except KeyboardInterrupt:  # includes Interrupted
        _start_no_further_job()
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, between)


def _mistake_of(job: Job) -> str:
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / "settings.txt").write_text(job.text)
    with (job.out / "log.txt").open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        try:
            if job.again:
                evaluate_run(job.folder, saved_config(job.folder, job.again), job.out)
            else:
                run(config_of(job.settings), job.folder)
            return ""
        except MISTAKES as error:
            mistake = f"{job.out}: {one_line(error)}"
    if not (job.out / "checkpoint.pt").exists():  # then there is nothing to resume
        shutil.rmtree(job.out)
        if not any(job.out.parent.iterdir()):
            job.out.parent.rmdir()
    return mistake
