"""Training tasks of random ways, shots and numbers of queries, of one bank."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_metabayes.data.mixture.varied import MOST_PAIRS, VariedSampler
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.sources import features
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.errors import UsageError
from tests.commands import call, checkpoint_of, ran
from tests.test_data import equal, numbered

SIZES = [24, 30, 20, 25, 40, 22, 21, 28, 20, 20, 33, 20]
SIZE = 6  # tasks of one shape


def test_blocks_have_many_shapes_which_the_bank_allows() -> None:
    bank = numbered(SIZES)
    stream = TaskStream(VariedSampler(bank, SIZE).sampler("train", TaskShape()), 0, "train", block=SIZE)
    ways, shots = Counter[int](), Counter[int]()
    for block in range(60):
        tasks = stream.batch(block * SIZE, (block + 1) * SIZE)
        way, shot = tasks.num_classes, tasks.support_x.shape[1] // tasks.num_classes
        ways[way], shots[shot] = ways[way] + 1, shots[shot] + 1
        points = torch.cat((tasks.support_x, tasks.query_x), 1).squeeze(-1).sort(1).values
        assert (points.diff(dim=1) > 0).all(), "no point twice"
        assert tasks.query_x.shape[1] * way <= max(MOST_PAIRS, way * way)
        assert (torch.nn.functional.one_hot(tasks.query_y, way).sum(1) == tasks.query_x.shape[1] // way).all()
    assert min(ways) == 2 and max(ways) == len(SIZES) and len(ways) > 5 and {1, 2, 5} <= shots.keys()


def test_the_marginal_is_that_of_the_shape_and_validation_keeps_it_whole() -> None:
    bank, shape = numbered(SIZES), TaskShape(query=3, query_concentration=1.0)
    bank = replace(bank, splits=bank.splits | {"val": bank.splits["train"]})
    tasks = TaskStream(VariedSampler(bank, SIZE).sampler("train", shape), 1, "train", block=SIZE).batch(0, SIZE)
    counts = torch.nn.functional.one_hot(tasks.query_y, tasks.num_classes).sum(1)
    assert (counts.amax(1) > counts.amin(1)).any()
    fixed, own = (
        TaskStream(source.sampler("val", shape), 1, "val").batch(0, 8)
        for source in (VariedSampler(bank, SIZE), BankSampler(bank))
    )
    assert equal(fixed, own)


@pytest.mark.usefixtures("empty_folder")
def test_a_run_trains_on_them_and_records_no_range(features_file: str) -> None:
    settings = ("data=features", f"data.path={features_file}", "task.query=3", "train.steps=3", "eval.tasks=4")
    small = (*settings, "train.validation_tasks=4", "train.tasks_per_step=2", "task.vary=true", "hydra.run.dir=run")
    ran("run", "guide=amortized_em", *small)
    assert checkpoint_of(Path("run"))["best"]["trained_on"] is None
    assert "warning: " not in ran("evaluate", "run", "task.shot=2", "eval.tasks=4").err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("guide=sib",), "expected a guide for any number of classes for task.vary=true, got guide=sib"),
        (("guide=proto", "train.num_tasks=8"), "expected train.num_tasks=0"),
        (("guide=proto", "train.tasks_per_step=65"), "train.tasks_per_step <= 64"),
        (("guide=proto", "data=gaussian_features"), "expected a data set of classes without base classes"),
    ],
)
@pytest.mark.usefixtures("empty_folder")
def test_what_cannot_vary_is_one_line(features_file: str, settings: tuple[str, ...], message: str) -> None:
    of_file = () if "data=gaussian_features" in settings else ("data=features", f"data.path={features_file}")
    assert message in call("run", *of_file, "task.query=3", "task.vary=true", "train.steps=1", *settings).error


@pytest.fixture(scope="module")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bank") / "bank.npz"
    numbers = np.random.default_rng(0)
    labels = np.arange(300) % 30
    np.savez(path, features=numbers.normal(size=(300, 8)), labels=labels, split=labels % 3)
    return str(path)


# ---------------------------------------------------------------- partners in a file


def with_partners(path: Path, partner: np.ndarray) -> str:
    numbers, labels = np.random.default_rng(0), np.arange(24) % 6
    np.savez(path, features=numbers.normal(size=(24, 4)), labels=labels, split=labels % 3, partner=partner)
    return str(path)


def test_partners_of_a_file_are_never_split(tmp_path: Path) -> None:
    """Rows 0 and 6 show one object of class 0, rows 12 and 18 another, and so on."""
    rows = np.arange(24)
    partner = np.where(rows // 6 % 2 == 0, rows + 6, rows - 6)
    path = with_partners(tmp_path / "bank.npz", partner)
    bank, raw = features.load(path), np.load(path)
    tasks = TaskStream(BankSampler(bank).sampler("train", TaskShape(2, 2, 2)), 0, "train").batch(0, 32)
    unit = raw["features"] / np.linalg.norm(raw["features"], axis=1, keepdims=True)
    support, query = (
        torch.cdist(x, torch.from_numpy(unit).float()).argmin(-1) for x in (tasks.support_x, tasks.query_x)
    )
    of_support = torch.from_numpy(partner)[support]
    assert not (of_support.unsqueeze(2) == query.unsqueeze(1)).any()
    assert (of_support.unsqueeze(2) == support.unsqueeze(1)).any(2).all()


@pytest.mark.parametrize("partner", [np.arange(24) % 5, np.arange(24)[::-1], np.arange(24) + 0.5, np.arange(24) + 1])
def test_partners_that_are_none_are_one_line(tmp_path: Path, partner: np.ndarray) -> None:
    with pytest.raises(UsageError, match="expected row numbers in 'partner' of"):
        features.load(with_partners(tmp_path / "bank.npz", partner))
