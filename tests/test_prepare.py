"""Does `python -m experiments.prepare` convert, count and resume, and name what is missing?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.experiments.prepare import counts
from tests.commands import SMALL, call, ran, results_of
from tests.published import write_cache, write_folder, write_leo, write_tiered

pytestmark = pytest.mark.usefixtures("empty_folder")
WRITE: dict[str, Callable[[Path], None]] = {
    "mini_imagenet": write_cache,
    "tiered_imagenet": functools.partial(write_tiered, packed=True),
    "leo_embeddings": write_leo,
}
TINY = ("task.way=2", "task.query=2", *SMALL, "guide=proto", "hydra.run.dir=run")


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("METABAYES_CACHE", str(folder))
    return folder


@pytest.fixture
def data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("METABAYES_DATA", str(folder))
    return folder


@pytest.mark.parametrize("name", WRITE)
def test_what_is_prepared_is_counted_and_used(name: str, cache: Path, data: Path) -> None:
    """A run on it converts nothing more."""
    WRITE[name](data / name)
    size = () if name == "leo_embeddings" else ("data.size=16",)
    out = ran("prepare", f"data={name}", *size).out
    for line in ("train  3        9       3", "val    2        6       3", "test   2        6       3"):
        assert line in out
    assert f"cache: {cache}" in out and not any(Path.cwd().iterdir())
    before = {path: path.stat().st_mtime_ns for path in (cache / name).iterdir()}
    assert len(before) == 6
    thin = ("backbone.num_filters=1", "pretrain.epochs=1", "pretrain.batch_size=3") if size else ()
    ran("run", f"data={name}", *size, *thin, *TINY)
    assert results_of(Path("run"))["data"] == name
    assert {path: path.stat().st_mtime_ns for path in (cache / name).iterdir()} == before


def test_a_run_converts_on_its_first_use(cache: Path) -> None:
    write_folder(Path("mine"))
    settings = ("data=image_folder", "data.path=mine", "data.size=16", "pretrain.epochs=1", "pretrain.batch_size=3")
    ran("run", *settings, "backbone.num_filters=1", *TINY)
    assert results_of(Path("run"))["data"] == "image_folder"
    assert len(list((cache / "image_folder").glob("*.npy"))) == 3


def test_folders_may_hold_images_of_one_channel_and_many(cache: Path) -> None:
    write_folder(Path("mine"))
    out = ran("prepare", "data=image_folder", "data.path=mine", "data.size=8", "data.channels=1").out
    assert "inputs of shape [1, 8, 8]" in out


def test_classes_of_several_sizes_are_counted() -> None:
    splits = {"train": torch.tensor([0, 1]), "val": torch.tensor([2]), "test": torch.tensor([], dtype=torch.long)}
    bank = Bank(torch.zeros(9, 1), torch.tensor([2, 3, 4]), splits, ["a", "b", "c"])
    assert [row["per class"] for row in counts(bank)] == ["2 to 3", "4", "0"]
    assert [row["inputs"] for row in counts(bank)] == ["5", "4", "0"]


def test_tasks_that_are_drawn_need_no_preparation() -> None:
    assert "nothing to prepare" in ran("prepare", "data=gaussian_mean").out
    assert not any(Path.cwd().iterdir())


ERRORS = {
    "data=mini_imagenet": "mini_imagenet, not found; put train.csv, val.csv, test.csv and the folder images/ there, or",
    "data=tiered_imagenet": "tiered_imagenet, not found; put {train,val,test}_images_png.pkl",
    "data=leo_embeddings": "leo_embeddings, not found; unpack http://storage.googleapis.com/leo-embeddings/embeddings",
    "data=cifar_fs": "cifar100_meta.json, not found; put cifar100_meta.json and the lossless sheets",
    "data=image_folder": "expected a folder of images, got ''; set data.path to a folder with train/, val/ and test/",
    "data=image_folder data.size=big": "expected data.size to be of type int, got 'big'",
    "data=nope": "unknown choice data=nope; choose one of: cifar_fs, digit_domains, fc100",
    "data=fc100 data.size=3": "unknown key 'data.size'",
    "seed=1": "You must specify 'data', e.g, data=<OPTION>",
}


@pytest.mark.parametrize("arguments", ERRORS)
def test_what_is_missing_is_named(arguments: str, cache: Path, data: Path) -> None:
    assert ERRORS[arguments] in call("prepare", *arguments.split()).error
    assert not any(Path.cwd().iterdir()) and not any(cache.iterdir())


def test_without_network_the_message_says_what_to_put_where(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METABAYES_DATA", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there, network or not
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    error = call("prepare", "data=fc100").error
    assert "expected to download CIFAR-100 with the md5 checksum eb9058c3a382ffc7106e4002c42a8d85, got: " in error
    assert f"/cifar-100-python.tar.gz into {cache} yourself" in error and not any(cache.iterdir())


def test_an_interruption_says_how_to_go_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives while images are read."""
    write_folder(Path("mine"))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", stop)
    outcome = call("prepare", "data=image_folder", "data.path=mine")
    assert "interrupted; finished parts are kept: the same command continues" in outcome.err
    assert [path for path in cache.rglob("*") if path.is_file()] == [] and not Path("runs").exists()
