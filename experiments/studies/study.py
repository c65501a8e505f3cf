"""A study: a list of runs of experiments.run, and their folders."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage.checkpoint import write_atomically

SIZES = ("full", "smoke")


@dataclass(frozen=True)
class Row:
    """One line of a study: a label, its settings, and how many seeds they are run with."""

    part: str
    label: str
    settings: tuple[str, ...]
    seeds: int

    @property
    def command(self) -> str:
        """The command that runs the row alone."""
        seeds = f"seed={','.join(map(str, range(self.seeds)))}"
        return shlex.join(["python", "-m", "experiments.run", "-m", *self.settings, seeds])

    def folder(self, study: Path, seed: int) -> Path:
        name = re.sub(r"[^a-z0-9.=]+", "_", f"{self.part}/{self.label}".lower().replace("/", "__"))
        return study / name / f"seed{seed}"


@dataclass(frozen=True)
class Job:
    """One run, or with `again` an evaluation of a finished run under changed settings."""

    settings: tuple[str, ...]
    folder: Path
    again: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return self.folder / "evaluations" / ",".join(self.again) if self.again else self.folder

    @property
    def finished(self) -> bool:
        """Whether the results exist; refuses a folder with a run of other settings."""
        settings_file = self.out / "settings.txt"
        if settings_file.exists() and settings_file.read_text() != self.text:
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
    for part, specification in study["parts"].items():
        common = (*str(study["settings"]).split(), *str(specification.get("settings", "")).split())
        small = (*str(study["smoke"]).split(), *str(specification.get("smoke", "")).split()) if smoke else ()
        seeds = 1 if smoke else int(specification["seeds"])
        rows += [
            Row(part, label, (*common, *str(own).split(), *small), seeds)
            for label, own in specification["rows"].items()
        ]
    return rows


def chosen_rows(study: Mapping[str, Any], size: str, parts: Sequence[str]) -> list[Row]:
    """The rows of the named parts (no names: all parts), in full or smoke size."""
    if size not in SIZES:
        raise UsageError(f"expected size to be one of {', '.join(SIZES)}, got '{size}'")
    parts_of_study = list(study["parts"])
    if unknown := [part for part in parts if part not in parts_of_study]:
        raise UsageError(f"no part '{unknown[0]}' in this study; there are: {', '.join(parts_of_study)}")
    return [row for row in rows_of(study, size == "smoke") if not parts or row.part in parts]


def claim(folder: Path, name: str) -> None:
    """Mark a new folder as that of the study; refuse a folder with other contents."""
    mark = folder / "study.txt"
    holds = mark.read_text().strip() if mark.exists() else "other files"
    if holds == name:
        return
    if mark.exists() or (folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())):
        raise UsageError(f"expected a new folder, or that of {name}, got {folder} with {holds}; change hydra.run.dir=")
    write_atomically(mark, lambda path: path.write_text(name + "\n"))


def complete(rows: Sequence[Row], folder: Path) -> list[Row]:
    """The rows of parts with all runs finished."""
    open_parts = {
        row.part
        for row in rows
        for seed in range(row.seeds)
        if not (row.folder(folder, seed) / "results.json").exists()
    }
    return [row for row in rows if row.part not in open_parts]


def jobs_of(rows: Sequence[Row], folder: Path, evaluations: Mapping[str, Any]) -> tuple[list[Job], list[Job]]:
    """The runs, and the evaluations given by `evaluations` = {settings, parts}; seed by seed."""
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
    """results.json of a run or of an evaluation."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results
