"""A study: many runs of experiments.run, side by side in processes, finished ones kept."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from tqdm import tqdm

from experiments.command import CONF, MISTAKES, of_a_part, one_line
from experiments.config import register, saved_config, typed
from experiments.evaluate import evaluate_run
from experiments.run import run
from pyro_metabayes.errors import Interrupted, UsageError


@dataclass(frozen=True)
class Row:
    """One line of a study: a label, its settings, and how many seeds they are run with."""

    part: str
    label: str
    settings: tuple[str, ...]
    seeds: int

    @property
    def command(self) -> str:
        """What runs it by itself."""
        seeds = f"seed={','.join(map(str, range(self.seeds)))}"
        return shlex.join(["python", "-m", "experiments.run", "-m", *self.settings, seeds])

    def folder(self, study: Path, seed: int) -> Path:
        name = re.sub(r"[^a-z0-9.=]+", "_", f"{self.part}/{self.label}".lower().replace("/", "__"))
        return study / name / f"seed{seed}"


@dataclass(frozen=True)
class Job:
    """One run, or with `again` one more evaluation of a finished run under changed settings."""

    settings: tuple[str, ...]
    folder: Path
    again: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return self.folder / "evaluations" / ",".join(self.again) if self.again else self.folder

    @property
    def finished(self) -> bool:
        """Whether its results are there; refuses a folder that was begun under other settings."""
        begun = self.out / "settings.txt"
        if begun.exists() and begun.read_text() != self.text:
            raise UsageError(
                f"expected {self.out} to be of this study, got a run with other settings (settings.txt there); remove "
                "it, or name another folder with hydra.run.dir="
            )
        return (self.out / "results.json").exists()

    @property
    def text(self) -> str:
        return shlex.join(self.again or self.settings) + "\n"


def rows_of(study: Mapping[str, Any], smoke: bool) -> list[Row]:
    """The rows of conf/study/NAME.yaml: parts, each with common settings, seeds and labelled rows."""
    rows = []
    for part, its in study["parts"].items():
        common = (*str(study["settings"]).split(), *str(its.get("settings", "")).split())
        small = str(study["smoke"]).split() if smoke else ()
        seeds = 1 if smoke else int(its["seeds"])
        rows += [Row(part, label, (*common, *str(own).split(), *small), seeds) for label, own in its["rows"].items()]
    return rows


def jobs_of(rows: Sequence[Row], folder: Path, evaluations: Mapping[str, Any]) -> tuple[list[Job], list[Job]]:
    """The runs, and the evaluations of runs that `evaluations` = {settings, parts} asks for; seed by seed."""
    runs, again = [], []
    for seed in range(max(row.seeds for row in rows)):
        for row in rows:
            if seed >= row.seeds:
                continue
            runs.append(Job((*row.settings, f"seed={seed}"), row.folder(folder, seed)))
            if row.part in evaluations.get("parts", ()):
                changes = evaluations["settings"]
                again += [Job((), row.folder(folder, seed), tuple(str(change).split())) for change in changes]
    return runs, again


def run_jobs(jobs: Sequence[Job], workers: int, title: str) -> None:
    """Every job that is not finished; the first of each data set before the others, since it fills the caches."""
    todo = [job for job in jobs if not job.finished]
    first = list({_data_of(job): job for job in reversed(todo)}.values())
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=title, unit="run", disable=None)
    with bar, ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for batch in (first, [job for job in todo if job not in first]):
                for _ in _finished([pool.submit(_run_job, job) for job in batch]):
                    bar.update()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


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
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / "settings.txt").write_text(job.text)
    with (job.out / "log.txt").open("a") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
        try:
            _evaluate(job) if job.again else _train(job)
        except Interrupted:
            raise KeyboardInterrupt from None
        except MISTAKES as error:
            mistake = f"{job.out}: {one_line(error)}"
        else:
            return ""
    if not (job.out / "checkpoint.pt").exists():  # nothing that could be gone on with
        shutil.rmtree(job.out)
        if not any(job.out.parent.iterdir()):
            job.out.parent.rmdir()
    return mistake


def _train(job: Job) -> None:
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        overrides = [of_a_part(setting) for setting in job.settings]
        composed = compose("config", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(composed)  # the names of the choices stand there
        with open_dict(composed):
            del composed["hydra"]
        config = typed(composed)
    run(config, job.folder)


def _evaluate(job: Job) -> None:
    evaluate_run(job.folder, saved_config(job.folder, job.again), job.out)


def read(folder: Path) -> dict[str, Any]:
    """results.json of a run or of an evaluation."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results
