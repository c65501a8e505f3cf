"""Memory-mapped features give the same bank and tasks as features in memory, and read only needed rows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_metabayes.data import mapped
from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.mapped import MappedRows
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.sources import features
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.verify import split_results
from tests.commands import SMALL, call, ran

WIDTH = 6


def arrays(dtype: Any = np.float32, rows: int = 20, classes: int = 30) -> dict[str, np.ndarray]:
    values = 10 * np.random.default_rng(0).normal(size=(classes * rows, WIDTH))
    return {"features": values.astype(dtype), "labels": np.arange(classes).repeat(rows)}


def shuffled(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    order = np.random.default_rng(1).permutation(len(given["labels"]))
    return {name: array[order] for name, array in given.items()}


def folder_of(path: Path, given: dict[str, np.ndarray]) -> str:
    path.mkdir(exist_ok=True)
    for name, array in given.items():
        np.save(path / f"{name}.npy", array)
    return str(path)


def stream(bank: Bank, split: str = "train", shape: TaskShape | None = None) -> TaskStream:
    return TaskStream(BankSampler(bank).sampler(split, shape or TaskShape(3, 2, 4)), 0, split)


def batch(bank: Bank, split: str = "train") -> Episodes:
    return stream(bank, split).batch(50, 80)


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16])
def test_a_folder_is_the_same_bank_as_one_file(order: str, dtype: Any, tmp_path: Path) -> None:
    given = arrays(dtype) if order == "sorted" else shuffled(arrays(dtype))
    np.savez(tmp_path / "given.npz", **given)
    one, other = (features.load(path) for path in (str(tmp_path / "given.npz"), folder_of(tmp_path / "given", given)))
    assert isinstance(other.inputs, MappedRows) and other.input_shape == (WIDTH,)
    assert one.class_names == other.class_names and torch.equal(one.class_sizes, other.class_sizes)
    assert (other.inputs.order is None) == (order == "sorted"), "an order is kept where there is one to keep"
    for split in SPLITS:
        expected, got = batch(one, split), batch(other, split)
        assert torch.equal(expected.query_y, got.query_y) and torch.equal(expected.classes, got.classes)
        torch.testing.assert_close(got.support_x, expected.support_x, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(got.query_x, expected.query_x, rtol=1e-6, atol=1e-7)


def test_a_run_has_the_same_figures(tmp_path: Path) -> None:
    given = arrays()
    np.savez(tmp_path / "given.npz", **given)
    found = []
    for path in (str(tmp_path / "given.npz"), folder_of(tmp_path / "given", given)):
        run = tmp_path / f"run{len(found)}"
        ran("run", "guide=sib", "data=features", f"data.path={path}", *SMALL, f"hydra.run.dir={run}")
        found.append(split_results(json.loads((run / "results.json").read_text()))[0])
    assert found[0] == found[1]


class Recorded(list[int]):
    """Records which rows of a file are read."""

    def __call__(self, values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        self.extend(numbers.tolist())
        return values


def test_what_is_read_are_the_rows_of_the_batch(tmp_path: Path) -> None:
    bank, seen = features.load(folder_of(tmp_path / "given", arrays())), Recorded()
    assert isinstance(bank.inputs, MappedRows)
    tasks = stream(bank.with_inputs(MappedRows(bank.inputs.array, seen)))
    first = tasks.batch(0, 2)
    assert len(seen) == 2 * 3 * (2 + 4), "support and query of two tasks, of a block of 64"
    inputs = torch.cat([first.support_x, first.query_x], 1).flatten(0, 1)
    read = torch.cat([torch.from_numpy(bank.inputs.array[seen[:12]]), torch.from_numpy(bank.inputs.array[seen[12:]])])
    assert torch.equal(inputs.sort(0).values, read.sort(0).values)


def memory() -> dict[str, int]:
    """Anonymous memory (Anon) and mapped file pages (File) of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return {name: int(size) // 1000 for name, size in re.findall(r"Rss(Anon|File):\s+(\d+)", status)}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its memory off Linux")
def test_a_bank_of_200_gigabytes_costs_its_labels(tmp_path: Path) -> None:
    """Thirty classes at the head of a file with a hole: who reads the file ends here, or never."""
    wide, classes, rows = 2**16, 30, 8
    total = 200 * 10**9 // (4 * wide)
    labels, split = np.full(total, classes, np.int32), np.full(total, 2, np.int8)
    labels[: classes * rows] = np.arange(classes).repeat(rows)
    split[: classes * rows] = (labels[: classes * rows] >= 15) + 0
    folder_of(tmp_path, {"labels": labels, "split": split})
    file = np.lib.format.open_memmap(tmp_path / "features.npy", mode="w+", dtype=np.float32, shape=(total, wide))
    file[: classes * rows] = np.random.default_rng(0).normal(size=(classes * rows, wide))
    del file
    assert (tmp_path / "features.npy").stat().st_size > 199 * 10**9
    before = memory()
    bank = features.load(str(tmp_path))
    bank.fingerprint()
    for name in ("train", "val"):
        tasks = stream(bank, name, TaskShape(5, 1, 2)).batch(0, 2)
        torch.testing.assert_close(tasks.query_x.norm(dim=-1), torch.ones(2, 10))
    grown = {name: size - before[name] for name, size in memory().items()}
    assert grown["Anon"] < 200 and grown["File"] < 1000, grown


# What is wrong ---------------------------------------------------------------------------------------------


def with_row(row: int, value: float) -> dict[str, np.ndarray]:
    given = arrays()
    given["features"][row] = value
    return given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            with_row(slice(None), np.nan),
            r"NaN or infinity .* in 36 of 36 rows; .* \(the first is row \d+\)",
        ),
        (with_row(slice(None), 0.0), r"got 36 of 36 that are all zero; remove these rows \(the first is row \d+\)"),
    ],
)
def test_a_row_that_is_no_feature_is_named_when_it_is_drawn(given: Any, message: str, tmp_path: Path) -> None:
    tasks = stream(features.load(folder_of(tmp_path / "given", given)))
    with pytest.raises(UsageError, match=message):
        tasks.batch(0, 6)


def test_prepare_names_it_before_a_task_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PIECE", 1000)
    folder = folder_of(tmp_path / "good", arrays())
    assert "train  19       380" in ran("prepare", "data=features", f"data.path={folder}").out
    folder = folder_of(tmp_path / "bad", with_row(433, np.inf))
    assert "(the first is row 433)" in call("prepare", "data=features", f"data.path={folder}").error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": None}, "expected an array 'labels' in .*given, got features; rename or add an array"),
        ({"labels": np.arange(5)}, r"features \[600, 6\], labels \[5\]"),
        ({"features": np.asfortranarray(arrays()["features"])}, "C order in .* Fortran order; save numpy.asc"),
        ({"features": np.full((600, 6), "x")}, "expected numbers as features"),
        (
            {"features": np.full((600, 6), None)},
            "a file of arrays, got .*given, which cannot be read .* save names with",
        ),
        ({"features": np.zeros((0, 6), np.float32)}, "given"),
        ({"labels": np.zeros(600)}, "expected integers or strings as labels"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "given", {name: its for name, its in (arrays() | changed).items() if its is not None})
    with pytest.raises(UsageError, match=message) as caught:
        features.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_named(share: float, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "given", arrays())
    content = (tmp_path / "given" / "features.npy").read_bytes()
    (tmp_path / "given" / "features.npy").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match=r"a file of arrays, got .*given, which cannot be read .*it may be truncated"):
        features.load(folder)


def test_what_needs_all_features_at_once_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "given", arrays())
    lwof = ("model=lwof", "guide=proto", "pretrain.holdout_per_class=4")
    outcome = call("run", *lwof, "data=features", f"data.path={folder}", f"hydra.run.dir={tmp_path / 'run'}")
    assert "expected features in memory, since a setting needs the whole data set, got a folder" in outcome.error


def test_the_fingerprint_tells_files_apart(tmp_path: Path) -> None:
    def mark(name: str, given: dict[str, np.ndarray]) -> str:
        return features.load(folder_of(tmp_path / name, given)).fingerprint()

    given = arrays()
    others: Sequence[dict[str, np.ndarray]] = [with_row(7, 1.0), shuffled(given), arrays(np.float64)]
    assert mark("same", given) == mark("again", given)
    assert len({mark(f"{place}", its) for place, its in enumerate([given, *others])}) == 4
