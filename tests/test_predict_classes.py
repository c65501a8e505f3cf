"""experiments.predict and experiments.errors on runs of classes: are the tables those of the learner, row by row?"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_metabayes import MetaLearner
from pyro_metabayes.experiments.errors.confusion import Confusion
from pyro_metabayes.experiments.errors.queries import Classified
from tests.commands import CLASSES, ROWS, WIDTH, call, ran, results_of

SMALL = ("train.steps=2", "eval.tasks=12", "train.validation_tasks=4", "task.way=3", "task.query=5")
KINDS = ["ant", "bee", "cat"]


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on features in random order, a run on images, and support and query sets of new classes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("predict"))
        noise = np.random.default_rng(0)
        centres = noise.normal(size=(CLASSES, WIDTH)).repeat(ROWS, axis=0)
        features, order = centres + 0.8 * noise.normal(size=centres.shape), noise.permutation(CLASSES * ROWS)
        names = np.array([f"kind{index:02}" for index in range(CLASSES)]).repeat(ROWS)
        np.savez("bank.npz", features=features[order].astype(np.float32), labels=names[order])
        np.savez("support.npz", features=features[:9], labels=np.repeat(KINDS, 3))
        np.save("query.npy", features[20:27])
        _draw_images(noise)
        ran("run", "guide=savi", "data=features", "data.path=bank.npz", *SMALL, "hydra.run.dir=run")
        images = ("data=image_folder", "data.path=images", "data.size=16", "backbone=conv4", "backbone.num_filters=4")
        pretraining = ("pretrain.epochs=1", "pretrain.batch_size=8")
        ran("run", "guide=proto", *images, *pretraining, *SMALL, "hydra.run.dir=of_images")
        yield folder


def _draw_images(noise: np.random.Generator) -> None:
    for split, number in (("train", 4), ("val", 3), ("test", 5)):
        for index in range(number):
            colour = noise.uniform(0, 255, size=3)
            for place in range(8):
                path = Path(f"images/{split}/{split}{index}/{place}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(colour + 60 * noise.normal(size=(10, 14, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    for name, source in {"labelled/b": "test1", "labelled/a": "test0", "new": "test1", "new/inner": "test0"}.items():
        Path(name).mkdir(parents=True, exist_ok=True)
        for place in range(2):
            Path(f"{name}/{place}.png").write_bytes(Path(f"images/test/{source}/{place}.png").read_bytes())
    Path("new/notes.txt").write_text("not an image")


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_a_table_of_arrays_is_the_prediction_of_the_learner(here: Path) -> None:
    out = ran("predict", "run", "support=support.npz", "query=query.npy", "--out", "p.csv").out
    with np.load("support.npz") as support:
        prediction = MetaLearner.load("run").predict(support["features"], np.repeat([0, 1, 2], 3), np.load("query.npy"))
    rows = rows_of("p.csv")
    assert [row["row"] for row in rows] == [str(index) for index in range(7)] and "7 predictions: p.csv" in out
    for row, p, spread in zip(rows, *prediction, strict=True):
        best = int(p.argmax())
        assert row["predicted"] == KINDS[best]
        assert [float(row[f"p({kind})"]) for kind in KINDS] == pytest.approx(p.tolist(), rel=1e-5)
        assert float(row["probability"]) == pytest.approx(p[best].item(), rel=1e-5)
        assert float(row["spread"]) == pytest.approx(spread[best].item(), rel=1e-5) and spread[best] > 0
        assert float(row["entropy"]) == pytest.approx(torch.distributions.Categorical(p).entropy().item(), rel=1e-4)
    np.savez("query.npz", features=np.load("query.npy"), labels=np.zeros(7))
    ran("predict", "run", "support=support.npz", "query=query.npz", "--out", "again.csv")
    assert Path("p.csv").read_text() == Path("again.csv").read_text()


def test_a_table_of_images_is_the_prediction_for_their_pixels(here: Path) -> None:
    outcome = ran("predict", "of_images", "support=labelled", "query=new", "--out", "i.csv")
    assert "note: left out of new: 1 file without the suffix of an image (.txt)" in outcome.err

    def pixels(*paths: str) -> np.ndarray:
        images = [Image.open(path).resize((16, 16), Image.Resampling.LANCZOS) for path in paths]
        return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])

    support = pixels("labelled/a/0.png", "labelled/a/1.png", "labelled/b/0.png", "labelled/b/1.png")
    queries = ["0.png", "1.png", "inner/0.png", "inner/1.png"]
    learner = MetaLearner.load("of_images")
    expected, _ = learner.predict(support, [0, 0, 1, 1], pixels(*(f"new/{name}" for name in queries)))
    rows = rows_of("i.csv")
    assert [row["file"] for row in rows] == queries
    got = np.array([[float(row["p(a)"]), float(row["p(b)"])] for row in rows])
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4)
    assert [row["predicted"] for row in rows] == ["ab"[int(p.argmax())] for p in expected]
    assert {row["spread"] for row in rows} == {"0"}, "a point estimate has no spread"


def wrong_files() -> None:
    noise = np.random.default_rng(1)
    x = noise.normal(size=(6, WIDTH))
    np.savez("unlabelled.npz", features=x)
    np.savez("short.npz", features=x, labels=np.arange(4))
    np.savez("numbers.npz", features=x, labels=np.arange(6) / 2)
    np.savez("one.npz", features=x, labels=np.zeros(6, dtype=int))
    np.savez("narrow.npz", features=x[:, :4], labels=np.arange(6))
    np.savez("named.npz", x=x, labels=np.arange(6))
    np.savez("words.npz", features=np.array([["a"] * WIDTH] * 6), labels=np.arange(6))
    np.save("nan.npy", np.where(np.arange(6)[:, None] == 2, np.nan, x))
    np.save("zero.npy", 0 * x)
    np.save("none.npy", x[:0])
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    Path("damaged.npz").write_bytes(b"PK nothing")
    Path("flat").mkdir(exist_ok=True)
    Path("empty").mkdir(exist_ok=True)
    Path("flat/0.png").write_bytes(Path("new/0.png").read_bytes())
    (Path("broken/a")).mkdir(parents=True, exist_ok=True)
    Path("broken/a/0.png").write_bytes(b"no image")


WRONG = {
    "run support=support.npz": "expected support=... and query=... for a run on data=features, got support=support.npz",
    "run new.csv": "for a run on data=features, got new.csv; leave out new.csv, and pass support=",
    "run support=support.npz query=query.npy labels=y": "labels=y; leave out labels=y, and pass support=",
    "run support=support.npz query=query.npy task.shot=3": "; leave out task.shot=3, and pass support=",
    "run support=nothing.npz query=query.npy": "expected a file for support=nothing.npz, found none; fix the path",
    "run support=nothing query=query.npy": "expected a folder, or a file that ends in .npz or .npy, for support=",
    "run support=unlabelled.npz query=query.npy": "expected an array 'labels' beside the inputs in unlabelled.npz, got",
    "run support=query.npy query=query.npy": "expected an array 'labels' beside the inputs in query.npy, got features",
    "run support=short.npz query=query.npy": "expected 6 labels in short.npz, integers or strings, one per input, got",
    "run support=numbers.npz query=query.npy": "expected 6 labels in numbers.npz, integers or strings, one per input",
    "run support=one.npz query=query.npy": "expected support points of at least 2 classes in one.npz, got only '0'",
    "run support=narrow.npz query=query.npy": "expected support_x of shape [N, 16], N >= 1, got [6, 4]",
    "run support=named.npz query=query.npy": "expected one array 'features' or 'images' in named.npz, got labels, x",
    "run support=words.npz query=query.npy": "expected numbers [rows, features] in words.npz, got <U1",
    "run support=support.npz query=nan.npy": "expected finite features in nan.npy, got NaN or infinity",
    "run support=support.npz query=zero.npy": "scaled to unit length in zero.npy, got 6 of 6",
    "run support=support.npz query=none.npy": "expected at least one row in none.npy, got features of shape [0, 16]",
    "run support=support.npz query=objects.npy": "expected arrays of numbers in objects.npy, got an unreadable file",
    "run support=damaged.npz query=query.npy": "expected arrays of numbers in damaged.npz, got an unreadable file",
    "run support=labelled query=new": "expected arrays [16] for a run on data=features, got images, such as labelled/",
    "of_images support=flat query=new": "expected one folder of images per class in flat, got none; sort the images",
    "of_images support=labelled query=empty": "expected images in the folder of the query set, got none in empty",
    "of_images support=broken query=new": "expected readable images, got 1 of 1 that cannot be read: broken/a/0.png",
    "of_images support=support.npz query=new/inner": "expected support_x of shape [N, 3, 16, 16], N >= 1, got [9, 16]",
    "nowhere support=support.npz query=query.npy": "got no folder nowhere; fix the path",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_inputs_that_cannot_be_predicted_are_refused(arguments: str, here: Path) -> None:
    wrong_files()
    assert WRONG[arguments] in call("predict", *arguments.split(), "--out", "refused.csv").error
    assert not Path("refused.csv").exists()


# ---------------------------------------------------------------- errors


def test_errors_of_a_run_on_features(here: Path) -> None:
    ran("errors", "run")
    counts = rows_of("run/errors/confusion.csv")
    names = [row["true class"] for row in counts]
    matrix = np.array([[int(row[name]) for name in names] for row in counts])
    assert list(counts[0]) == ["true class", *names] and matrix.sum() == 12 * 3 * 5
    shares = rows_of("run/errors/confusion_shares.csv")
    assert all(row[name] == "" or 0 <= float(row[name]) <= 1 for row in shares for name in names)
    for row, number in zip(shares, matrix, strict=True):  # a class is always among the classes of its own tasks
        assert float(row[row["true class"]]) == pytest.approx(
            number[names.index(row["true class"])] / number.sum(), abs=1e-4
        )
    errors = rows_of("run/errors/errors.csv")
    assert 0 < len(errors) <= 24
    with np.load("bank.npz") as bank:
        labels = bank["labels"]
    for row in errors:
        assert labels[int(row["input"].removeprefix("row "))] == row["true class"] != row["predicted as"]
        assert matrix[names.index(row["true class"]), names.index(row["predicted as"])] > 0
        assert 0 <= int(row["task"]) < 12 and 0 <= float(row["entropy"]) <= math.log(3)
    probabilities = [float(row["probability"]) for row in errors]
    assert probabilities == sorted(probabilities, reverse=True)
    assert Path("run/errors/confusion.png").exists() and not Path("run/errors/errors.png").exists()


def test_errors_of_a_run_on_images(here: Path) -> None:
    out = ran("errors", "of_images", "--most", "5").out
    counts = rows_of("of_images/errors/confusion.csv")
    right = sum(int(row[row["true class"]]) for row in counts)
    accuracy = results_of(Path("of_images"))["accuracy"]["mean"]
    assert right / (12 * 3 * 5) == pytest.approx(accuracy) and f"{100 * accuracy:.1f}% of them" in out
    errors = rows_of("of_images/errors/errors.csv")
    assert len(errors) == 5 and all(row["input"].startswith(f"test/{row['true class']}/") for row in errors)
    assert Path("of_images/errors/errors.png").exists()
    ran("errors", "of_images", "task.shot=2")
    assert Path("of_images/errors/task.shot=2/confusion.csv").exists()


def test_confusions_are_counted_by_hand() -> None:
    torch.manual_seed(0)
    candidates = torch.stack([torch.randperm(6)[:3] + 2 for _ in range(40)])
    true, predicted = (candidates.gather(1, torch.randint(3, (40, 1))).squeeze(1) for _ in range(2))
    zeros = torch.zeros(40)
    names = [f"c{index}" for index in range(9)]
    queries = Classified(torch.arange(40), candidates, torch.arange(40), true, predicted, zeros, zeros, zeros, names)
    confusion = Confusion.of(queries)
    assert confusion.names == [f"c{index}" for index in range(2, 8)]
    triples = list(zip(true.tolist(), predicted.tolist(), candidates.tolist(), strict=True))
    for a in range(6):
        for b in range(6):
            assert confusion.counts[a, b] == sum(t == a + 2 and p == b + 2 for t, p, _ in triples)
            assert confusion.met[a, b] == sum(t == a + 2 and b + 2 in others for t, _, others in triples)
    hardest = confusion.hardest(2)
    wrong = [sum((t == a + 2) + (p == a + 2) for t, p, _ in triples if t != p) for a in range(6)]
    assert (
        sorted(hardest.names) == sorted(f"c{a + 2}" for a in np.argsort(wrong, kind="stable")[-2:])
        or len(set(wrong)) < 6
    )


REFUSED = {
    "run task.unknown=2": "expected no task.unknown here",
    "run train.steps=3": "expected settings of task, eval or guide, got 'train.steps=3'",
    "run eval.temperature=true": "expected eval.temperature=false and no eval.ensemble",
    "run --most 0": "expected --most >= 1, got 0",
    "nowhere": "expected a checkpoint at nowhere/checkpoint.pt, got no folder nowhere; fix the path",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_errors_of_other_things_are_refused(arguments: str, here: Path) -> None:
    assert REFUSED[arguments] in call("errors", *arguments.split()).error


def test_a_run_on_numbers_has_no_classes(here: Path) -> None:
    ran("run", "guide=maml", "data=sinusoid", "train.steps=1", "eval.tasks=4", "hydra.run.dir=numbers")
    assert "expected a run on a data set of classes, got data=sinusoid" in call("errors", "numbers").error
    error = call("predict", "numbers", "support=support.npz", "query=query.npy").error
    assert error.startswith("expected a run on data=groups, or a run whose classes are those of a support set, got")
