"""Published formats are read correctly. Damaged files give a one-line message, and no half-written cache."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_metabayes.data.bank import SPLITS, Bank
from pyro_metabayes.data.sources import (
    cifar100,
    cifar_fs,
    fc100,
    image_folder,
    leo_embeddings,
    mini_imagenet,
    tiered_imagenet,
)
from pyro_metabayes.data.sources.class_lists import class_lists
from pyro_metabayes.data.sources.parts import Part, Rows, bank_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.storage import downloads
from pyro_metabayes.vision import torchvision
from tests.published import (
    WNIDS,
    dump,
    embeddings,
    pictures,
    png,
    write_archive,
    write_cache,
    write_category,
    write_folder,
    write_leo,
    write_table,
    write_tiered,
)
from tests.test_unpickle import Malicious

REAL = os.environ.get("METABAYES_DATA")  # before the tests change it


@pytest.fixture
def metabayes_real() -> Path:
    if not REAL:
        pytest.skip("METABAYES_DATA is unset: no folder of real data")
    return Path(REAL)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder METABAYES_DATA, with an empty cache beside it."""
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("METABAYES_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def line_of(load: Callable[[], Any], cache: Path) -> str:
    """The one-line message of a refusal. Nothing is half-written: each array in the cache has its JSON file."""
    with pytest.raises(UsageError) as caught:
        load()
    left = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.suffix for path in left} <= {".npy", ".json"} and not any(path.name.startswith(".") for path in left)
    assert all(path.with_suffix(".json") in left for path in left)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def images_of(bank: Bank) -> dict[str, np.ndarray]:
    """Images [N, height, width, 3] of each class."""
    parts = bank.inputs.permute(0, 2, 3, 1).numpy()
    places = zip(bank.class_names, bank.class_starts.tolist(), bank.class_sizes.tolist(), strict=True)
    return {name: parts[start : start + size] for name, start, size in places}


def split_of(bank: Bank) -> dict[str, list[str]]:
    return {split: [bank.class_names[index] for index in bank.splits[split].tolist()] for split in SPLITS}


# The formats -----------------------------------------------------------------------------------------

IN_ORDER = {split: sorted(names) for split, names in WNIDS.items()}


@pytest.mark.parametrize("write", [write_table, write_cache, write_category])
@pytest.mark.parametrize("size", [84, 80])
def test_mini_imagenet_is_read_in_each_format(write: Callable[[Path], None], size: int, folder: Path) -> None:
    write(folder / "mini_imagenet")
    bank = mini_imagenet.load(size)
    assert split_of(bank) == IN_ORDER and bank.inputs.dtype == torch.uint8
    assert bank.input_shape == (3, size, size)
    cut = slice((84 - size) // 2, 84 - (84 - size) // 2)
    for split in SPLITS:
        for name, images in pictures(split).items():
            assert np.array_equal(images_of(bank)[name], images[:, cut, cut])


def test_images_of_a_folder_are_squeezed_by_lanczos(folder: Path) -> None:
    write_table(folder / "mini_imagenet", side=100)
    bank = mini_imagenet.load()
    large = pictures("train", 100)["n01"]
    expected = Image.fromarray(large[0]).resize((84, 84), Image.Resampling.LANCZOS)
    assert np.array_equal(images_of(bank)["n01"][0], np.asarray(expected))


@pytest.mark.parametrize("packed", [True, False])
def test_tiered_imagenet_is_read_in_each_format(packed: bool, folder: Path) -> None:
    """Colours come out as they are on both ways, though the array has blue first."""
    write_tiered(folder / "tiered_imagenet", packed)
    bank = tiered_imagenet.load(80)
    assert split_of(bank)["train"] == ["train 000 n01", "train 001 n02", "train 002 n03"]
    for split in SPLITS:
        for name, images in pictures(split).items():
            place = f"{split} {IN_ORDER[split].index(name):03d} {name}"
            assert np.array_equal(images_of(bank)[place], images[:, 2:82, 2:82])


def test_leo_embeddings_are_read(folder: Path) -> None:
    write_leo(folder / "leo_embeddings")
    bank = leo_embeddings.load()
    assert split_of(bank) == IN_ORDER and bank.inputs.dtype == torch.float32
    for split in SPLITS:
        rows, keys = embeddings(split)
        of_class = [row for row, key in zip(rows, keys, strict=True) if "-n10-" in key or "-n02-" in key]
        name = {"val": "n10", "train": "n02"}.get(split)
        if name:
            start = int(bank.class_starts[bank.class_names.index(name)])
            assert np.array_equal(bank.inputs[start : start + 3].numpy(), np.stack(of_class))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_mixed_sizes_in_folders_are_resized(listed: bool, channels: int, tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", listed)
    bank = image_folder.load(str(tmp_path / "mine"), size=20, channels=channels)
    assert split_of(bank) == IN_ORDER and bank.input_shape == (channels, 20, 20)
    assert bank.class_sizes.tolist() == [3] * 7
    small = Image.fromarray(pictures("val", 24)["n11"][1, :16]).convert("L" if channels == 1 else "RGB")
    expected = np.asarray(small.resize((20, 20), Image.Resampling.LANCZOS)).reshape(20, 20, channels)
    assert np.array_equal(images_of(bank)["n11"][1], expected)


# The cache -------------------------------------------------------------------------------------------


def test_what_is_converted_is_kept(folder: Path, cache: Path) -> None:
    write_leo(folder / "leo_embeddings")
    first = leo_embeddings.load()
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")}
    assert len(before) == 6 and leo_embeddings.load().fingerprint() == first.fingerprint()
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")} == before


def test_a_conversion_goes_on_where_it_stopped(folder: Path, cache: Path) -> None:
    write_leo(folder / "leo_embeddings")
    path = folder / "leo_embeddings/embeddings/miniImageNet/center/val_embeddings.pkl"
    whole = path.read_bytes()
    path.write_bytes(whole[:80])
    assert f"a complete pickle in {path}, got a damaged or truncated one" in line_of(leo_embeddings.load, cache)
    (train,) = cache.rglob("train-*.npy")
    made = train.stat().st_mtime_ns
    path.write_bytes(whole)
    assert len(leo_embeddings.load().class_sizes) == 7 and train.stat().st_mtime_ns == made


@pytest.mark.parametrize("damage", ["cut", "no table", "no array"])
def test_a_damaged_part_is_converted_anew(damage: str, folder: Path, cache: Path) -> None:
    write_leo(folder / "leo_embeddings")
    fingerprint = leo_embeddings.load().fingerprint()
    (part,) = cache.rglob("val-*.npy")
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-4])
    else:
        (part.with_suffix(".json") if damage == "no table" else part).unlink()
    assert leo_embeddings.load().fingerprint() == fingerprint


def test_changed_images_are_converted_anew(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    load = functools.partial(image_folder.load, str(tmp_path / "mine"), size=24)
    before = images_of(load())["n01"][0]
    Image.fromarray(before[:, ::-1]).save(tmp_path / "mine/train/n01/0.PNG")
    assert np.array_equal(images_of(load())["n01"][0], before[:, ::-1])


def test_an_interrupted_conversion_leaves_no_half(cache: Path) -> None:
    def stopped() -> Iterator[np.ndarray]:
        yield np.zeros(2)
        raise KeyboardInterrupt

    parts = {split: Part([], lambda: Rows({"a": 2}, stopped())) for split in SPLITS}
    with pytest.raises(KeyboardInterrupt):
        bank_of("mine", parts, {})
    assert [path for path in cache.rglob("*") if path.is_file()] == []


# CIFAR-100 through torchvision -----------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A local server that replaces the one from which torchvision downloads."""
    monkeypatch.delenv("METABAYES_DATA")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, downloads.allowed():
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        source = torchvision().datasets.CIFAR100
        monkeypatch.setattr(source, "url", f"http://127.0.0.1:{server.server_port}/{source.filename}")

        def offer(classes: list[str], **changed: Any) -> Any:
            path = tmp_path / "served" / source.filename
            images = write_archive(path, classes, **changed)
            monkeypatch.setattr(source, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
            return images

        yield offer
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


ALL = sorted(name for names in class_lists("cifar_fs").values() for name in names)


def test_cifar_100_is_downloaded_once(served: Any, cache: Path, tmp_path: Path) -> None:
    images = served(ALL)
    banks = {"cifar_fs": cifar_fs.load(), "fc100": fc100.load()}
    shutil.rmtree(tmp_path / "served")
    assert cifar_fs.load().fingerprint() == banks["cifar_fs"].fingerprint()
    for name, bank in banks.items():
        assert split_of(bank) == class_lists(name) and set(bank.class_sizes.tolist()) == {3}
        for class_name in ("apple", "worm"):
            got = torch.from_numpy(images_of(bank)[class_name]).permute(0, 3, 1, 2).numpy()
            assert sorted(image.tobytes() for image in got) == sorted(its.tobytes() for its in images[class_name])
    assert sorted(path.suffix for path in cache.iterdir()) == [".gz", ".npz"]


def test_both_sources_have_the_same_classes_and_order(metabayes_real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the sheets is the one that downloaded images are brought into."""
    meta = json.loads((metabayes_real / cifar100.META).read_text())
    assert [meta[name] for name in ("cifar_fs", "fc100")] == [class_lists(name) for name in ("cifar_fs", "fc100")]
    monkeypatch.setenv("METABAYES_DATA", str(metabayes_real))
    sheet = cifar100._sheet("train", "apple", meta["sha256_raw"]["apple"])
    mixed = np.random.default_rng(0).permutation(sheet)
    assert not np.array_equal(mixed, sheet) and np.array_equal(cifar100.in_order(mixed), sheet)


def test_a_download_that_is_another_file_is_refused(served: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(ALL)
    monkeypatch.setattr(torchvision().datasets.CIFAR100, "tgz_md5", "0" * 32)
    expected = f"expected to download CIFAR-100 with the md5 checksum {'0' * 32}, got: File not found or corrupted"
    assert expected in line_of(cifar_fs.load, cache)
    assert list(cache.iterdir()) == []


def test_an_archive_that_was_put_there_is_checked(served: Any, cache: Path) -> None:
    served(ALL)
    cache.mkdir()
    (cache / "cifar-100-python.tar.gz").write_bytes(b"another")
    with pytest.raises(
        UsageError, match=r"md5 checksum [0-9a-f]{32} of .*tar.gz, got another checksum .*; delete the file"
    ):
        cifar_fs.load()
    assert (cache / "cifar-100-python.tar.gz").read_bytes() == b"another"


@pytest.mark.parametrize(
    ("classes", "changed", "message"),
    [
        (ALL[1:], {}, "images of every class of cifar_fs in CIFAR-100, got none of 'apple' (1 class is missing)"),
        (ALL, {"meta": {"fine_label_names": [*ALL, "yak"]}}, "expected equally many images per class in"),
        (ALL, {"train": {"data": np.zeros((2, 3072), np.uint8)}}, "a dictionary with 'fine_labels' in train of"),
        (
            ALL,
            {"train": Malicious(print, "run")},
            "got the function or class builtins.print; download the file again",
        ),
    ],
)
def test_an_archive_that_holds_something_else_is_refused(
    classes: list[str], changed: dict[str, Any], message: str, served: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    served(classes, **changed)
    with pytest.raises(UsageError, match=re.escape(message)):
        cifar_fs.load()
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_corrupt_archive_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "cifar-100-python.tar.gz"
    write_archive(path, ALL)
    path.write_bytes(path.read_bytes()[:20000] if content is None else content)
    with pytest.raises(UsageError, match=r"expected the archive of CIFAR-100 at .*gz, got .*; download the archive"):
        cifar100.read_archive(path)


# Checksums -------------------------------------------------------------------------------------------


def write_sums(folder: Path, *paths: Path) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(folder)}" for path in paths]
    (folder / "SHA256SUMS").write_text("\n".join(lines))


def test_a_file_with_another_checksum_is_refused(folder: Path, cache: Path) -> None:
    write_leo(folder / "leo_embeddings")
    paths = sorted(folder.rglob("*.pkl"))
    write_sums(folder, *paths)
    assert len(leo_embeddings.load().class_sizes) == 7
    damaged = bytearray(paths[0].read_bytes())
    damaged[-30] ^= 1
    paths[0].write_bytes(damaged)
    expected = rf"SHA-256 checksum \w+... of {paths[0]} .listed in {folder}/SHA256SUMS., got \w+...; copy"
    assert re.search(expected, line_of(leo_embeddings.load, cache))
    (folder / "SHA256SUMS").write_text("a word\nalone\n")
    os.utime(folder / "SHA256SUMS", ns=(1, 1))
    assert "expected a checksum and a path in each line" in line_of(leo_embeddings.load, cache)


def test_pixels_with_another_checksum_are_refused(folder: Path) -> None:
    sheets = folder / "cifar100/sheets/train"
    sheets.mkdir(parents=True)
    Image.new("RGB", (800, 768), (1, 2, 3)).save(sheets / "apple.webp", lossless=True)
    split = {"train": ["apple"], "val": [], "test": []}
    meta = {"cifar_fs": split, "fc100": split | {"val": ["yak"]}, "sha256_raw": {"apple": "0" * 64}}
    (folder / cifar100.META).write_text(json.dumps(meta))
    with pytest.raises(UsageError, match=r"checksum 0{16}... of the pixels of .*apple.webp .*, got \w+...; copy"):
        cifar_fs.load()
    pixels = np.tile(np.array([1, 2, 3], np.uint8), 600 * 32 * 32).tobytes()
    meta["sha256_raw"] = {"apple": hashlib.sha256(pixels).hexdigest()}
    (folder / cifar100.META).write_text(json.dumps(meta))
    assert cifar_fs.load().class_names == ["apple"]
    with pytest.raises(UsageError, match="got none of 'yak'"):
        fc100.load()
    (folder / cifar100.META).write_text("{}")
    with pytest.raises(UsageError, match=r"expected the class splits of CIFAR-100 in .*; copy the file again"):
        cifar_fs.load()


# What is wrong is named ------------------------------------------------------------------------------


def test_what_is_missing_is_named(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = {"mini_imagenet": mini_imagenet, "tiered_imagenet": tiered_imagenet, "leo_embeddings": leo_embeddings}
    for name, source in loads.items():
        assert re.search(rf"expected a folder .*{name}, not found; (put|unpack) ", line_of(source.load, cache))
        (folder / name).mkdir()
        assert re.search(r", got none; (put|unpack) ", line_of(source.load, cache))
    monkeypatch.delenv("METABAYES_DATA")
    for name, source in loads.items():
        assert f"to name a folder with {name}/, but METABAYES_DATA is not set; " in line_of(source.load, cache)


def changed_pickle(write: Callable[[Path], None], name: str, **changed: Any) -> Callable[[Path], None]:
    """A function that writes the data set, with some entries of one of its pickles replaced."""

    def change(folder: Path) -> None:
        write(folder)
        (path,) = folder.rglob(name)
        content = pickle.loads(path.read_bytes())  # what this test has written
        dump(path, {**content, **changed} if isinstance(content, dict) else changed["list"])

    return change


MIXED = [np.zeros((84, 84, 3), np.uint8), np.zeros((84, 80, 3), np.uint8)]
PNG = [np.frombuffer(png(image), np.uint8) for image in MIXED]
CACHE, CATEGORY = "mini-imagenet-cache-val.pkl", "miniImageNet_category_split_val.pickle"
LEO, TIERED = "val_embeddings.pkl", "val_labels.pkl"
packed, unpacked = functools.partial(write_tiered, packed=True), functools.partial(write_tiered, packed=False)
KEYS = [f"{row}-n{row % 2}-n{row % 2}_{row}" for row in range(6)]
WRONG: dict[str, tuple[Any, Callable[[Path], None], str]] = {
    "mixed sizes": (
        mini_imagenet,
        changed_pickle(write_cache, CACHE, image_data=MIXED),
        "only images of 84 x 84 x 3 in .*, got .84, 80, 3., .84, 84, 3.; download the file again",
    ),
    "mixed sizes, packed": (
        tiered_imagenet,
        changed_pickle(packed, "val_images_png.pkl", list=PNG * 3),
        "only images of 84 x 84 pixels in .*, got 80 x 84 pixels in item 3; download",
    ),
    "not bytes": (
        mini_imagenet,
        changed_pickle(write_category, CATEGORY, data=np.zeros((6, 84, 84, 3))),
        "images of type uint8 in .*, got float64; download",
    ),
    "an absent class": (
        mini_imagenet,
        changed_pickle(write_cache, CACHE, class_dict={"n10": [0, 1], "n11": [2, 9]}),
        "row numbers of image_data, 0 to 5, for each class of class_dict in .*, got other values for class 'n11'; copy",
    ),
    "a class in two splits": (
        mini_imagenet,
        changed_pickle(write_cache, CACHE, class_dict={"n10": [0, 1], "n20": [2, 3]}),
        "each class in one split of mini_imagenet, got 'n20' in val and test .*; keep each class",
    ),
    "rows of another form": (
        mini_imagenet,
        changed_pickle(write_cache, CACHE, class_dict={"n10": [[0], [1, 2]]}),
        "expected an array, or a list of numbers or strings, in class_dict of .*cache-val.pkl, got .* list",
    ),
    "labels that are missing": (
        tiered_imagenet,
        changed_pickle(packed, TIERED, label_specific=np.zeros(5, int)),
        "one integer label for each of the 6 images in .*, got int64 of shape .5.; download",
    ),
    "names that are missing": (
        tiered_imagenet,
        changed_pickle(unpacked, TIERED, label_specific_str=["n10"]),
        "for every class in .*, got 1 names and class number 1; download",
    ),
    "no images": (
        mini_imagenet,
        changed_pickle(write_category, CATEGORY, data=np.zeros((0, 84, 84, 3), np.uint8), labels=np.zeros(0, int)),
        "expected at least one input in mini_imagenet val, got none; add data",
    ),
    "no PNG": (
        tiered_imagenet,
        changed_pickle(packed, "val_images_png.pkl", list=[b"none"] * 6),
        "PNG files in .*, got another object as item 3 .the file is not an image.; copy the file again",
    ),
    "keys of another form": (
        leo_embeddings,
        changed_pickle(write_leo, LEO, keys=["0-n10_0"] * 6),
        "keys <number>-<class>-<class>_<image> in .*, got '0-n10_0'; unpack",
    ),
    "embeddings that are NaN": (
        leo_embeddings,
        changed_pickle(write_leo, LEO, embeddings=np.full((6, 4), np.nan)),
        "finite embeddings in .*, got NaN or infinity in 6 rows; unpack",
    ),
    "too few embeddings": (
        leo_embeddings,
        changed_pickle(write_leo, LEO, embeddings=np.zeros((5, 4))),
        "one key per row in .*, got float64 of shape .5, 4. and 6 keys; unpack",
    ),
    "embeddings of another width": (
        leo_embeddings,
        changed_pickle(write_leo, LEO, embeddings=np.ones((6, 5), np.float32), keys=KEYS),
        "one shape in all splits of leo_embeddings, got .4. in train, .5. in val, .4. in test; use",
    ),
    "code": (
        leo_embeddings,
        changed_pickle(write_leo, LEO, labels=Malicious(print, "run")),
        "numbers in .*val_embeddings.pkl, got the function or class builtins.print; download the file again",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_in_a_pickle_is_named(
    what: str, folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, write, message = WRONG[what]
    write(folder / source.__name__.rpartition(".")[2])
    assert re.search(message, line_of(source.load, cache))
    assert "run" not in capsys.readouterr().out


def test_a_corrupt_archive_of_images_is_named(folder: Path, cache: Path) -> None:
    write_tiered(folder / "tiered_imagenet", packed=False)
    path = folder / "tiered_imagenet/val_images.npz"
    path.write_bytes(path.read_bytes()[:-100])
    assert re.search("an .npz file, got .*val_images.npz: .*; download", line_of(tiered_imagenet.load, cache))


def test_what_is_wrong_with_a_table_is_named(folder: Path, cache: Path) -> None:
    write_table(folder / "mini_imagenet")
    table = folder / "mini_imagenet/val.csv"
    whole = table.read_text()
    table.write_text(whole.replace("n10000", "n99000"))
    assert "found no " in (line := line_of(mini_imagenet.load, cache)) and "(3 of 6 are missing); add these" in line
    for content in ("", "name,class\n", "filename,label\na,b,c\n", "\0\udcff"):
        table.write_bytes(content.encode(errors="surrogateescape"))
        assert "expected the header filename,label" in line_of(mini_imagenet.load, cache)
    table.write_text(whole)
    (folder / "mini_imagenet/images/n1000000000.jpg").write_bytes(b"none")
    assert "got 1 of 6 that cannot be read: " in line_of(mini_imagenet.load, cache)


def test_what_is_wrong_with_folders_is_named(tmp_path: Path, cache: Path) -> None:
    mine = tmp_path / "mine"
    write_folder(mine)

    def line(**settings: int) -> str:
        return line_of(lambda: image_folder.load(str(mine), **{"size": 24, **settings}), cache)

    assert "data.size >= 1 and data.channels 1 or 3, got data.size=24 and data.channels=2" in line(channels=2)
    whole = (mine / "val/n10/0.PNG").read_bytes()
    for index, content in enumerate((b"", b"none", whole[:50])):
        (mine / f"val/n10/{index}.PNG").write_bytes(content)
    Image.fromarray(np.zeros((3, 3), np.int32)).save(mine / "val/n11/0.PNG", "TIFF")
    assert re.search(r"got 4 of 6 that cannot be read: .*n10/0.PNG .*n10/1.PNG .*n10/2.PNG .* and 1 more; fix", line())
    shutil.copytree(mine / "train/n01", mine / "test/n01")
    assert re.search("in one split of .*mine, got 'n01' in train and test .*split=rows to divide the rows", line())
    (mine / "test/empty").mkdir()
    shutil.rmtree(mine / "test/n01")
    assert re.search("images in the folder of a class, got none in .*test/empty; add files that end in .bmp", line())
    shutil.rmtree(mine / "test")
    assert re.search("a folder .*test, got none; .*mine must contain train/, val/ and", line())
    (mine / "test").mkdir()
    assert re.search("expected classes in every split of .*, got none in test ", line())
    with pytest.raises(UsageError, match=r"expected a folder of images, got ''; set data.path to a folder with train/"):
        image_folder.load()


def test_a_list_that_names_an_absent_class_is_refused(tmp_path: Path, cache: Path) -> None:
    mine = tmp_path / "mine"
    write_folder(mine, listed=True)
    (mine / "val.txt").write_text("n10\nyak\n")
    load = functools.partial(image_folder.load, str(mine), size=24)
    assert re.search(
        r"every class that .*val.txt names, got none for 'yak' .1 of 2 are missing.; fix", line_of(load, cache)
    )
    (mine / "val.txt").unlink()
    assert re.search("the val classes in .*val.txt, got no such file; create it", line_of(load, cache))


@pytest.mark.parametrize("source", [mini_imagenet, tiered_imagenet])
def test_a_size_that_the_images_do_not_have_is_refused(source: Any, cache: Path) -> None:
    assert "expected data.size from 1 to 84, the side of the published images, got 96" in line_of(
        lambda: source.load(96), cache
    )


def test_leo_has_what_it_has(cache: Path) -> None:
    assert "one of miniImageNet, tieredImageNet and data.crop one of center, multiview" in line_of(
        lambda: leo_embeddings.load("imagenet"), cache
    )
