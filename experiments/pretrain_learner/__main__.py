"""python -m experiments.pretrain_learner transductive --out DIR: train a learner that ships with the package.

The tasks are those of data=mixture: simulated features, and features of characters and digits from several networks
(`pyro_metabayes/data/mixture/banks.py`). Omniglot and the digits are read from METABAYES_DATA. The networks are trained
once and cached. The same command with the same --out continues an interrupted training.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator

import pyro_metabayes
from pyro_metabayes import MetaLearner
from pyro_metabayes.data.mixture.source import Mixture, load
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UnfamiliarTasks
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.storage.paths import user_path

GUIDES = {"transductive": ("amortized_em", "all"), "inductive": ("amortized_means", "support")}
# Setting least_skill of `Mixture`. A transductive learner sees from the queries whether classes overlap. An inductive
# learner does not see this, so it is trained without tasks of overlapping classes.
LEAST_SKILL = {"transductive": 0.0, "inductive": 0.5}
AMBIGUOUS = 0.4  # setting ambiguous of `Mixture`
STEPS = {"transductive": 8000, "inductive": 5000}  # training steps of the learners that ship
TASKS = 12  # tasks per step
LEARNING_RATE, WARM_UP = 3e-3, 100
VALIDATION = TaskShape(way=5, shot=1, query=15, query_concentration=2.0, query_balanced=0.5)


def new_learner(name: str, seed: int) -> MetaLearner:
    """Build a learner with initial weights. `name` is transductive or inductive."""
    guide, points = GUIDES[name]
    torch.manual_seed(seed)
    return MetaLearner.build(
        {"_target_": "models.backbones.task_frame.Backbone", "points": points},
        guide,
        objective="mean_score",
        prior="flat",
        head="linear",
        input_shape=[None],
    )


def train(learner: MetaLearner, mixture: Mixture, steps: int, folder: Path | None, seed: int) -> None:
    """Train by Adam, with a warm-up, a cosine schedule of the learning rate, and gradients clipped to norm 1.

    Args:
        learner: the learner to train.
        mixture: the source of tasks.
        steps: the number of steps.
        folder: the folder of the checkpoints; None without checkpoints.
        seed: seed of the tasks.
    """

    def batch(number: int) -> Episodes:
        return mixture.tasks(TASKS, Generator().manual_seed(number + 2**32 * (seed + 1)))

    def factor(step: int) -> float:
        return min(1.0, step / WARM_UP) * (0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))) + 0.01)

    optimiser = torch.optim.Adam(learner.parameters(), lr=LEARNING_RATE)
    with warnings.catch_warnings(action="ignore", category=UnfamiliarTasks):  # tasks of all shapes are intended
        pyro_metabayes.fit(
            learner,
            batch,
            TaskStream(mixture.sampler("val", VALIDATION), seed, "val"),
            steps=steps,
            optimiser=optimiser,
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimiser, factor),
            folder=folder,
            clip=1.0,
            log_every=200,
            validate_every=1000,
            validation_tasks=640,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("learner", choices=sorted(GUIDES), help="the learner to train")
    parser.add_argument("--out", type=user_path, required=True, help="folder for checkpoints and learner.pt")
    parser.add_argument("--steps", type=int, help=f"number of training steps of {TASKS} tasks; default: {STEPS}")
    parser.add_argument("--bank-share", type=float, default=0.5, help="share of the steps with features of real inputs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights and the tasks")
    options = parser.parse_args(arguments)
    learner = new_learner(options.learner, options.seed)
    mixture = load(options.bank_share, LEAST_SKILL[options.learner], AMBIGUOUS)
    steps = STEPS[options.learner] if options.steps is None else options.steps
    train(learner, mixture, steps, options.out, options.seed)
    learner.trained_on = None  # it was trained on tasks of every shape, so no task is unfamiliar
    learner.save(options.out / "learner.pt")
    print(f"learner: {options.out / 'learner.pt'}")


if __name__ == "__main__":
    run_program(main)
