"""Several draws of each latent without an additional plate. Most draws do not depend on the number of processes."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_metabayes.seeding import drawing, task_draws


class Particles(Messenger):
    """Effect handler that draws each latent `num_particles` times, along a new leading dimension of the value.

    With one particle there is no new dimension. Distributions are not expanded, so a KL is computed only once.

    A latent without batch dimensions has one draw per particle for all tasks. Any other latent has one draw per
    particle and task. A distribution that depends on earlier draws already has the particle dimension, so it is sampled
    only once. With several particles, the random numbers of such a distribution depend on the number of processes.

    Args:
        num_particles: number of draws of each latent.
        nesting: number of batch dimensions of the program; the first is the task dimension.
    """

    def __init__(self, num_particles: int, nesting: int = 1) -> None:
        super().__init__()
        self.num_particles, self.nesting = num_particles, nesting

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        missing = self.nesting - len(msg["fn"].batch_shape)
        sizes = (self.num_particles,) if self.num_particles > 1 and missing >= 0 else ()
        if missing <= 0:
            msg["value"] = task_draws(lambda shape: msg["fn"](sample_shape=shape), sizes)
            msg["done"] = True
        elif sizes:
            with drawing():
                msg["value"] = msg["fn"](sample_shape=torch.Size(sizes + (1,) * missing))
            msg["done"] = True
