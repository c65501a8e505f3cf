"""Case `gradient`: a second-order meta-step of maml and of llama.

The step is compared with the step of maml in raw batched PyTorch, and in a plain loop over tasks with autograd. A step
consists of forward pass, backward pass and Adam on 25 sinusoids with 10 support points and 10 queries, with a network
of layer sizes 1-40-40-1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import Row, rows_of, time_interleaved
from benchmarks.setting import Size, make_step
from pyro_metabayes import Episodes, MetaLearner
from pyro_metabayes.data.sources.sinusoid import Sinusoid
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape

TASKS, POINTS, RATE, NOISE = 25, 10, 0.01, 0.5**0.5  # with this noise -log p is the squared error plus a constant
FASTER_THAN_THE_LOOP = {1: ">= 4.5", 5: ">= 8"}
Step = Callable[[], None]


def rows(size: Size) -> list[Row]:
    table, episodes = [], tasks()
    for num_steps in (1, 5):
        ways = {
            "raw batched": batched_step(episodes, num_steps)[0],
            "learner, maml": learner_step(episodes, num_steps)[0],
            "loop over tasks": loop_step(episodes, num_steps)[0],
            "learner, llama": learner_step(episodes, num_steps, "llama")[0],
        }
        seconds = time_interleaved(ways, size.rounds(30), 1 if size.toy else 3)
        pairs = {"learner, maml": "raw batched", "loop over tasks": "learner, maml", "learner, llama": "raw batched"}
        goals = {"learner, maml": "<= 2", "loop over tasks": FASTER_THAN_THE_LOOP[num_steps]}
        table += rows_of(f"maml, meta-step, {num_steps} inner", seconds, pairs, goals)
    return table


def tasks(number: int = TASKS) -> Episodes:
    return TaskStream(Sinusoid().sampler("train", TaskShape(1, POINTS, POINTS)), 0, "train").batch(0, number)


def learner_step(episodes: Episodes, num_steps: int, guide: str = "maml") -> tuple[Step, list[Tensor]]:
    """Return the training step of experiments.run on the device of the tasks, and the trained parameters."""
    learner = MetaLearner.from_specification(
        {
            "backbone": {"_target_": "models.backbones.identity.Backbone", "normalise": False},
            "head": {"_target_": "models.neural_regression.Network"},
            "prior": {"_target_": "models.priors.Flat"},
            "model": {"_target_": "models.neural_regression.Model", "noise": NOISE},
            "guide": {"_target_": f"guides.{guide}.Guide", "num_steps": num_steps, "step_size": RATE},
            "objective": {"_target_": "pyro_metabayes.objectives.elbo.Elbo"},
            "input_shape": [1],
            "num_classes": 1,
            "num_targets": 1,
        }
    ).to(episodes.query_x.device)
    parameters = [value for value in learner.parameters() if value.requires_grad]
    return make_step(parameters, lambda: learner(episodes)["loss"], adam=True), parameters


def network(weights: list[Tensor], x: Tensor) -> Tensor:
    """Return the outputs; `weights`: matrix and bias of each layer, with or without a leading axis of tasks."""
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1]
        x = x.relu() if i < 4 else x
    return x


def initial(device: torch.device | str = "cpu") -> list[Tensor]:
    layers = ((1, 40), (40, 40), (40, 1))
    shapes = [shape for inputs, outputs in layers for shape in ((inputs, outputs), (1, outputs))]
    return [torch.nn.Parameter(0.2 * torch.randn(shape, device=device)) for shape in shapes]


def adapt(weights: list[Tensor], x: Tensor, y: Tensor, num_steps: int) -> list[Tensor]:
    """Run MAML's inner loop by autograd. Tasks do not interact, so one gradient of the summed loss serves all tasks."""
    for _ in range(num_steps):
        loss = (network(weights, x) - y).square().mean(-2).sum()
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        weights = [w - RATE * g for w, g in zip(weights, gradients, strict=True)]
    return weights


def batched_step(episodes: Episodes, num_steps: int) -> tuple[Step, list[Tensor]]:
    theta = initial(episodes.query_x.device)

    def loss() -> Tensor:
        copies = [w.expand(episodes.num_tasks, *w.shape) for w in theta]
        phi = adapt(copies, episodes.support_x, episodes.support_y, num_steps)
        return (network(phi, episodes.query_x) - episodes.query_y).square().sum() / episodes.num_tasks

    return make_step(theta, loss, adam=True), theta


def loop_step(episodes: Episodes, num_steps: int) -> tuple[Step, list[Tensor]]:
    theta = initial()

    def loss() -> Tensor:
        total = torch.zeros(())
        for t in range(TASKS):
            phi = adapt(theta, episodes.support_x[t], episodes.support_y[t], num_steps)
            total = total + (network(phi, episodes.query_x[t]) - episodes.query_y[t]).square().sum()
        return total / TASKS

    return make_step(theta, loss, adam=True), theta
