"""Checks that a loss is the same on the device and on the CPU.

Tasks, weights and noise are the same: NoiseOfCpu makes every draw on the CPU and moves it. All computations are in
float32, without TF32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import pyro
import torch

from benchmarks.gpu import guide_setting
from benchmarks.gpu.device import without_tf32
from benchmarks.gpu.guide_setting import Setting
from benchmarks.gpu.noise import NoiseOfCpu
from benchmarks.gpu.result import FAILED, PASSED, Result, Run
from benchmarks.measure import Spread
from pyro_metabayes import Episodes, MetaLearner
from pyro_metabayes.training.optimisation import kl_weight_at

TOLERANCE = 1e-4  # largest relative difference


def rows(run: Run) -> Iterator[list[Result]]:
    for name in guide_setting.names():
        yield run.attempt(name, "loss", partial(_measure, name, run))


def _measure(name: str, run: Run) -> list[Result]:
    setting = Setting.of(name, run.toy)
    on_cpu, on_device = setting.learner(), setting.learner().to(run.device)
    weight = kl_weight_at(setting.config.train.kl_weight, 0)
    return [agreement(name, on_cpu, on_device, setting.episodes, run.device, weight)]


def agreement(
    name: str, on_cpu: MetaLearner, on_device: MetaLearner, episodes: Episodes, device: torch.device, kl_weight: float
) -> Result:
    """Return the row that compares the losses of two learners with the same weights, on the CPU and on the device."""
    with without_tf32():
        expected, got = loss_of(on_cpu, episodes, kl_weight), loss_of(on_device, episodes.to(device), kl_weight)
    difference = abs(got - expected) / max(abs(expected), abs(got), 1e-30)
    near = difference <= TOLERANCE  # false for NaN
    note = "" if near else f"{got:.7g} on {device.type}, {expected:.7g} on the CPU, with the same weights and noise"
    value = Spread.of([difference]) if math.isfinite(difference) else None
    return Result(name, "loss", PASSED if near else FAILED, value, "relative difference", note=note)


@torch.no_grad()
def loss_of(learner: MetaLearner, episodes: Episodes, kl_weight: float) -> float:
    torch.manual_seed(1)
    with pyro.validation_enabled(False), NoiseOfCpu():
        return learner(episodes, kl_weight=kl_weight)["loss"].item()
