"""A study, i.e. a list of runs of experiments.run with different settings, and the folders of these runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.storage.checkpoint import write_atomically

SIZES = ("full", "smoke")


@dataclass(frozen=True)
class Row:
    """Row of a study: runs with the same settings and the seeds 0, 1, ..., seeds - 1.

    Args:
        part: the name of the part of the study, which is also the name of its table.
        label: the name of the row in tables and plots.
        settings: the arguments of experiments.run.
        seeds: the number of runs.
    """

    part: str
    label: str
    settings: tuple[str, ...]
    seeds: int

    @property
    def command(self) -> str:
        """Shell command that runs only this row, with all its seeds."""
        seeds = f"seed={','.join(map(str, range(self.seeds)))}"
        return shlex.join(["python", "-m", "experiments.run", "-m", *self.settings, seeds])

    def folder(self, study: Path, seed: int) -> Path:
        name = re.sub(r"[^a-z0-9.=]+", "_", f"{self.part}/{self.label}".lower().replace("/", "__"))
        return study / name / f"seed{seed}"

    def folders(self, study: Path) -> list[Path]:
        """Return the folder of the run of each seed."""
        return [self.folder(study, seed) for seed in range(self.seeds)]

    def results(self, study: Path) -> list[dict[str, Any]]:
        """Read results.json of the run of each seed."""
        return [read(folder) for folder in self.folders(study)]


@dataclass(frozen=True)
class Job:
    """Training run in `folder`, or an evaluation of the finished run in `folder`.

    Args:
        settings: the settings of the training run.
        folder: the folder of the run.
        again: the settings that an evaluation changes; empty for a training run.
    """

    settings: tuple[str, ...]
    folder: Path
    again: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return self.folder / "evaluations" / ",".join(self.again) if self.again else self.folder

    def is_finished(self, advice: str) -> bool:
        """Return whether results.json of the job exists.

        Args:
            advice: the part of the error message that says how to name another folder.

        Raises:
            UsageError: the folder holds a run with other settings.
        """
        settings_file = self.out / "settings.txt"
        if settings_file.exists() and settings_file.read_text() != self.text:
            raise UsageError(
                f"expected a run of this study in {self.out}, got a run with other settings (see settings.txt); "
                f"continue it with these settings, remove it, or {advice}"
            )
        return (self.out / "results.json").exists()

    @property
    def text(self) -> str:
        return shlex.join(self.again or self.settings) + "\n"


def rows_of(study: Mapping[str, Any], smoke: bool) -> list[Row]:
    """Return the rows of a study.

    Args:
        study: content of conf/study/NAME.yaml. Each of its `parts` has labelled `rows`, the number of `seeds`, and
            `settings` that all its rows share. A row is a string of settings, or has its own `settings` and `seeds`.
        smoke: whether each row has one seed and the settings `smoke`, such as train.steps=4.
    """
    rows = []
    for part, specification in study["parts"].items():
        common = (*str(study["settings"]).split(), *str(specification.get("settings", "")).split())
        small = (*str(study["smoke"]).split(), *str(specification.get("smoke", "")).split()) if smoke else ()
        for label, row in specification["rows"].items():
            own = row if isinstance(row, Mapping) else {"settings": row}
            seeds = 1 if smoke else int(own.get("seeds", specification["seeds"]))
            rows.append(Row(part, label, (*common, *str(own["settings"]).split(), *small), seeds))
    return rows


def chosen_rows(study: Mapping[str, Any], size: str, parts: Sequence[str]) -> list[Row]:
    """Return the rows of the named parts of a study; of all parts if `parts` is empty.

    Args:
        study: content of conf/study/NAME.yaml.
        size: full, or smoke for a few training steps of one seed per row.
        parts: names of parts of the study.

    Raises:
        UsageError: `size` or a name in `parts` is unknown.
    """
    check_choice("size", size, SIZES)
    parts_of_study = list(study["parts"])
    if unknown := [part for part in parts if part not in parts_of_study]:
        raise UsageError(f"unknown part '{unknown[0]}' of this study; choose from: {', '.join(parts_of_study)}")
    return [row for row in rows_of(study, size == "smoke") if not parts or row.part in parts]


def claim(folder: Path, name: str, advice: str) -> None:
    """Reserve a folder for a study: write the name of the study to study.txt, unless the file has this name already.

    Args:
        folder: the folder of the study.
        name: text that identifies the study.
        advice: the part of the error message that says how to name another folder.

    Raises:
        UsageError: the folder holds another study or other files.
    """
    mark = folder / "study.txt"
    holds = mark.read_text().strip() if mark.exists() else "other files"
    if holds == name:
        return
    if mark.exists() or (folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())):
        raise UsageError(f"expected a new folder, or the folder of {name}, got {folder} with {holds}; {advice}")
    write_atomically(mark, lambda path: path.write_text(name + "\n"))


def complete(rows: Sequence[Row], folder: Path) -> list[Row]:
    """Return the rows of the parts of a study in which all runs are finished."""
    open_parts = {row.part for row in rows for run in row.folders(folder) if not (run / "results.json").exists()}
    return [row for row in rows if row.part not in open_parts]


def jobs_of(rows: Sequence[Row], folder: Path, evaluations: Mapping[str, Any]) -> tuple[list[Job], list[Job]]:
    """Return two lists of jobs: training of the rows of a study, and evaluations of the runs. Both are ordered by seed.

    Args:
        rows: the rows of the study.
        folder: the folder of the study.
        evaluations: {settings, parts}. Each run of a row in these `parts` is evaluated once for each entry of
            `settings`, a string of changed settings. {} for no evaluations.
    """
    runs, jobs_of_evaluations = [], []
    for seed in range(max(row.seeds for row in rows)):
        for row in rows:
            if seed >= row.seeds:
                continue
            runs.append(Job((*row.settings, f"seed={seed}"), row.folder(folder, seed)))
            if row.part in evaluations.get("parts", ()):
                changes = evaluations["settings"]
                jobs_of_evaluations += [
                    Job((), row.folder(folder, seed), tuple(str(change).split())) for change in changes
                ]
    return runs, jobs_of_evaluations


def read(folder: Path) -> dict[str, Any]:
    """Return the content of results.json in the folder of a run or of an evaluation."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results
