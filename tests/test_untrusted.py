"""Hostile files cannot run code, reserve memory for claimed sizes, or reach paths outside their folder."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.build import build
from pyro_metabayes.data.sources import cifar100, features, image_folder, mini_imagenet
from pyro_metabayes.data.sources.images import all_pixels, pixels
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.unpickle import flat_array, read_arrays
from tests.commands import call
from tests.fuzzing import LAUGHS
from tests.pairs import Pair
from tests.test_fuzz import megabytes

pytestmark = pytest.mark.usefixtures("empty_folder")


# ---------------------------------------------------------------- code


@pytest.mark.parametrize(
    "target",
    [
        "models.leo.partial",
        "pyro_metabayes.storage.checkpoint.Path",
        "pyro_metabayes.storage.checkpoint.os",
        "models..heads",
        "models.",
    ],
)
def test_a_checkpoint_builds_only_what_the_modules_define(target: str) -> None:
    """Not what they import: functools.partial would call any function."""
    with pytest.raises(UsageError, match=r"a class or function defined in|in an existing module|existing class"):
        build({"_target_": target}, "guide")


def test_an_image_is_not_handed_to_another_program() -> None:
    """Pillow itself would start Ghostscript for PostScript, whatever the name of the file."""
    Path("it.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with Image.open("it.png") as image:
        assert image.format == "EPS", "Pillow does not take it for PostScript: the test shows nothing"
    with pytest.raises(UsageError, match=r"it\.png \(the file is not an image\)"):
        list(all_pixels([Path("it.png")], 8))


# ---------------------------------------------------------------- room


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r\xff\xff\xff\x3f.",  # the object of the number 2^30, of which C's unpickler makes a table
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",  # a string of 2^40 bytes
        b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"x.",  # a frame of as many
        b"\x80\x05\x96" + (2**31).to_bytes(8, "little") + b"x.",  # a bytearray of 2^31 bytes
        b"c__builtin__\nbytearray\n(I9999999999\ntR.",
        b"c__builtin__\nbytes\n(I9999999999\ntR.",
    ],
)
def test_a_pickle_gets_no_room_for_what_it_claims(content: bytes) -> None:
    before = megabytes()
    with pytest.raises(UsageError) if b"]r" not in content else pytest.MonkeyPatch.context():
        read_arrays(io.BytesIO(content), "it")
    assert megabytes() - before < 50


def test_a_key_that_repeats_itself_is_refused() -> None:
    """Its hash would take 2^60 steps."""
    content = b"\x80\x02}(K\x01" + 60 * b"2\x86" + b"K\x01u."  # a pair of pairs of pairs ... of ones: a one
    started = time.monotonic()
    with pytest.raises(UsageError, match="nested too deeply"):
        read_arrays(io.BytesIO(content), "it")
    assert time.monotonic() - started < 5


def test_lists_that_repeat_each_other_are_not_written_out() -> None:
    with pytest.raises(
        UsageError, match=r"expected an array, or a list of numbers or strings, in it, got .* type list"
    ):
        flat_array(LAUGHS, "it")


def test_an_array_that_claims_more_than_its_file_holds_is_refused() -> None:
    """numpy would make room for it first."""
    content = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 4)}
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile("it.npz", "w") as archive:
        archive.writestr("features.npy", content.getvalue())
        archive.writestr("labels.npy", content.getvalue())
    before = megabytes()
    with pytest.raises(UsageError, match=r"'features.npy' claims the shape \(1000000000, 4\) but has fewer bytes"):
        features.load("it.npz")
    assert megabytes() - before < 50


def test_an_image_of_too_many_pixels_is_refused() -> None:
    header = Image.new("1", (20_000, 10_000))
    file = io.BytesIO()
    header.save(file, "PNG")
    with pytest.raises(ValueError, match=r"20000 x 10000 pixels|too many pixels"):
        pixels(file.getvalue(), 8)


def test_a_specification_of_any_size_is_not_built() -> None:
    """Its weights are looked at first."""
    learner = Pair("savi", "conditional").learner()
    learner.save("it.pt")
    state = checkpoint.load(Path("it.pt"))
    state["learner"]["specification"]["prior"]["num_hidden"] = 10**9
    checkpoint.save(Path("it.pt"), state)
    before, started = megabytes(), time.monotonic()
    with pytest.raises(UsageError, match="expected a checkpoint of this model and guide, got another"):
        MetaLearner.load("it.pt")
    assert megabytes() - before < 50 and time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(1).expand(10**12), "claims to be larger"),
        (LAUGHS, "nested too deeply"),
        ({1.5: 2}, "keys other than"),
    ],
)
def test_values_that_are_not_plain_are_refused(value: Any, reason: str) -> None:
    torch.save({"learner": value}, "it.pt")
    with pytest.raises(UsageError, match=reason):
        checkpoint.load(Path("it.pt"))


@pytest.mark.parametrize("value", [torch.zeros(3), [], 1.0])
def test_a_checkpoint_whose_parts_are_no_parts_is_refused(value: Any) -> None:
    checkpoint.save(Path("checkpoint.pt"), {"config": value, "best": value})
    with pytest.raises(UsageError, match="expected a checkpoint with a learner at"):
        MetaLearner.load("checkpoint.pt")
    with pytest.raises(UsageError, match="got no configuration"):
        saved_config(Path("."), [])


def test_a_compressed_checkpoint_is_refused() -> None:
    """Of zeros it could make a thousand times as many."""
    checkpoint.save(Path("it.pt"), {"zeros": torch.zeros(100_000)})
    with zipfile.ZipFile("it.pt") as whole, zipfile.ZipFile("small.pt", "w", zipfile.ZIP_DEFLATED) as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name))
    with pytest.raises(UsageError, match="the archive lists files that are larger than its size"):
        checkpoint.load(Path("small.pt"))


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("name", ["checkpoint.pt", "metrics.jsonl"])
def test_a_link_out_of_the_run_is_not_followed(name: str, finished: Path) -> None:
    shutil.copytree(finished, "run")
    os.rename(f"run/{name}", "elsewhere")
    Path(f"run/{name}").symlink_to(Path("elsewhere").resolve())
    before = Path("elsewhere").read_bytes()
    error = call("run", "resume=run", "train.steps=4").error
    assert (
        error == f"expected {name} inside {Path('run').resolve()}, got a link to {Path('elsewhere').resolve()}; copy "
        "the file into the folder"
    )
    assert Path("elsewhere").read_bytes() == before


def test_evaluations_stay_in_the_run(finished: Path) -> None:
    shutil.copytree(finished, "run")
    Path("elsewhere").mkdir()
    Path("run/evaluations").symlink_to(Path("elsewhere").resolve())
    assert "expected evaluations inside run, got a link to" in call("evaluate", "run", "eval.tasks=4").error
    assert not any(Path("elsewhere").iterdir())


@pytest.mark.parametrize("name", ["../secret", "/etc", "..", "a/../../secret", "a\\b", 256 * "a"])
def test_names_that_leave_their_folder_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("secret").mkdir()
    Path("images").mkdir()
    for split in ("train", "val", "test"):
        Path(f"images/{split}.txt").write_text(name)
        Path(f"images/{split}.csv").write_text(f"filename,label\n{name},a\n")
    with pytest.raises(UsageError, match=r"expected the name of a file or folder without a path in images/train\.txt"):
        image_folder.load("images")
    with pytest.raises(UsageError, match=r"expected the name of a file or folder without a path in images/train\.csv"):
        mini_imagenet._part(Path("images"), "train", 84)
    Path("cifar100").mkdir()
    splits = {split: [name] for split in ("train", "val", "test")}
    Path(cifar100.META).write_text(repr({"cifar_fs": splits}).replace("'", '"').replace("\\\\", "\\u005c"))
    monkeypatch.setenv("METABAYES_DATA", str(Path.cwd()))
    with pytest.raises(UsageError, match="expected the name of a file or folder without a path in"):
        cifar100.bank_of("cifar_fs")


def test_links_in_an_archive_are_not_followed() -> None:
    with tarfile.open("it.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("cifar-100-python/train")
        entry.type, entry.linkname = tarfile.SYMTYPE, "train"  # to itself
        archive.addfile(entry)
    with pytest.raises(UsageError, match="an archive without the file train"):
        cifar100.read_archive(Path("it.tar.gz"))


def test_a_configuration_takes_nothing_from_the_surroundings(finished: Path) -> None:
    shutil.copytree(finished, "run")
    state = checkpoint.load(Path("run/checkpoint.pt"))
    state["config"]["data"]["path"] = "${oc.env:HOME}/secret"
    checkpoint.save(Path("run/checkpoint.pt"), state)
    assert "got an error: the configuration has interpolations (${...})" in call("evaluate", "run").error


@pytest.mark.parametrize(
    "text", ["# @\nguide: {}", "# @package\n", "guide: [", "a: &a [*a]", "\0", "- 1", "a\x1b: ${b\x1b"]
)
def test_settings_that_hydra_trips_over_get_one_line(text: str) -> None:
    """Whatever kind of error it raises for them."""
    Path("mine/guide").mkdir(parents=True)
    Path("mine/guide/mine.yaml").write_text(text)
    assert call("run", "--config-dir=mine", "guide=mine").error.isprintable()


def test_a_message_is_one_line_that_says_nothing_to_the_terminal() -> None:
    assert str(UsageError("a\nb\x1b[2Jc\ud800")) == "a?b?[2Jc?"
    assert pickle.loads(pickle.dumps(UsageError("a\nb"))).args == ("a?b",)
