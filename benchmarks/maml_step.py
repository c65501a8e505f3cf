"""python -m benchmarks.maml_step: how fast is a second-order maml meta-step through Pyro?

Against the same step in raw batched PyTorch, and in a plain loop over tasks with autograd: forward, backward and
Adam on 25 sinusoids, 10 points of support and 10 queries, network 1-40-40-1. All in one process on one thread, in
turn, so that what else the machine does meets all alike; printed are medians of the ratios of neighbouring steps, and
the ratios of the fastest.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import pyro
import torch
from torch import Tensor

from pyro_metabayes import Episodes, MetaLearner
from pyro_metabayes.data.sinusoid import Sinusoid
from pyro_metabayes.data.stream import TaskShape, TaskStream

TASKS, POINTS, RATE, NOISE = 25, 10, 0.01, 0.5**0.5  # with this noise -log p is the squared error
IN_A_ROW, WARM_UP = 5, 3
Step = Callable[[], float]


def tasks() -> Episodes:
    return TaskStream(Sinusoid().sampler("train", TaskShape(1, POINTS, POINTS)), 0, "train").batch(0, TASKS)


def through_pyro(episodes: Episodes, num_steps: int) -> tuple[Step, list[Tensor]]:
    """What experiments.run does in a step."""
    learner = MetaLearner.from_specification(
        {
            "backbone": {"_target_": "models.backbones.identity.Backbone", "normalise": False},
            "head": {"_target_": "models.neural_regression.Network"},
            "prior": {"_target_": "models.priors.Flat"},
            "model": {"_target_": "models.neural_regression.Model", "noise": NOISE},
            "guide": {"_target_": "guides.maml.Guide", "num_steps": num_steps, "step_size": RATE},
            "objective": {"_target_": "pyro_metabayes.objectives.elbo.Elbo"},
            "input_shape": [1],
            "num_classes": 1,
            "num_targets": 1,
        }
    )
    parameters = [value for value in learner.parameters() if value.requires_grad]
    return _stepping(parameters, lambda: learner(episodes)["loss"]), parameters


def network(weights: list[Tensor], x: Tensor) -> Tensor:
    """weights: matrix and bias of each layer, of one task or (with a leading dimension) of all."""
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1]
        x = x.relu() if i < 4 else x
    return x


def initial() -> list[Tensor]:
    layers = ((1, 40), (40, 40), (40, 1))
    shapes = [shape for inputs, outputs in layers for shape in ((inputs, outputs), (1, outputs))]
    return [torch.nn.Parameter(0.2 * torch.randn(shape)) for shape in shapes]


def adapted(weights: list[Tensor], x: Tensor, y: Tensor, num_steps: int) -> list[Tensor]:
    """MAML's inner loop by autograd; the losses of the tasks are added up, their gradients stay apart."""
    for _ in range(num_steps):
        loss = (network(weights, x) - y).square().mean(-2).sum()
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        weights = [w - RATE * g for w, g in zip(weights, gradients, strict=True)]
    return weights


def batched(episodes: Episodes, num_steps: int) -> tuple[Step, list[Tensor]]:
    theta = initial()

    def loss() -> Tensor:
        copies = [w.expand(TASKS, *w.shape) for w in theta]
        phi = adapted(copies, episodes.support_x, episodes.support_y, num_steps)
        return (network(phi, episodes.query_x) - episodes.query_y).square().sum() / TASKS

    return _stepping(theta, loss), theta


def looped(episodes: Episodes, num_steps: int) -> tuple[Step, list[Tensor]]:
    theta = initial()

    def loss() -> Tensor:
        total = torch.zeros(())
        for t in range(TASKS):
            phi = adapted(theta, episodes.support_x[t], episodes.support_y[t], num_steps)
            total = total + (network(phi, episodes.query_x[t]) - episodes.query_y[t]).square().sum()
        return total / TASKS

    return _stepping(theta, loss), theta


def _stepping(parameters: list[Tensor], loss: Callable[[], Tensor]) -> Step:
    """A timed meta-step: CPU seconds of forward, backward and Adam."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> float:
        started = time.process_time()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        return time.process_time() - started

    return step


def interleaved(steps: list[Step], rounds: int) -> Iterator[list[float]]:
    """Mean seconds of each kind of step, round by round; a round takes IN_A_ROW of each, as training does.

    Garbage is not collected meanwhile, as in timeit: a collection would be charged to whichever step it falls into.
    """
    gc.disable()
    for turn in range(rounds + WARM_UP):
        seconds = [sum(step() for _ in range(IN_A_ROW)) / IN_A_ROW for step in steps]
        if turn >= WARM_UP:
            yield seconds
    gc.enable()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maml_step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args(arguments).rounds
    torch.set_num_threads(1)
    pyro.enable_validation(False)  # as in training after the first step
    episodes = tasks()
    for num_steps in (1, 5):
        torch.manual_seed(0)
        steps = [make(episodes, num_steps)[0] for make in (through_pyro, batched, looped)]
        times = list(interleaved(steps, rounds))
        ours, raw, loop = (1e3 * median(column) for column in zip(*times, strict=True))
        print(f"{num_steps} inner steps: guide=maml {ours:.2f} ms, raw batched {raw:.2f}, loop over tasks {loop:.1f}")
        print(f"  medians of {rounds} rounds: {ratios(median, times)}")
        print(f"  fastest of them, as on an idle machine: {ratios(min, times)}")


def ratios(of: Callable[..., float], times: list[list[float]]) -> str:
    """The median of the ratios of neighbours; for the fastest, which are no neighbours, the ratio of the fastest."""
    if of is median:
        to_raw, to_loop = median(row[0] / row[1] for row in times), median(row[2] / row[0] for row in times)
    else:
        ours, raw, loop = (of(column) for column in zip(*times, strict=True))
        to_raw, to_loop = ours / raw, loop / ours
    return f"{to_raw:.2f} times the raw step, {to_loop:.1f} times faster than the loop"


if __name__ == "__main__":
    main()
