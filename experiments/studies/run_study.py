"""Runs a study and writes its tables; finished runs are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_metabayes.errors import Interrupted
from pyro_metabayes.experiments.studies.run_grid import run_grid
from pyro_metabayes.experiments.studies.study import Row, chosen_rows, claim, complete, jobs_of

Write = Callable[[dict[str, Any], list[Row], Path], None]


@dataclass
class StudyConfig:
    """The study and how to run it."""

    study: dict[str, Any]
    size: str = "full"  # full; smoke: a few steps of one seed, to see whether it runs
    parts: list[str] = field(default_factory=list)  # parts of the study to run; empty: all
    workers: int = 2  # parallel runs, each on one thread


def run_study(config: Any, name: str, folder: Path, write: Write) -> None:
    """Run the unfinished runs of a study in its folder, and write its tables."""
    rows = chosen_rows(config.study, config.size, config.parts)
    claim(folder, name)
    runs, evaluations = jobs_of(rows, folder, config.study["evaluations"])
    try:
        run_grid(runs, config.workers, "study")
        run_grid(evaluations, config.workers, "evaluate")
    except KeyboardInterrupt:
        raise Interrupted("interrupted; finished runs are kept: the same command continues the study") from None
    all_rows = chosen_rows(config.study, config.size, ())
    write(config.study, complete(all_rows, folder), folder)  # also parts that were finished earlier
