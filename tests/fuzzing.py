"""Valid files of every format that the package reads, the loader of each, and functions that damage files."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hypothesis import strategies as st
from omegaconf import open_dict
from PIL import Image
from safetensors.numpy import save as safetensors_bytes

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sources import (
    cifar100,
    class_folders,
    features,
    groups,
    image_folder,
    leo_embeddings,
    mini_imagenet,
    omniglot,
    pacs,
    parts,
    tiered_imagenet,
)
from pyro_metabayes.data.sources.digit_domains import Digits
from pyro_metabayes.data.sources.parts import Part
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import Config, config_from, register, saved_config
from pyro_metabayes.experiments.runs.finished_runs import read_run
from pyro_metabayes.models.backbones.conv4 import Backbone
from pyro_metabayes.pretraining import PretrainSettings, pretrain
from pyro_metabayes.specification.parts import check_parts
from pyro_metabayes.storage import cache, checkpoint, checksums, unpickle
from pyro_metabayes.training import log as metrics
from tests.pairs import CONF, Pair
from tests.published import (
    write_archive,
    write_cache,
    write_category,
    write_digits,
    write_pacs,
    write_table,
    write_tiered,
)
from tests.test_groups import write as write_groups
from tests.test_training import SHORT, training_of

CPU = torch.device("cpu")

# ---------------------------------------------------------------- ways of being wrong

EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x40", b"\0\0\0\0\0\0\0\x7f", b"\n", b"../")
EDITS = ("cut", "flip", "set", "extreme", "drop", "repeat", "swap", "append")
byte_edits = st.lists(
    st.tuples(st.sampled_from(EDITS), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=4
)


def edited(content: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    """Damage bytes: truncate, flip bits, enlarge numbers, and leave out, repeat or exchange parts."""
    for kind, place, number in edits:
        at = place % (len(content) + 1)
        length = number % 64 + 1
        part, rest = content[at : at + length], content[at + length :]
        content = {
            "cut": content[:at],
            "flip": content[:at] + bytes(byte ^ 1 << number % 8 for byte in part[:1]) + content[at + 1 :],
            "set": content[:at] + bytes([number % 256]) + content[at + 1 :],
            "extreme": content[:at] + (its := EXTREMES[number % len(EXTREMES)]) + content[at + len(its) :],
            "drop": content[:at] + rest,
            "repeat": content[:at] + part + part + rest,
            "swap": content[:at] + rest[:length] + part + rest[length:],
            "append": content + bytes([number % 256]) * length,
        }[kind]
    return content


LAUGHS: Any = [0.0] * 10
for _ in range(8):
    LAUGHS = [LAUGHS] * 10  # 10^9 numbers, for whoever writes them out


ODD: list[Any] = [
    *(None, True, -1, 0, 3, 10**12, 2**63, 10**30, -0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        "../../etc/passwd",
        "/etc/passwd",
        "${oc.env:HOME}",
        "models.leo.partial",
        "pyro_metabayes.storage.checkpoint.Path",
    ),
    *("os.system", "models..heads", "a\nb", "\0", "train", b"", b"\xff\xfe", [], {}, [[]], [[1, 2], [3]], {"a": {}}),
    *(LAUGHS, list(range(7)), ["a", None], np.zeros((0, 3)), np.zeros((2, 3, 4), np.float32), np.array(["a", "b"])),
    *(
        np.array(3),
        np.full((4, 2), np.nan, np.float32),
        np.arange(5),
        np.array([None, 1]),
        torch.zeros(3),
        torch.ones(()),
    ),
    torch.zeros(1).expand(10**12),
]
tree_edits = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(-3, len(ODD) - 1)), min_size=1, max_size=3)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from places(item)


def lying(value: Any, edits: list[tuple[int, int]]) -> Any:
    """Replace some entries by unusual values. A few entries are left out, renamed or exchanged."""
    value = copy.deepcopy(value)
    there = list(places(value))  # of the right content: what takes its place may have no end
    for place, number in edits:
        container, key = there[place % len(there)]
        other, other_key = there[place // len(there) % len(there)]
        with contextlib.suppress(LookupError):  # an edit before this one has taken it away
            if number >= 0:
                container[key] = ODD[number]
            elif number == -1:
                del container[key]
            elif number == -2 and isinstance(container, dict):
                container[f"{key}2"] = container.pop(key)
            else:
                container[key], other[other_key] = copy.copy(other[other_key]), copy.copy(container[key])
    return value


# ---------------------------------------------------------------- formats


@dataclass(frozen=True)
class Format:
    """A file format: how to write a valid folder, which file is damaged, and how the folder is read.

    file: name of the damaged file in the folder, or a pattern.
    content, dump: value of the file, and the function that writes it; without them, bytes of the file are damaged.
    """

    lay_out: Callable[[Path], None]
    file: str
    load: Callable[[Path], Any]
    content: Callable[[Path], Any] | None = None
    dump: Callable[[Any], bytes] = bytes


def all_of(part: Part) -> None:
    rows = parts._read(part, "it")
    taken = sum(np.asarray(row).size >= 0 for row in rows.inputs)
    assert taken == sum(rows.class_sizes.values())


def torch_bytes(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Arrays as .npz bytes. Lists and tensors are left out, since numpy might expand one to 10^9 numbers."""
    file = io.BytesIO()
    kept = {str(name): its for name, its in arrays.items() if not isinstance(its, list | torch.Tensor)}
    np.savez_compressed(file, **kept)
    return file.getvalue()


def loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def unpickled(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


ARRAYS = {
    "features": np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32),
    "labels": np.arange(10).repeat(3),
    "split": np.array([0] * 18 + [1] * 6 + [2] * 6),
}
CONTENT = {
    "data": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "labels": list(range(300)),
    "names": ["a", b"b"],
    "n": 1.5,
}


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None  # type: ignore[func-returns-value]


def image_bytes(kind: str) -> bytes:
    file = io.BytesIO()
    ramp = np.arange(24 * 20 * 3, dtype=np.uint16).astype(np.uint8).reshape(24, 20, 3)
    Image.fromarray(ramp).save(file, kind)
    return file.getvalue()


def save_learner(folder: Path) -> None:
    Pair("sib", settings={"num_steps": 1}).learner(seed=0).save(folder / "checkpoint.pt")


def listed(folder: Path) -> None:
    for split, names in {"train": "ab", "val": "cd", "test": "ef"}.items():
        (folder / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            (folder / name).mkdir()
            (folder / name / "0.png").write_bytes(image_bytes("PNG"))


def npz_of_drawings(folder: Path) -> None:
    arrays = {
        "images": np.zeros((3, 2, 28, 28), np.uint8),
        "alphabet": np.array(["a"] * 3),
        "character": np.array(["1", "2", "3"]),
    }
    (folder / "omniglot").mkdir()
    np.savez(folder / "omniglot" / "omniglot_28.npz", **arrays)  # type: ignore[arg-type]


def converted(folder: Path) -> None:
    np.save(folder / "part.npy", np.zeros((5, 2), np.float32))
    (folder / "part.json").write_text('{"a": 2, "b": 3}')


def mapped(folder: Path) -> None:
    (folder / "bank").mkdir()
    for name, array in ARRAYS.items():
        np.save(folder / "bank" / f"{name}.npy", array)


def summed(folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    (folder / checksums.LIST).write_text("2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881  file\n" * 3)


def finished_run(folder: Path) -> None:
    """Write the files of a run that comparisons read, with settings that no other run has."""
    results = {name: 1 for name in ("way", "shot", "query", "tasks", "seed", "steps")} | {"config": {"guide": {"a": 1}}}
    results |= dict.fromkeys(
        ("guide", "data", "split", "ece", "elbo", "kl", "logit_sd", "collapsed", "transductive"), None
    )
    (folder / "results.json").write_text(json.dumps(results))
    np.savez_compressed(folder / "tasks.npz", nll=np.ones(4, np.float32), joint_nll=np.ones(4, np.float32))


def logged(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(9)))


LEO = "embeddings/miniImageNet/center/train_embeddings.pkl"
LEO_CONTENT = {"embeddings": np.zeros((2, 3), np.float32), "keys": ["1-a-a_1", "2-b-b_1"]}


def write_leo_small(folder: Path) -> None:
    (folder / LEO).parent.mkdir(parents=True)
    (folder / LEO).write_bytes(pickle.dumps(LEO_CONTENT, 2))


def save_interrupted(folder: Path) -> None:
    training_of(folder, settings=replace(SHORT, steps=1)).run()


def answered(task: Callable[[], Any]) -> Any:
    """The result of a command, or the one-line message with which it ends."""
    made: list[Any] = []
    try:
        run_program(lambda: made.append(task()))
    except SystemExit as refused:
        assert str(refused).isprintable()
        raise UsageError(str(refused)) from None
    return made[0]


def composed_of(folder: Path, overrides: Sequence[str] = ("data=gaussian_features",)) -> Config:
    """The default configuration, from YAML files in the folder."""
    register()
    with initialize_config_dir(str(folder / "conf"), version_base="1.3"):
        composed = compose("config", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(composed)  # the names of the choices stand there
        with open_dict(composed):
            del composed["hydra"]
        config = config_from(composed)
    check_parts(config.specification())
    return config


def overrides_of(folder: Path) -> list[str]:
    """Settings as typed in a shell, one per line."""
    return (folder / "overrides").read_text(errors="surrogateescape").split("\n")


def pretrained_in(folder: Path) -> None:
    """Read a pretrained backbone from the cache, or pretrain it if the cache does not have it."""
    images = torch.arange(4 * 8 * 256).remainder(251).to(torch.uint8).reshape(32, 1, 16, 16)
    ids = torch.arange(4)
    bank = Bank(images, torch.full((4,), 8), {"train": ids, "val": ids[:0], "test": ids[:0]}, ["a", "b", "c", "d"])
    settings = PretrainSettings(epochs=1, batch_size=16)
    pretrain(Backbone((1, 16, 16), 2), {"_target_": "models.backbones.conv4.Backbone"}, bank, settings, CPU)


def digits_of(folder: Path) -> None:
    """Read a domain of digits, and photographs."""
    files = {"usps": folder / "digits/usps_16.npz", "photographs": folder / "digits/bsds500_train_jpg.zip"}
    digits = Digits(files, 8, {"train": 100, "val": 20, "test": 20}, seed=0)
    all_of(Part([files["usps"]], lambda: digits.rows("train", ["usps"])))
    assert all(photograph.ndim == 3 for photograph in digits.photographs("train"))


def copy_conf(folder: Path) -> None:
    shutil.copytree(CONF, folder / "conf")


def override_conf(folder: Path) -> None:
    copy_conf(folder)
    (folder / "overrides").write_text(
        "data=gaussian_features\nguide=sib\ntask.shot=5\ntrain.kl_weight={start: 1e-6, end: 1.0, steps: 9}\nseed=1\n"
        "guide.step_size=1e-3\n+train.learning_rates.prior=0.1\n~choices.data\nhydra.run.dir='runs/a b'"
    )


def override_saved(folder: Path) -> None:
    save_configuration(folder)
    (folder / "overrides").write_text("eval.tasks=100\nguide.num_steps=0\ntask.way=20\neval.split=val\nseed=2")


def save_configuration(folder: Path) -> None:
    copy_conf(folder)
    checkpoint.save(folder / "checkpoint.pt", {"config": asdict(composed_of(folder))})


def lying_pickle(
    lay_out: Callable[[Path], None],
    file: str,
    part: Callable[[Path], Part],
    content: Callable[[Path], Any] = unpickled,
) -> Format:
    """A pickle of a published format with false content, read as part of its data source."""
    return Format(lay_out, file, lambda folder: all_of(part(folder)), content, pickle.dumps)


FORMATS: dict[str, Format] = {
    "checkpoint": Format(save_learner, "checkpoint.pt", lambda folder: MetaLearner.load(folder / "checkpoint.pt")),
    "npz": Format(write("it.npz", npz_bytes(ARRAYS)), "it.npz", lambda folder: features.load(str(folder / "it.npz"))),
    **{
        f"mapped {name}": Format(mapped, f"bank/{name}.npy", lambda folder: features.load(str(folder / "bank")))
        for name in ("features", "labels")
    },
    "safetensors": Format(
        write("it.safetensors", safetensors_bytes(ARRAYS)),
        "it.safetensors",
        lambda folder: features.load(str(folder / "it.safetensors")),
    ),
    **{
        f"pickle {protocol}": Format(
            write("it.pkl", pickle.dumps(CONTENT, protocol)),
            "it.pkl",
            lambda folder: unpickle.load_arrays(folder / "it.pkl"),
        )
        for protocol in (0, 2, 5)
    },
    **{
        f"image {kind}": Format(write("it", image_bytes(kind)), "it", lambda folder: pixels_of(folder / "it"))
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
    },
    "csv": Format(partial(write_table, side=8), "train.csv", lambda folder: mini_imagenet._part(folder, "train", 8)),
    "class list": Format(listed, "train.txt", lambda folder: class_folders.classes_of(folder)),
    "pacs list": Format(write_pacs, "photo_train_kfold.txt", lambda folder: pacs.files_of(folder, "photo", "train")),
    "groups": Format(
        lambda folder: write_groups(folder / "it.csv") and None,  # type: ignore[func-returns-value]
        "it.csv",
        lambda folder: groups.load("who", "y", ["a", "b"], path=str(folder / "it.csv")),
    ),
    "digits": Format(lambda folder: write_digits(folder / "digits"), "digits/usps_16.npz", digits_of),
    "photographs": Format(lambda folder: write_digits(folder / "digits"), "digits/bsds500_train_jpg.zip", digits_of),
    "archive": Format(
        lambda folder: write_archive(folder / "it.tar.gz", ["a", "b"]) and None,  # type: ignore[func-returns-value]
        "it.tar.gz",
        lambda folder: cifar100.read_archive(folder / "it.tar.gz"),
    ),
    "omniglot": Format(npz_of_drawings, "omniglot/omniglot_28.npz", lambda folder: omniglot._from_file()),
    "converted": Format(converted, "part.npy", lambda folder: parts._classes(folder / "part.npy")),
    "converted classes": Format(converted, "part.json", lambda folder: parts._classes(folder / "part.npy")),
    "cached": Format(write("it.npz", npz_bytes(ARRAYS)), "it.npz", lambda folder: cache._read(folder / "it.npz")),
    "checksums": Format(summed, checksums.LIST, lambda folder: checksums.verify(folder / "file")),
    "results": Format(finished_run, "results.json", read_run),
    "task scores": Format(finished_run, "tasks.npz", read_run),
    "metrics": Format(logged, "metrics.jsonl", lambda folder: metrics.truncate_after(folder / "metrics.jsonl", 5)),
    "yaml": Format(copy_conf, "conf/guide/sib.yaml", lambda folder: answered(lambda: composed_of(folder))),
    "settings of a run": Format(
        override_conf, "overrides", lambda folder: answered(lambda: composed_of(folder, overrides_of(folder)))
    ),
    "settings of an evaluation": Format(
        override_saved, "overrides", lambda folder: answered(lambda: saved_config(folder, overrides_of(folder)))
    ),
    # Whole files whose content lies.
    "lying training state": Format(
        save_interrupted,
        "checkpoint.pt",
        lambda folder: training_of(folder)._begin(),
        loaded,
        torch_bytes,
    ),
    "lying configuration": Format(
        save_configuration,
        "checkpoint.pt",
        lambda folder: saved_config(folder, []),
        loaded,
        torch_bytes,
    ),
    "lying checkpoint": Format(
        save_learner,
        "checkpoint.pt",
        lambda folder: MetaLearner.load(folder / "checkpoint.pt"),
        loaded,
        torch_bytes,
    ),
    "lying pretrained backbone": Format(
        pretrained_in, f"cache/backbones/conv4-{16 * '?'}.pt", pretrained_in, loaded, torch_bytes
    ),
    "lying cached features": Format(
        pretrained_in, "cache/backbones/*.features0.pt", pretrained_in, loaded, torch_bytes
    ),
    "lying npz": Format(
        write("it.npz", b""),
        "it.npz",
        lambda folder: features.load(str(folder / "it.npz")),
        lambda path: ARRAYS,
        npz_bytes,
    ),
    "lying leo": lying_pickle(
        write_leo_small, LEO, lambda folder: leo_embeddings._part(folder / LEO), lambda _: LEO_CONTENT
    ),
    "lying mini-imagenet cache": lying_pickle(
        write_cache, mini_imagenet.CACHE.format("train"), lambda folder: mini_imagenet._part(folder, "train", 8)
    ),
    "lying mini-imagenet split": lying_pickle(
        write_category, mini_imagenet.CATEGORY.format("val"), lambda folder: mini_imagenet._part(folder, "val", 8)
    ),
    **{
        f"lying tiered {what}": lying_pickle(
            lambda folder: write_tiered(folder / "it", True),
            f"it/val_{file}.pkl",
            lambda folder: tiered_imagenet._part(folder / "it", "val", 8),
        )
        for what, file in (("images", "images_png"), ("labels", "labels"))
    },
}


def pixels_of(path: Path) -> None:
    for _ in image_folder.all_pixels([path], 8):
        pass
