"""Tasks per second and peak memory of a training step, by number of tasks, for learners and raw batched PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import gradient
from benchmarks.gpu.result import Result, Run, compare_ways
from benchmarks.measure import Way
from benchmarks.setting import FEATURES, STEPS, WAY, Size, learner, make_step, tasks
from benchmarks.sib_raw import RawSib
from benchmarks.versa_raw import RawEncoder

Ways = dict[str, Callable[[], Way]]
SAMPLES = {"savi": 1, "mc": 10}


def rows(run: Run) -> Iterator[list[Result]]:
    for number in Size(run.toy).tasks(1, 16, 64, 256, 1024, 4096):
        for name in CASES:
            yield run.attempt(f"{name}, T={number}", "training step", partial(_measure, name, number, run))


def _measure(name: str, number: int, run: Run) -> list[Result]:
    return compare_ways(run, f"{name}, T={number}", CASES[name](number, run.device), number, "tasks/s")


def sib(posterior: str, number: int, device: torch.device) -> Ways:
    """Return the training steps of sib. For the delta posterior there is also a raw step."""
    data = tasks(number, device=device)
    episodes = data.episodes

    def learner_step() -> Way:
        module = learner("sib", "Gaussian", of_guide={"posterior": posterior}, device=device)
        return make_step(module.parameters(), lambda: module(episodes)["loss"], adam=True)

    def raw_step() -> Way:
        module = RawSib(FEATURES, WAY, STEPS).to(device)
        return make_step(module.parameters(), lambda: module.loss(data.support, data.query, data.labels), adam=True)

    return {"learner": learner_step} | ({"raw batched": raw_step} if posterior == "delta" else {})


def versa(guide: str, number: int, device: torch.device) -> Ways:
    """Return the training steps of mc or savi. The learner of savi has the KL in closed form, like the raw step."""
    data, samples = tasks(number, device=device), SAMPLES[guide]
    episodes = data.episodes
    objective, settings = ("monte_carlo.MonteCarlo", {}) if guide == "mc" else ("elbo.Elbo", {"kl": "analytic"})

    def learner_step() -> Way:
        module = learner(guide, "Conditional", objective, None, settings, particles=samples, device=device)
        return make_step(module.parameters(), lambda: module(episodes)["loss"], adam=True)

    def raw_step() -> Way:
        module = RawEncoder(FEATURES).to(device)
        loss = module.mc_loss if guide == "mc" else module.savi_loss
        return make_step(module.parameters(), lambda: loss(data.support, data.query, data.labels, samples), adam=True)

    return {"learner": learner_step, "raw batched": raw_step}


def maml(number: int, device: torch.device) -> Ways:
    """Return second-order meta-steps on sinusoids with one inner step."""
    episodes = gradient.tasks(number).to(device)
    return {
        "learner": lambda: gradient.learner_step(episodes, 1)[0],
        "raw batched": lambda: gradient.batched_step(episodes, 1)[0],
    }


CASES: dict[str, Callable[[int, torch.device], Ways]] = {
    "sib, normal": partial(sib, "normal"),
    "sib, delta": partial(sib, "delta"),
    "savi": partial(versa, "savi"),
    "mc": partial(versa, "mc"),
    "maml": maml,
}
