"""Case `images`: images per second of Conv-4-64 at 32 x 32 pixels, by memory format and precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional

from benchmarks.measure import Row, Spread, ratios, time_interleaved
from benchmarks.setting import Size
from pyro_metabayes.models.backbones.conv4 import Backbone

BATCH, CLASSES = 64, 64


def rows(size: Size) -> list[Row]:
    batch = 4 if size.toy else BATCH
    table = []
    for training in (False, True):
        seconds = time_interleaved(ways(training, batch), size.rounds(6))
        for way, times in seconds.items():
            against = "" if way == "float32, channels first" else "float32, channels first"
            faster = ratios(seconds, against, way) if against else None
            rate = Spread.of([batch / value for value in times])
            table.append(
                Row(f"Conv-4, {'training' if training else 'forward'}", way, rate, "images/s", against, faster)
            )
    return table


def ways(training: bool, batch: int) -> dict[str, Callable[[], None]]:
    steps = {}
    for precision in ("float32", "bfloat16"):
        for layout, form in (("first", torch.contiguous_format), ("last", torch.channels_last)):
            backbone = Backbone(input_shape=(3, 32, 32))
            network = nn.Sequential(backbone, nn.Linear(backbone.num_features, CLASSES)).to(memory_format=form)
            images = torch.randn(batch, 3, 32, 32).to(memory_format=form)
            steps[f"{precision}, channels {layout}"] = _pass(network, images, precision == "bfloat16", training)
    return steps


def _pass(network: nn.Module, images: torch.Tensor, half: bool, training: bool) -> Callable[[], None]:
    labels = torch.arange(len(images)) % CLASSES
    network.train(training)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

    def forward() -> None:
        with torch.set_grad_enabled(training):
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                logits = network(images)
            if training:
                optimizer.zero_grad()
                functional.cross_entropy(logits.float(), labels).backward()
                optimizer.step()

    return forward
