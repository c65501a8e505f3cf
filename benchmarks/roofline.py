"""Case `roofline`: FLOP/s of a training step of sib and of two of its matrix products, relative to a large product."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, Spread, Way, time_interleaved
from benchmarks.setting import Size, learner, make_step, tasks

SIDE = 1024


def rows(size: Size) -> list[Row]:
    """Measure rates relative to sgemm, the float32 product of two SIDE x SIDE matrices."""
    (number,) = size.tasks(64)
    side = 64 if size.toy else SIDE
    square = torch.randn(side, side)
    table = []
    for features in (256, 640):
        data = tasks(number, features=features)
        episodes, w = data.episodes, torch.randn(number, 5, features)
        g = torch.randn(number, 5, data.query.shape[1])
        module = learner("sib", "Gaussian", of_guide={"posterior": "normal"}, features=features)
        step = make_step(module.parameters(), lambda module=module, e=episodes: module(e)["loss"])
        ways: dict[str, Way] = {
            "sgemm": lambda: square @ square,
            "training step": step,
            "one product w x^T": lambda w=w, x=data.query: torch.bmm(w, x.mT),
            "one product g x": lambda g=g, x=data.query: torch.bmm(g, x),
        }
        operations = {name: _operations(way) for name, way in ways.items()}
        seconds = time_interleaved(ways, size.rounds(12))
        peak = [operations["sgemm"] / value for value in seconds["sgemm"]]
        case = f"share of sgemm, sib (ordered, normal), T={number}, D={features}"
        for name in list(ways)[1:]:
            shares = [operations[name] / value / top for value, top in zip(seconds[name], peak, strict=True)]
            rate = Spread.of([1e-9 * operations[name] / value for value in seconds[name]])
            goal = ">= 0.30" if name == "training step" else ""
            table.append(Row(case, name, rate, "GFLOP/s", "sgemm", Spread.of(shares), goal))
    return table


def _operations(way: Way) -> float:
    """Count the floating-point operations of the matrix products of one call."""
    with FlopCounterMode(display=False) as counter:
        way()
    return counter.get_total_flops()
