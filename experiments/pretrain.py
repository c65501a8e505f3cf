"""python -m experiments.pretrain data=cifar_fs pretrain=strong: pretrain the backbone for runs with these settings.

`experiments.run` also pretrains the backbone if it is not in the cache. An interrupted pretraining continues after its
last finished epoch. The command writes curve.png and pretraining.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from pyro_metabayes.build import build, check
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.device import device_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.choices import naming_choices
from pyro_metabayes.experiments.cli.command import keep_settings, run_command
from pyro_metabayes.experiments.cli.config import Config, config_from
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.runs.plots import legend_below, new_figure, save_figure
from pyro_metabayes.experiments.runs.results import commit, versions
from pyro_metabayes.pretraining import PretrainedFeatures, PrototypeScore, pretrain
from pyro_metabayes.storage.checkpoint import write_atomically

SHOTS = (1, 5)  # numbers of shots of the 5-way validation tasks that class means classify


def bank_of(config: Config) -> Bank:
    """Return the data set of images that `data=` names.

    Raises:
        UsageError: the source does not provide images with classes.
    """
    check(config.source(), "data", ())
    data = build(config.source(), "data")
    if not isinstance(data, Bank) or data.inputs.dim() != 4:
        name = config.choices.get("data")
        raise UsageError(
            f"expected a data set of images for pretraining, got data={name}; take data such as data=glyphs"
        )
    return data


def main(composed: DictConfig, folder: Path) -> None:
    config = config_from(composed)
    keep_settings(composed, folder)
    torch.set_num_threads(config.threads)
    device, specification = device_of(config.device), config.specification()["backbone"]
    with naming_choices(config):
        bank = bank_of(config)
        backbone = build(specification, "backbone", input_shape=bank.input_shape)
    if backbone.pretrained:
        raise UsageError("expected a backbone without weights, got pretrained weights; set backbone.weights=random")
    pretraining = pretrain(backbone, specification, bank, config.pretrain, device)
    scores = {shot: PrototypeScore(bank, device, shot, None, 2000)(backbone) for shot in SHOTS}
    write(config, backbone, pretraining, scores, folder)


def write(
    config: Config,
    backbone: torch.nn.Module,
    pretraining: PretrainedFeatures,
    scores: Mapping[int, float | None],
    folder: Path,
) -> None:
    """Write pretraining.json with the learning curve and scores, plot the curve, and print a table.

    Args:
        config: the settings.
        backbone: the pretrained network.
        pretraining: the result of the pretraining, with its learning curve.
        scores: accuracy of class means on validation classes, by number of shots.
        folder: the folder of the two files.
    """
    last, metrics = pretraining.curve[-1], {f"val_accuracy_{shot}_shot": score for shot, score in scores.items()}
    metrics["held_out_accuracy"] = pretraining.held_out_accuracy(config.pretrain.holdout_per_class)
    num_weights = sum(parameter.numel() for parameter in backbone.parameters())
    origin = {"num_parameters": num_weights, "path": str(pretraining.path), "versions": versions(), "commit": commit()}
    settings = {"data": config.data, "backbone": config.backbone, "pretrain": dataclasses.asdict(config.pretrain)}
    text = json.dumps({**metrics, **origin, "curve": list(pretraining.curve), "config": settings}, indent=2)
    write_atomically(folder / "pretraining.json", lambda path: path.write_text(text + "\n"))
    seconds = sum(line["cpu_seconds"] for line in pretraining.curve) / len(pretraining.curve)
    row = {
        "backbone": config.choices["backbone"],
        "parameters": f"{num_weights:,}",
        "data": config.choices["data"],
        "epochs": str(last["epoch"]),
        "training images right %": f"{100 * last['accuracy']:.1f}",
        **{f"class means, val {shot}-shot %": _per_cent(score) for shot, score in scores.items()},
        "held-out images right %": _per_cent(metrics["held_out_accuracy"]),
        "CPU seconds per epoch": f"{seconds:.1f}",
    }
    draw(pretraining.curve, folder / "curve.png")
    print(text_table([row]))
    print(f"curve.png and pretraining.json: {folder}")


def _per_cent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f}"


def draw(curve: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot the training loss, and the accuracies on training images and on validation classes, against the epoch."""
    figure, axes = new_figure(2)
    epochs = [line["epoch"] for line in curve]
    axes[0].plot(epochs, [line["loss"] for line in curve], "o-", ms=3)
    axes[0].set(title="training loss, nats per image", xlabel="epoch")
    axes[1].plot(epochs, [100 * line["accuracy"] for line in curve], "o-", ms=3, label="training images, all classes")
    validated = [(line["epoch"], 100 * line["val_accuracy"]) for line in curve if line["val_accuracy"] is not None]
    if validated:
        axes[1].plot(*zip(*validated, strict=True), "o-", ms=3, label="class means, 5-way 1-shot validation")
    axes[1].set(title="accuracy, %", xlabel="epoch")
    legend_below(axes[1])
    save_figure(figure, path)


if __name__ == "__main__":
    run_command(main, "pretrain")
