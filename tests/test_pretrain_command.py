"""`python -m experiments.pretrain` caches a backbone for runs, and writes metrics and a plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.commands import SMALL, call, ran

THIN = ("data=glyphs", "data.images_per_class=2", "backbone.num_filters=3", "pretrain.epochs=2")

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_a_run_takes_the_backbone_that_was_pretrained(cache: Path) -> None:
    first = ran("pretrain", *THIN, "pretrain.jitter=0.2", "hydra.run.dir=out")
    report = json.loads(Path("out/pretraining.json").read_text())
    assert [line["epoch"] for line in report["curve"]] == [1, 2]
    assert all(line["cpu_seconds"] > 0 and 0 <= line["accuracy"] <= 1 for line in report["curve"])
    assert report["config"]["pretrain"]["jitter"] == 0.2 and Path(report["path"]).parent == cache / "backbones"
    weights = torch.load(report["path"], weights_only=True)["weights"]
    parameters = [value for name, value in weights.items() if "running" not in name and "num_batches" not in name]
    assert report["num_parameters"] == sum(value.numel() for value in parameters)
    assert Path("out/curve.png").read_bytes().startswith(b"\x89PNG") and "conv4" in first.out
    run = ran("run", *THIN, "pretrain.jitter=0.2", *SMALL, "task.query=1", "guide=proto", "hydra.run.dir=run")
    assert "pretrain" not in run.out


def test_a_recipe_sets_what_data_sets_do_not(cache: Path) -> None:
    """The translation in pixels stays that of the data; a setting of the command line wins over both."""
    recipe = ("pretrain=published", "pretrain.epochs=1", "pretrain.learning_rate=0.05")
    ran("pretrain", *THIN[:-1], *recipe, "hydra.run.dir=out")
    settings = json.loads(Path("out/pretraining.json").read_text())["config"]["pretrain"]
    assert (settings["schedule"], settings["batch_size"], settings["shift"]) == ("steps", 64, 2)
    assert (settings["epochs"], settings["learning_rate"]) == (1, 0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data=gaussian_features",), "expected a data set of images for pretraining, got data=gaussian_features"),
        (
            ("data=glyphs", "data.images_per_class=2", "backbone=identity"),
            "expected features [D] for backbone=identity",
        ),
        (("data=glyphs", "pretrain=best"), "unknown choice pretrain=best; "),
        (("data=glyphs", "pretrain.keep=first"), "expected pretrain.keep to be one of last, best"),
    ],
)
def test_a_mistake_is_named(arguments: tuple[str, ...], message: str) -> None:
    assert call("pretrain", *arguments).error.startswith(message)
    assert not Path("runs").exists()
