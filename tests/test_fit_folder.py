"""`fit` continues the training of its folder, and refuses a folder with another training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from pyro_metabayes import Bank, MetaLearner, UsageError, fit
from pyro_metabayes.errors import Interrupted
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.storage.lock import alone_in
from tests.test_fit import SPLITS, Squares, differing, interrupting, refuses, weights_of

LEARNER = {"guide": {"_target_": "guides.mean_field.Guide", "scale": 0.1}, "prior": "gaussian"}
SHAPE = {"way": 2, "shot": 1, "query": 2, "seed": 0}
RATES = {"lr": 1e-4, "momentum": 0.9}
TRAINING = {"steps": 4, "batch_size": 2, "validate_every": 2, "log_every": 2, "validation_tasks": 4}


def transformed(image: torch.Tensor) -> torch.Tensor:
    return image.float() / 255


def trained(folder: Path, steps: int = 4, splits: Any = SPLITS, transform: Any = transformed, **changed: Any) -> Any:
    """Train in the folder, with changed arguments of the learner, tasks, optimiser or `fit`."""
    learner_, shape, rates, training, clipping = (
        {name: changed.get(name, value) for name, value in defaults.items()}
        for defaults in (
            LEARNER,
            SHAPE,
            RATES,
            TRAINING | {"kl_weight": 1.0, "accumulate": 1, "callbacks": (), "on_nan": "stop"},
            {"clip": 0.0, "clip_value": 0.0, "clip_each": 0.0},
        )
    )
    torch.manual_seed(0)
    bank = Bank.from_dataset(Squares(transform), splits)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
    learner = MetaLearner.build(module, objective="elbo", input_shape=[1, 4, 4], num_classes=2, **learner_)
    val = bank.tasks("val", **{**shape, "seed": changed.get("val_seed", 0)})
    optimiser = SGD(learner.parameters(), **rates)
    scheduler = OneCycleLR(optimiser, changed["max_lr"], total_steps=8) if "max_lr" in changed else None
    training |= clipping | {"optimiser": optimiser, "scheduler": scheduler, "steps": steps}
    train = bank.tasks("train", **shape)
    return learner, fit(learner, train, val, folder=folder, **training)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    trained(folder)
    return folder


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"kl_weight": 0.5}, "kl_weight=0.5"),
        ({"batch_size": 4}, "batch_size=4"),
        ({"accumulate": 2}, "accumulate=2"),
        ({"clip": 1.0}, "clip=1.0"),
        ({"clip_value": 1.0}, "clip_value=1.0"),
        ({"clip_each": 1.0}, "clip_each=1.0"),
        ({"on_nan": "skip"}, "on_nan=skip"),
        ({"kl_weight": {"start": 0.1, "end": 1.0, "steps": 2}}, "kl_weight={'start': 0.1"),
        ({"validate_every": 4}, "validate_every=4"),
        ({"validation_tasks": 6}, "validation_tasks=6"),
        ({"guide": {"_target_": "guides.mean_field.Guide", "scale": 0.2}}, "guide="),
        ({"shot": 2}, "train tasks .* got tasks with another support_x"),
        ({"query": 3}, "train tasks .* got tasks with another query_x"),
        ({"seed": 1}, "train tasks .* got tasks with another support_x"),
        ({"val_seed": 1}, "val tasks .* got tasks with another support_x"),
        ({"transform": lambda image: image.float() / 100}, "train tasks .* got tasks with another support_x"),
        (
            {"splits": SPLITS | {"train": [0, 1, 2, 3], "val": [4, 5]}},
            "train tasks .* got tasks with another support_x",
        ),
        ({"lr": 2e-4}, "lr=0.0002"),
        ({"momentum": 0.5}, "momentum=0.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_another_training_is_refused(changed: dict[str, Any], name: str, finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with refuses(rf"^expected .*{name}.*; .*$"):
        trained(finished, **changed)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_frozen_backbone_and_the_folder_of_a_command_are_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    state["config"]["fit"]["frozen"] = True
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    with refuses(r"^expected frozen=True, as in the training in .*, got frozen=False; .*$"):
        trained(tmp_path)
    checkpoint.save(tmp_path / "checkpoint.pt", state | {"config": {"task": {"way": 5}}})
    with refuses(
        r"^expected the folder of a training by fit, got the folder .* of a command; continue that run with .*$"
    ):
        trained(tmp_path)


def test_the_folder_of_an_earlier_version_is_continued(finished: Path, tmp_path: Path) -> None:
    """It recorded fewer settings; the present defaults are what it trained with."""
    state = checkpoint.load(finished / "checkpoint.pt")
    for name in ("clip_value", "clip_each", "on_nan", "seed"):
        del state["config"]["fit"][name]
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    with refuses(r"^expected on_nan=stop, as in the training in .*, got on_nan=skip; .*$"):
        trained(tmp_path, steps=6, on_nan="skip")
    assert trained(tmp_path, steps=6)[1].steps == 6


def test_a_finished_training_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, history = trained(tmp_path)
    assert "already finished" not in capsys.readouterr().err
    _, again = trained(tmp_path)
    assert again.lines == history.lines
    assert f"note: the training in {tmp_path} had already finished after 4 steps" in capsys.readouterr().err
    assert trained(tmp_path, steps=6)[1].steps == 6, "with more steps it goes on"
    with refuses(r"^expected steps >= 6, the number of steps already taken in .*, got steps=5; increase steps$"):
        trained(tmp_path, steps=5)


def test_objects_of_the_interrupted_training_continue_it_too(tmp_path: Path) -> None:
    """As in a notebook, whose cell is run again: optimiser and scheduler have moved on."""
    bank = Bank.from_dataset(Squares(transformed), SPLITS)
    train, val = (bank.tasks(split, **SHAPE) for split in ("train", "val"))

    def run(folder: Path, callback: Callable[[Any], None]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
        learner = MetaLearner.build(
            module, "proto", prior="flat", objective="elbo", input_shape=[1, 4, 4], num_classes=2
        )
        optimiser = SGD(learner.parameters(), lr=0.1, momentum=0.9)
        scheduler = OneCycleLR(optimiser, 0.3, total_steps=9)
        others = {"optimiser": optimiser, "scheduler": scheduler, "folder": folder, **TRAINING, "steps": 8}
        for callbacks in ([callback], [callback]):
            try:
                fit(learner, train, val, callbacks=callbacks, **others)
            except Interrupted:
                continue
        return weights_of(learner)

    whole = run(tmp_path / "whole", lambda line: None)
    assert differing(run(tmp_path / "part", interrupting(4)), whole) == []


def test_a_scheduler_with_other_options_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, max_lr=1e-3)
    trained(tmp_path, steps=6, max_lr=1e-3)
    with refuses(r"^expected the optimiser and scheduler of the interrupted training, with .*=.*, got .*; .*$"):
        trained(tmp_path, steps=8, max_lr=2e-3)


def test_augmentation_by_numbers_of_numpy_can_be_continued(tmp_path: Path) -> None:
    """Its tasks do not repeat, so only their shapes and labels are compared."""
    numbers = np.random.default_rng(0)

    def noisy(image: torch.Tensor) -> torch.Tensor:
        return image.float() / 255 + float(numbers.normal())

    trained(tmp_path, transform=noisy)
    assert trained(tmp_path, steps=6, transform=noisy)[1].steps == 6
    with refuses(r"^expected the train tasks .*$"):
        trained(tmp_path, steps=6, transform=noisy, shot=2)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        alone_in(tmp_path, ""),
        refuses(r"^expected a folder that no other process uses, .*; wait until .* has ended, or pass .*$"),
    ):
        trained(tmp_path)
    trained(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_a_refused_training_leaves_no_folder(tmp_path: Path) -> None:
    for changed in ({"shot": 50}, {"way": 3}):
        with pytest.raises(UsageError):
            trained(tmp_path / "new/folder", **changed)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with refuses(r"^expected to create the folder .*, got: .*; pass another folder$"):
            trained(folder)
