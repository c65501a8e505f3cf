"""Case `conditional`: training steps of mc and savi with 1 and 10 samples, compared with raw batched PyTorch."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import Row, rows_of, time_interleaved
from benchmarks.setting import FEATURES, Size, learner, make_step, tasks
from benchmarks.versa_raw import RawEncoder

GOALS = {("mc", 1): "<= 1.15", ("mc", 10): "<= 1.15", ("savi", 1): "<= 1.15", ("savi", 10): "<= 1.30"}

OBJECTIVES: dict[str, dict[str, tuple[str, dict[str, str]]]] = {  # objectives of the learners of each guide
    "mc": {"learner": ("monte_carlo.MonteCarlo", {})},
    "savi": {
        "learner": ("elbo.Elbo", {"kl": "analytic"}),
        "learner, KL sampled": ("elbo.Elbo", {"kl": "sampled"}),
    },
}


def rows(size: Size) -> list[Row]:
    table = []
    for number in size.tasks(8, 64):
        for (guide, samples), goal in GOALS.items():
            seconds = time_interleaved(ways(guide, samples, number), size.rounds(12 if number == 64 else 20))
            pairs = dict.fromkeys([way for way in seconds if way != "raw batched"], "raw batched")
            goals = {"learner": goal} if number == 64 else {}
            table += rows_of(f"{guide}, training step, L={samples}, T={number}", seconds, pairs, goals)
    return table


def ways(guide: str, samples: int, number: int) -> dict[str, Callable[[], None]]:
    """Return the training step of each variant.

    For savi, "raw batched" and "learner" compute the KL in closed form, "learner, KL sampled" from samples.
    """
    data, raw = tasks(number), RawEncoder(FEATURES)
    loss = raw.mc_loss if guide == "mc" else raw.savi_loss
    objectives = OBJECTIVES[guide]
    steps = {
        "raw batched": make_step(
            raw.parameters(), lambda: loss(data.support, data.query, data.labels, samples), adam=True
        )
    }
    episodes = data.episodes
    for name, (objective, settings) in objectives.items():
        module = learner(guide, "Conditional", objective, of_objective=settings, particles=samples)
        steps[name] = make_step(module.parameters(), lambda module=module: module(episodes)["loss"], adam=True)
    return steps
