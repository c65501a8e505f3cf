"""Checks that every guide trains on the device without synchronising with the host."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import pyro
import torch
from torch import Tensor

from benchmarks.gpu import guide_setting
from benchmarks.gpu.device import clock_of, refusing_to_wait
from benchmarks.gpu.guide_setting import Setting
from benchmarks.gpu.result import FAILED, Result, Run
from benchmarks.measure import Spread
from pyro_metabayes.training.fabric import fabric_alone
from pyro_metabayes.training.nonfinite import NonFiniteMonitor
from pyro_metabayes.training.optimisation import clip_gradients, kl_weight_at, make_optimizer, set_rates, step_unless

STEPS = 50


def rows(run: Run) -> Iterator[list[Result]]:
    for name in guide_setting.names():
        yield run.attempt(name, "training", partial(_measure, name, run))


def _measure(name: str, run: Run) -> list[Result]:
    training, steps = Training(Setting.of(name, run.toy), run.device), 2 if run.toy else STEPS
    training.step()  # loads kernels, allocates moments; only here Pyro's checks synchronise
    now = clock_of(run.device)
    started = now()
    with refusing_to_wait(run.device):
        for _ in range(steps):
            loss = training.step()
    rate = Spread.of([steps / (now() - started)])
    if not math.isfinite(value := loss.item()):
        return [Result(name, "training", FAILED, note=f"the loss is {value} after {steps} steps")]
    return [Result(name, "training", value=rate, unit="steps/s")]


class Training:
    """The steps of pyro_metabayes/training/loop.py on fixed tasks, so that the time to draw tasks is not included."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.settings, self.taken = setting.config.train, 0
        self.learner, self.episodes = setting.learner().to(device), setting.episodes.to(device)
        self.optimizer = make_optimizer(self.learner, self.settings)
        self.nonfinite = NonFiniteMonitor(self.learner, device)
        self.fabric = fabric_alone(torch.device("cpu"))  # only clips gradients, on any device

    def step(self) -> Tensor:
        """Take one training step, and return the loss, on the device."""
        set_rates(self.optimizer, self.settings, self.taken)
        self.optimizer.zero_grad()
        with pyro.validation_enabled(self.taken == 0):
            terms = self.learner(self.episodes, kl_weight=kl_weight_at(self.settings.kl_weight, self.taken))
        self.taken += 1
        terms["loss"].backward()
        finite = self.nonfinite.finite_terms(terms)
        clip_gradients(self.fabric, self.learner, self.optimizer, self.settings)
        if self.settings.on_nan == "skip":
            step_unless(~torch.stack(list(finite.values())).all(), self.optimizer)
            finite = {}
        else:
            self.optimizer.step()
        self.nonfinite.mark(self.taken, finite | self.nonfinite.finite_parameters())
        return terms["loss"].detach()
