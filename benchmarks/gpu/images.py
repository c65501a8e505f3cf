"""Images per second of pretraining, by backbone and precision, including augmentation and transfers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.result import Result, Run, compare_ways
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.models.backbones import conv4, resnet12, wide_resnet
from pyro_metabayes.pretraining.settings import PretrainSettings
from pyro_metabayes.pretraining.training import Pretraining

SHAPE, CLASSES, STEPS, EPOCHS = (3, 32, 32), 64, 4, 1000  # short epochs, and enough of them for the timing
FIRST_EPOCHS = 15.0  # seconds that must be left, enough for two epochs of the largest network
BACKBONES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], dict[str, Any]]] = {  # settings, toy settings
    "conv4": (conv4.Backbone, {}, {"num_filters": 4}),
    "resnet12": (resnet12.Backbone, {}, {"num_filters": 4}),
    "WRN-28-10": (wide_resnet.Backbone, {"depth": 28, "width": 10}, {"depth": 10, "width": 1}),
}
WAYS = {
    "bfloat16, channels last": ("bf16-mixed", torch.channels_last),
    "float32, channels last": ("32-true", torch.channels_last),
    "float32, channels first": ("32-true", torch.contiguous_format),
}


def rows(run: Run) -> Iterator[list[Result]]:
    for name in BACKBONES:
        yield run.attempt(name, "pretraining", partial(_measure, name, run), FIRST_EPOCHS)


def _measure(name: str, run: Run) -> list[Result]:
    batch, steps = (4, 1) if run.toy else (PretrainSettings().batch_size, STEPS)
    bank = images(batch * steps)
    ways = {way: partial(_epoch, name, bank, batch, *WAYS[way], run) for way in WAYS}
    return compare_ways(
        run, f"{name}, {SHAPE[1]} x {SHAPE[2]}, batch {batch}", ways, batch * steps, "images/s", FIRST_EPOCHS
    )


def images(number: int) -> Bank:
    """Return random images of CLASSES classes, or of fewer if there are fewer images, all in the training split."""
    noise, labels = np.random.default_rng(0), np.arange(number) % CLASSES
    pixels = noise.integers(0, 256, (number, *SHAPE), dtype=np.uint8)
    return Bank.from_arrays(pixels, labels, {"train": np.unique(labels)})


def _epoch(
    name: str, bank: Bank, batch: int, precision: str, layout: torch.memory_format, run: Run
) -> Callable[[], None]:
    make, settings, toy = BACKBONES[name]
    backbone = make(input_shape=SHAPE, **(toy if run.toy else settings)).to(memory_format=layout)
    pretrain = PretrainSettings(epochs=EPOCHS, batch_size=batch, precision=precision)
    return Pretraining(backbone, bank, pretrain, run.device, score=lambda backbone: None).run_epoch
