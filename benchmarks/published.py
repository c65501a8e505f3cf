"""Case `published`: training steps of sib with its default settings, compared with the released code.

The reference way computes like the released code: a point estimate, one task per step (`benchmarks/sib_raw.py`).
"""

from __future__ import annotations

from benchmarks.measure import Row, Way, rows_of, time_interleaved
from benchmarks.setting import STEPS, WAY, Size, learner, make_step, tasks
from benchmarks.sib import reference
from benchmarks.sib_raw import RawSib

FEATURES = 256
LEAST = {1: ">= 1", 8: ">= 4", 64: ">= 8"}
DEFAULT = "sib (ordered, normal), the default"
NETWORKS = {
    DEFAULT: {"synthetic_gradient": "ordered", "posterior": "normal"},
    "sib (ordered, delta)": {"synthetic_gradient": "ordered", "posterior": "delta"},
    "sib (equivariant, normal)": {"synthetic_gradient": "equivariant", "posterior": "normal"},
}
RAW = "raw batched (ordered, delta)"
REFERENCE = "reference way (ordered, delta)"


def rows(size: Size) -> list[Row]:
    """Measure the milliseconds per task, and the ratios to the time of the default."""
    table = []
    for number in size.tasks(1, 8, 64):
        rounds, in_a_row = {1: (40, 4), 8: (24, 2)}.get(number, (12, 1))
        seconds = time_interleaved(ways(number), size.rounds(rounds), 1 if size.toy else in_a_row)
        pairs = {REFERENCE: DEFAULT} | {way: DEFAULT for way in seconds if way not in (DEFAULT, REFERENCE)}
        case = f"training per task, T={number}, D={FEATURES}"
        table += rows_of(case, seconds, pairs, {REFERENCE: LEAST.get(number, "")}, per=number)
    return table


def ways(number: int) -> dict[str, Way]:
    data, raw = tasks(number, features=FEATURES), RawSib(FEATURES, WAY, STEPS)
    episodes = data.episodes
    steps: dict[str, Way] = {
        REFERENCE: reference(RawSib(FEATURES, WAY, STEPS), data),
        RAW: make_step(raw.parameters(), lambda: raw.loss(data.support, data.query, data.labels)),
    }
    for name, settings in NETWORKS.items():
        module = learner("sib", "Gaussian", of_guide=settings, features=FEATURES)
        steps[name] = make_step(module.parameters(), lambda module=module: module(episodes)["loss"])
    return steps
