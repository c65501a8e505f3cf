"""Long cases: cost of banks of ten million rows, tasks of a thousand classes, and a hundred thousand groups.

Whole runs are measured in separate processes: peak anonymous memory, observed every 0.2 seconds, and CPU time per step
including logging. The data are random, since their values do not affect the cost.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, Spread, rows_of, time_interleaved
from benchmarks.setting import Size, learner, make_step, tasks
from benchmarks.watch import WatchedRun, watch_run
from pyro_metabayes.data.sources import groups

WIDTH, CLASSES, PIECE = 64, 1000, 100_000
BANK_STEPS = ("train.steps=400", "train.log_every=100", "train.validate_every=400", "train.validation_tasks=32")
GROUP_STEPS = ("train.steps=600", "train.log_every=200", "train.particles=1")
GUIDES = {  # prior and settings; the network of sib has width 8 C, so its number of weights is quadratic in C
    "proto": ("Flat", {}),
    "mc": ("Conditional", {"objective": "monte_carlo.MonteCarlo", "particles": 10}),
    "savi": ("Conditional", {}),
    "sib": ("Gaussian", {}),
}
WAYS = {"proto": (10, 100, 1000), "mc": (10, 100, 1000), "savi": (10, 100, 1000), "sib": (10, 100, 300)}


def banks(size: Size) -> list[Row]:
    """Measure sib on a bank in memory (.npz), on a memory-mapped bank (a folder), and with a cold page cache."""
    table = []
    for number in (20 * CLASSES,) if size.toy else (10**5, 10**6, 10**7):
        with tempfile.TemporaryDirectory() as folder:
            bank, case = Path(folder), f"bank of {number:,} rows of {WIDTH}"
            _write_bank(bank, number)
            if number <= 10**6:
                table += _costs(case, "in memory", _on_features(bank / "bank.npz", size))
            table += _costs(case, "in its file", _on_features(bank, size))
            _forget(bank / "features.npy")
            table += _costs(case, "in its file, cold", _on_features(bank, size))
    return table


def _on_features(path: Path, size: Size) -> WatchedRun:
    return watch_run("guide=sib", "data=features", f"data.path={path}", *_short(BANK_STEPS, size))


def _write_bank(folder: Path, number: int) -> None:
    piece = np.random.default_rng(0).standard_normal((PIECE, WIDTH), dtype=np.float32)
    labels = np.arange(CLASSES).repeat(number // CLASSES)
    np.save(folder / "labels.npy", labels)
    file = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=np.float32, shape=(number, WIDTH))
    for start in range(0, number, PIECE):
        file[start : start + PIECE] = piece[: number - start]
    file.flush()
    if number <= 10**6:
        np.savez(folder / "bank.npz", features=file, labels=labels)


def _forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ways(size: Size) -> list[Row]:
    """Measure memory of a run and time of a step by way. A step has one 1-shot task with 5 queries per class."""
    table = []
    with tempfile.TemporaryDirectory() as folder:
        num_classes, path = 20 if size.toy else 1000, Path(folder) / "bank.npz"
        rows = np.random.default_rng(0).standard_normal((3 * num_classes * 8, WIDTH), dtype=np.float32)
        split = np.arange(3).repeat(num_classes * 8)
        np.savez(path, features=rows, labels=np.arange(3 * num_classes).repeat(8), split=split)
        for guide, ways_of_guide in WAYS.items():
            for way in (10,) if size.toy else ways_of_guide:
                run = watch_run(
                    f"guide={guide}", "data=features", f"data.path={path}", f"task.way={way}", "task.query=5",
                    "train.tasks_per_step=1", "train.steps=4", "train.log_every=2", "train.validate_every=4",
                    "train.validation_tasks=2", "eval.tasks=2", "eval.samples=10",
                )  # fmt: skip
                table.append(Row(f"tasks of {way:,} classes", f"{guide}: own memory", Spread.of([run.most]), "MB"))
                table += rows_of(f"tasks of {way:,} classes", _steps_of(guide, way, size), {})
    return table


def _steps_of(guide: str, way: int, size: Size) -> dict[str, list[float]]:
    prior, settings = GUIDES[guide]
    module, episodes = learner(guide, prior, way=way, features=WIDTH, **settings), tasks(1, way, 1, 5, WIDTH).episodes
    step = make_step(module.parameters(), lambda: module(episodes)["loss"], adam=True)
    return time_interleaved({f"{guide}: a step, CPU": step}, size.rounds(3 if way > 100 else 20))


def ragged(size: Size) -> list[Row]:
    """Measure partial pooling with intercepts and slopes, for groups of 1 to 60 rows, about nine on average."""
    table = []
    for number in (100,) if size.toy else (1_000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.csv"
            case = f"{number:,} groups, {_write_groups(path, number):,} rows"
            settings = {"group": "group", "response": "y", "predictors": ["x", "z"], "random": ["intercept", "x"]}
            started = time.process_time()
            groups.load(path=str(path), **settings)
            table.append(Row(case, "loading", Spread.of([time.process_time() - started]), "s"))
            data_settings = (
                f"data.{name}={value}".replace("'", "").replace(" ", "") for name, value in settings.items()
            )
            run = watch_run(
                "guide=partial_pooling", "data=groups", f"data.path={path}", *data_settings, *_short(GROUP_STEPS, size),
                f"eval.tasks={number}",
            )  # fmt: skip
            table += _costs(case, "partial pooling", run)
            table.append(Row(case, "evaluation of all groups", Spread.of([run.results["seconds"]["eval"]]), "s"))
    return table


def _write_groups(path: Path, number: int) -> int:
    noise = np.random.default_rng(0)
    sizes = 1 + noise.poisson(8, number)
    sizes[:: max(number // 100, 1)] = 60
    group = np.arange(number).repeat(sizes)[noise.permutation(int(sizes.sum()))]
    x, z, error = noise.standard_normal((3, len(group)))
    intercept, slope = 1 + 0.5 * noise.standard_normal(number), 0.3 + 0.2 * noise.standard_normal(number)
    y = intercept[group] + slope[group] * x + 0.7 * z + error
    with path.open("w") as file:
        file.write("group,x,z,y\n")
        file.writelines(f"g{g},{a:.4f},{b:.4f},{c:.4f}\n" for g, a, b, c in zip(group, x, z, y, strict=True))
    return len(group)


def _short(steps: Sequence[str], size: Size) -> tuple[str, ...]:
    return (*steps, "train.steps=4", "train.log_every=2", "eval.tasks=4") if size.toy else tuple(steps)


def _costs(case: str, way: str, run: WatchedRun) -> list[Row]:
    return [
        Row(case, f"{way}: own memory", Spread.of([run.most]), "MB"),
        Row(case, f"{way}: pages of files", Spread.of([run.most_mapped]), "MB"),
        Row(case, f"{way}: a step, CPU", Spread.of([run.step_milliseconds]), "ms"),
    ]
