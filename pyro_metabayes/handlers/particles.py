"""Vectorised draws of a latent without an additional plate."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample


class Particles(Messenger):
    """Draws each latent `num_particles` times, along a new leading dimension of its value.

    Pyro's vectorised particles are a plate around model and guide that expands every distribution, so that a KL is
    computed once per particle. Here distributions keep the shape of one particle. A distribution that depends on
    earlier draws already has the new dimension and is drawn without another. nesting: number of batch dimensions of
    the program.
    """

    def __init__(self, num_particles: int, nesting: int = 1) -> None:
        super().__init__()
        self.num_particles, self.nesting = num_particles, nesting

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        missing = self.nesting - len(msg["fn"].batch_shape)
        if missing >= 0:
            msg["value"] = msg["fn"](sample_shape=torch.Size((self.num_particles,) + (1,) * missing))
            msg["done"] = True
