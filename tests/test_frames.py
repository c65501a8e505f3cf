"""Features from data frames, Parquet and CSV files: the same bank as from arrays, or one clear line."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyro_metabayes import Bank, UsageError
from pyro_metabayes.data.sources import features
from tests.commands import call, ran

SPLITS = ("train", "val", "test")
NAMES = [f"f{index}" for index in range(4)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(30).repeat(20))
    return {"features": random.normal(size=(600, 4)), "labels": np.char.add("c", labels.astype(str))}


def frame() -> pd.DataFrame:
    given = arrays()
    table = pd.DataFrame(given["features"], columns=NAMES)
    table["label"] = given["labels"]
    return table


def expected(**settings: Any) -> Bank:
    np.savez("expected.npz", **arrays())  # type: ignore[arg-type]
    return features.load("expected.npz", **settings)


FORMS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "pandas": lambda table: table,
    "nullable": lambda table: table.astype(dict.fromkeys(NAMES, "Float64")),
    "category": lambda table: table.astype({"label": "category"}),
    "index": lambda table: table.set_index(np.arange(600)[::-1]),
    "arrow": pa.Table.from_pandas,
    "lists": lambda table: pd.DataFrame({"x": list(table[NAMES].to_numpy()), "label": table["label"]}),
    "arrow lists": lambda table: pa.table({"x": table[NAMES].to_numpy().tolist(), "label": table["label"].tolist()}),
    "other columns": lambda table: table.assign(id=np.arange(600), note="x"),
}


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_the_arrays(form: str) -> None:
    bank = Bank.from_dataframe(FORMS[form](frame()), "classes")
    assert bank.class_names == expected().class_names and bank.fingerprint() == expected().fingerprint()


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_files_are_the_arrays(suffix: str) -> None:
    frame().to_csv("it.csv", index=False)
    pq.write_table(pa.Table.from_pandas(frame()), "it.parquet")
    for split in ("classes", "rows", "none"):
        bank = features.load(f"it.{suffix}", split=split)
        assert bank.fingerprint() == expected(split=split).fingerprint() and bank.division == split


def test_columns_may_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    table = frame().rename(columns={"label": "species"}).assign(id=np.arange(600), file="x")
    bank = Bank.from_dataframe(table, "classes", label="species", columns=["f3", "f1"])
    chosen = arrays()["features"][:, [3, 1]]
    np.savez("it.npz", features=chosen, labels=arrays()["labels"])
    assert bank.fingerprint() == features.load("it.npz").fingerprint()
    assert capsys.readouterr().err == "note: features of the data frame: f3, f1; not used: f0, f2, id\n"
    counts = pd.DataFrame({"a": [1, 2, 3] * 3, "b": [2, 4, 5] * 3, "label": ["x", "y", "z"] * 3})
    assert Bank.from_dataframe(counts, "none").input_shape == (2,)


def test_splits_may_be_listed_or_a_column() -> None:
    names = sorted(set(arrays()["labels"].tolist()))
    listed = {"train": names[:10], "val": names[10:15], "test": names[15:29]}
    bank = Bank.from_dataframe(frame(), listed)
    assert [len(bank.splits[split]) for split in SPLITS] == [10, 5, 14]
    of_class = {name: split for split, given in listed.items() for name in given} | {names[29]: "test"}
    column = Bank.from_dataframe(frame().assign(split=[of_class[name] for name in frame()["label"]]), "classes")
    assert [len(column.splits[split]) for split in SPLITS] == [10, 5, 15]
    with pytest.raises(UsageError, match="expected labels of the dataset in split train, got 'x'"):
        Bank.from_dataframe(frame(), {"train": ["x"]})


def test_datasets_may_be_divided_by_rows() -> None:
    items = [(np.array([float(row)], np.float32), row % 3) for row in range(60)]
    bank = Bank.from_dataset(items, "rows")  # type: ignore[arg-type]
    assert bank.division == "rows" and bank.class_names == ["0", "1", "2"] * 3
    assert bank.tasks("test", way=3, query=2).batch(0, 1).num_classes == 3
    with pytest.raises(
        UsageError, match=r"expected splits .data.split in a run. to be one of classes, rows, none, got 'row'"
    ):
        Bank.from_dataset(items, "row")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.drop(columns="label"),
            r"a column 'label' in .*, got f0, f1, f2, f3; set label .in a run: data.label",
        ),
        (lambda table: table[["label"]], r"expected columns of features in .*, got none; set the argument columns"),
        (lambda table: table.assign(label=None), "only integers, in column 'label' of .*, got NoneType in row 0"),
        (lambda table: table.assign(label=0.5), "only integers, in column 'label' of .*, got float64 in row 0"),
        (lambda table: table.assign(f1=np.nan), "NaN or infinity .* in 600 of 600 rows"),
        (lambda table: table.assign(a=[[1.0]] * 600, b=[[1.0]] * 600), "one column of lists in .*, got a, b; set"),
        (lambda table: table.assign(a=[[1.0]] * 599 + [[1.0, 2]]), "lists of one length in column 'a' .* 2 different"),
        (lambda table: table.set_axis([*"aab", "c", "label"], axis=1), "columns with different names in .*, got a, a"),
        (lambda table: table.assign(split="training"), "expected train, val, test or 0, 1, 2 in 'split' of"),
        (lambda table: table[:0], "at least one row of features|got object|expected columns of features"),
    ],
)
def test_what_is_wrong_with_a_frame_is_named(change: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Bank.from_dataframe(change(frame()), "classes")
    assert "\n" not in str(caught.value)


def test_a_refusal_is_the_only_line(capsys: pytest.CaptureFixture[str]) -> None:
    table = frame().assign(id=1)
    table.loc[3, "f1"] = np.nan
    with pytest.raises(UsageError, match="NaN or infinity"):
        Bank.from_dataframe(table, "classes")
    assert capsys.readouterr().err == ""


def test_a_column_of_text_is_no_feature() -> None:
    with pytest.raises(UsageError, match=r"numbers in column 'label' of the data frame, got str; leave the column out"):
        Bank.from_dataframe(frame(), "classes", columns=["f0", "label"])
    with pytest.raises(UsageError, match=r"expected a column 'g' in .*; set columns \(in a run: data.columns\)"):
        Bank.from_dataframe(frame(), "classes", columns=["f0", "g"])


def test_a_run_reads_a_table() -> None:
    frame().rename(columns={"label": "my label"}).to_parquet("it.parquet")
    small = ("train.steps=2", "train.validation_tasks=2", "eval.tasks=4")
    ran("run", "guide=proto", "data=features", "data.path=it.parquet", "data.label=my label", *small)
    error = call("run", "data=features", "data.path=it.parquet", *small).error
    assert (
        error
        == "expected a column 'label' in it.parquet, got f0, f1, f2, f3, my label; set label (in a run: data.label)"
    )
    Path("cut.parquet").write_bytes(Path("it.parquet").read_bytes()[:2000])
    assert "got cut.parquet, which cannot be read (" in call("run", "data=features", "data.path=cut.parquet").error
    np.savez("it.npz", **arrays())  # type: ignore[arg-type]
    assert "with data.label or data.columns, got it.npz; remove these two settings" in (
        call("run", "data=features", "data.path=it.npz", "data.columns=[f0]").error
    )


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    frame().to_csv("it.csv", index=False)
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UsageError, match=r"pyarrow to read it.csv, not found; run: pip install 'pyro_metabayes\["):
        features.load("it.csv")
