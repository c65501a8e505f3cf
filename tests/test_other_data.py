"""Does an evaluation on other data use the run as it was trained: its backbone, its mean, its scales?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_metabayes import MetaLearner
from pyro_metabayes.data.sources import features, image_folder
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.pretraining import embed_bank
from tests.commands import ran, results_of, write_features
from tests.test_image_files import write_image

IMAGES = ("data=image_folder", "data.size=16", "backbone.num_filters=3", "pretrain.epochs=1", "pretrain.batch_size=4")
TASKS = ("task.way=2", "task.shot=1", "task.query=2", "train.steps=1", "eval.tasks=8", "train.validation_tasks=4")
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield


def write_folder(path: Path, seed: int) -> Path:
    """Three classes of four noise images in each split."""
    noise = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for label in range(3):
            for index in range(4):
                write_image(path / split / f"{split}{label}" / f"{index}.png", int(noise.integers(256)))
    return path


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_other_images_get_the_features_of_the_run(frozen: str, tmp_path: Path) -> None:
    one, other = write_folder(tmp_path / "one", 0), write_folder(tmp_path / "other", 1)
    ran("run", *IMAGES, f"data.path={one}", *TASKS, f"backbone.frozen={frozen}", "guide=proto", "hydra.run.dir=run")
    said = ran("evaluate", "run", f"data.path={other}")
    assert "pretrain" not in said.out + said.err
    learner = MetaLearner.load("run")
    bank = image_folder.load(str(other), size=16)
    bank = embed_bank(learner.backbone, bank, CPU) if learner.frozen else bank
    expected = evaluate(learner, bank.tasks("test", way=2, shot=1, query=2), EvalSettings(tasks=8))
    (folder,) = Path("run/evaluations").iterdir()
    assert results_of(folder)["nll"] == pytest.approx(expected.metrics["nll"], abs=1e-6)


def test_an_evaluation_does_not_pretrain_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the data of the run, with an empty cache, its scores are those of the run."""
    ran("run", *IMAGES, f"data.path={write_folder(tmp_path / 'one', 0)}", *TASKS, "guide=proto", "hydra.run.dir=run")
    monkeypatch.setenv("METABAYES_CACHE", str(tmp_path / "empty"))
    assert "pretrain" not in ran("evaluate", "run").out
    (folder,) = Path("run/evaluations").iterdir()
    assert results_of(folder)["nll"] == results_of(Path("run"))["nll"]


def test_other_features_are_centred_as_those_of_the_run(tmp_path: Path) -> None:
    one = write_features(tmp_path / "one.npz")
    shifted = np.load(one)["features"] + 3
    other = write_features(tmp_path / "other.npz", features=shifted.astype(np.float32))
    ran("run", "data=features", f"data.path={one}", "backbone.centre=true", *TASKS, "guide=proto", "hydra.run.dir=run")
    ran("evaluate", "run", f"data.path={other}")
    learner = MetaLearner.load("run")
    bank = embed_bank(learner.backbone, features.load(str(other)), CPU)
    expected = evaluate(learner, bank.tasks("test", way=2, shot=1, query=2), EvalSettings(tasks=8))
    (folder,) = Path("run/evaluations").iterdir()
    assert results_of(folder)["nll"] == pytest.approx(expected.metrics["nll"], abs=1e-6)
