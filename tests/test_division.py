"""Splits that divide classes, rows or nothing, and identical inputs of a bank."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources import features, image_folder
from pyro_metabayes.data.sources.division import Division
from pyro_metabayes.errors import UsageError
from pyro_metabayes.validation.duplicates import note_duplicates, row_keys
from tests.commands import call, ran

SMALL = ("train.steps=2", "train.validation_tasks=2", "eval.tasks=4", "task.query=2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path / "cache"))
    return tmp_path


def arrays(num_classes: int = 5, each: int = 30) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"features": random.normal(size=(num_classes * each, 6)), "labels": np.arange(num_classes).repeat(each)}


def stored(name: str = "it.npz", **changed: np.ndarray) -> str:
    np.savez(name, **arrays() | changed)  # type: ignore[arg-type]
    return name


def rows_of(bank: Bank, split: str) -> np.ndarray:
    return bank.in_memory[bank.rows(split)].numpy()


def test_rows_divide_each_class() -> None:
    bank = features.load(stored(), split="rows")
    assert bank.division == "rows" and bank.class_names == ["0", "1", "2", "3", "4"] * 3
    assert {split: bank.class_sizes[bank.splits[split]].tolist() for split in SPLITS} == {
        "train": [19] * 5,
        "val": [5] * 5,
        "test": [6] * 5,
    }
    together = np.concatenate([rows_of(bank, split) for split in SPLITS])
    assert len(np.unique(together, axis=0)) == 150  # no row is in two splits
    for split in SPLITS:
        tasks = bank.tasks(split, way=5, query=2).batch(0, 2)
        assert tasks.num_classes == 5
    other = features.load("it.npz", split="rows", seed=1)
    assert bank.fingerprint() == features.load("it.npz", split="rows").fingerprint() != other.fingerprint()


def test_rows_of_small_classes_are_in_every_split() -> None:
    labels = np.repeat([0, 1], [3, 4])
    divided = Division("rows", 0.98, 0.01).divide(labels, ["a", "b"], None, "it")
    sizes = np.bincount(divided.labels)
    assert sizes.tolist() == [1, 2, 1, 1, 1, 1] and list(divided.names) == ["a", "b"] * 3


def test_the_array_split_may_divide_rows() -> None:
    split = np.array(SPLITS)[np.arange(150) % 3]
    bank = features.load(stored(split=split), split="rows")
    assert bank.class_sizes.tolist() == [10] * 15
    np.testing.assert_array_equal(rows_of(bank, "val"), features.load(stored(), split="none").in_memory[1::3].numpy())


def test_nothing_may_be_divided() -> None:
    bank = features.load(stored(), split="none")
    assert bank.division == "none" and all(bank.splits[split].tolist() == [0, 1, 2, 3, 4] for split in SPLITS)
    assert len(bank.rows("test")) == 150


def test_division_is_kept_by_changed_inputs() -> None:
    bank = features.load(stored(), split="rows")
    assert bank.with_inputs(torch.zeros(150, 2)).division == bank.to("cpu").division == "rows"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "row"}, "expected splits .data.split in a run. to be one of classes, rows, none, got 'row'"),
        ({"split": "rows", "train": 0.9, "val": 0.1}, r"train \+ val < 1, got train=0.9"),
        ({}, r"each class in one split of it.npz, got '0' in .* \(4 such classes\).*or set data.split=rows"),
        ({"split": "rows"}, r"train for every class of it.npz .* got class '4' in test only \(1 such class\)"),
    ],
)
def test_what_cannot_be_divided_is_named(settings: dict[str, str], message: str) -> None:
    split = np.where(np.arange(150) < 120, np.arange(150) % 3, 2)
    with pytest.raises(UsageError, match=message):
        features.load(stored(split=split) if "train" not in settings else stored(), **settings)  # type: ignore[arg-type]


def test_classes_of_two_rows_cannot_be_divided_by_rows() -> None:
    labels = np.arange(150) % 5
    labels[:2] = 9
    with pytest.raises(UsageError, match=r"at least 3 rows in each class of it.npz .* got 2 in class '9'"):
        features.load(stored(labels=labels), split="rows")


@pytest.mark.parametrize("split", ["rows", "none"])
def test_results_say_what_may_be_claimed(split: str) -> None:
    stored()
    settings = ("guide=proto", "data=features", "data.path=it.npz", f"data.split={split}", *SMALL)
    out = ran("run", *settings, "hydra.run.dir=run").out
    assert f"note: data.split={split}: " in out and "nothing about new" in out
    assert json.loads(Path("run/results.json").read_text())["division"] == split
    assert f"note: data.split={split}: " in ran("evaluate", "run", "eval.tasks=4").out
    refused = call("run", *settings, "task.base_query=2", "model=lwof", "pretrain.holdout_per_class=2").error
    assert refused.startswith("expected data.split=classes for task.base_query, ")


def test_a_division_of_classes_needs_no_note() -> None:
    random = np.random.default_rng(0)
    np.savez("it.npz", features=random.normal(size=(400, 4)), labels=np.arange(400) % 40)
    out = ran("run", "guide=proto", "data=features", "data.path=it.npz", *SMALL, "hydra.run.dir=run").out
    assert "data.split" not in out and json.loads(Path("run/results.json").read_text())["division"] == "classes"


# Images ----------------------------------------------------------------------------------------------


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


def test_a_folder_of_classes_alone_is_divided_as_asked() -> None:
    for number in range(8):
        for index in range(4):
            write_image(Path(f"mine/c{number}/{index}.png"), 10 * number + index)
    classes = image_folder.load("mine", size=4)
    assert [len(classes.splits[split]) for split in SPLITS] == [5, 1, 2]
    rows = image_folder.load("mine", size=4, split="rows")
    assert rows.class_names == [f"c{number}" for number in range(8)] * 3 and rows.class_sizes.sum() == 32
    assert sorted(rows.in_memory[:, 0, 0, 0].tolist()) == sorted(10 * n + i for n in range(8) for i in range(4))
    assert (rows.in_memory[:, 0, 0, 0] // 10 == rows.labels % 8).all()
    nothing = image_folder.load("mine", size=4, split="none")
    assert nothing.class_sizes.tolist() == [4] * 8 and len(nothing.splits["test"]) == 8


def test_the_same_classes_may_stand_in_all_folders() -> None:
    for place, split in enumerate(SPLITS):
        for number in range(2):
            for index in range(2):
                write_image(Path(f"mine/{split}/c{number}/{index}.png"), 100 * place + 10 * number + index)
    with pytest.raises(UsageError, match=r"got 'c0' in train and val and test .* or set data.split=rows"):
        image_folder.load("mine", size=4)
    bank = image_folder.load("mine", size=4, split="rows")
    assert bank.in_memory[bank.rows("test")][:, 0, 0, 0].tolist() == [200, 201, 210, 211]


# Identical inputs ------------------------------------------------------------------------------------


def test_identical_rows_are_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    given = arrays(10)
    split = np.repeat([0, 1, 2], [150, 60, 90])
    given["features"][200] = given["features"][3]  # val and train
    given["features"][[5, 6]] = given["features"][4]  # one class
    given["features"][280] = given["features"][220]  # two classes of the test
    features.load(stored(split=split, **given))
    assert capsys.readouterr().err == (
        "note: identical inputs in it.npz: 2 rows with a copy in another split (row 3 = row 200), 3 rows with a copy "
        "in their class, so that support and query set may share it (row 4 = row 5), 2 rows with a copy in another "
        "class of their split (row 220 = row 280); remove the copies\n"
    )


def test_identical_images_are_named_by_their_files(capsys: pytest.CaptureFixture[str]) -> None:
    for split, name, value in (("train", "a", 1), ("val", "b", 2), ("test", "c", 1)):
        write_image(Path(f"mine/{split}/{name}/0.png"), value)
        write_image(Path(f"mine/{split}/{name}/1.bmp"), value + 10 * (name == "a"))
    image_folder.load("mine", size=4)
    err = capsys.readouterr().err
    assert "3 rows with a copy in another split (train/a/0.png = test/c/0.png)" in err
    assert "4 rows with a copy in their class, so that support and query set may share it (val/b/0.png =" in err


def test_distinct_inputs_need_no_note(capsys: pytest.CaptureFixture[str]) -> None:
    features.load(stored(), split="none")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [1, 7, 8, 21, 64])
@pytest.mark.parametrize("byte", [0, -1])
def test_rows_that_differ_in_one_bit_have_other_keys(width: int, byte: int) -> None:
    rows = np.random.default_rng(0).integers(256, size=(1, width), dtype=np.uint8).repeat(256, 0)
    rows[:, byte] = np.arange(256)
    keys = row_keys(rows)
    assert len(np.unique(keys)) == 256 and (row_keys(rows.copy()) == keys).all()


def test_rows_of_no_split_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    given = arrays()
    given["features"][0] = given["features"][-1]
    note_duplicates(Bank.from_arrays(given["features"], given["labels"], {"train": np.arange(4)}), "it")
    assert capsys.readouterr().err == ""
    note_duplicates(Bank.from_arrays(given["features"], given["labels"], {"train": np.arange(5)}), "it")
    assert "in it: 2 rows with a copy in another class of their split (0 = 149); remove" in capsys.readouterr().err
