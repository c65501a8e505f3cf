"""python -m experiments.rotation_accuracy RUN_DIR: the effect of a descent step on the rotation loss, per class.

RUN_DIR is the folder of a run with guide=sib_rotation. The best learner of this run predicts by which multiple of 90
degrees an image was rotated. The table shows how often the predicted rotation is correct, and how often it is off by
180 degrees. The table also shows the accuracy of the class labels before the rotation step, after the rotation step,
and after all inner steps. The command writes RUN_DIR/rotation_accuracy/table.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.text_table import text_table
from pyro_metabayes.experiments.cli.usage import parser_of
from pyro_metabayes.experiments.runs.restore_run import restore_run
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.experiments.runs.tables import markdown_table
from pyro_metabayes.guides import sib_rotation
from pyro_metabayes.inference.rotation import TURNS, every_turn
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.storage.paths import user_path


def restore_rotation_run(folder: Path) -> tuple[RunSetup, MetaLearner]:
    """Restore a finished run of guide=sib_rotation on the CPU.

    Returns:
        The objects of the run, and its best learner.

    Raises:
        UsageError: the run has another guide, or guide.rotation_step_size=0.
    """
    config = replace(saved_config(folder, []), device="cpu")
    setup = restore_run(folder, config)
    if not isinstance(setup.learner.guide, sib_rotation.Guide) or setup.learner.guide.rotation is None:
        choice = setup.config.choices["guide"]
        expected = "a run of guide=sib_rotation with guide.rotation_step_size > 0"
        raise UsageError(f"expected {expected}, got guide={choice}; train such a run")
    return setup, setup.learner


@torch.no_grad()
def rotation_metrics(learner: MetaLearner, episodes: Episodes) -> dict[str, Tensor]:
    """Return metrics of each query image, by name, each of shape [tasks, queries].

    Two metrics concern the rotation: the share of the four rotations that are predicted correctly, and the share of
    predictions off by 180 degrees. Three metrics say whether the predicted class is correct: before the rotation step
    ("at lambda", the initial weights), after the rotation step, and after all inner steps.
    """
    guide: Any = learner.guide
    observed, num_steps = episodes.observed(), guide.num_steps
    start = guide.start(learner.model, episodes)
    predicted = guide.rotation.network(learner.model.outputs(start, every_turn(observed))).argmax(-1)
    error = (predicted.unflatten(1, (-1, TURNS)) - torch.arange(TURNS)) % TURNS
    metrics = {
        "rotation right": (error == 0).float().mean(-1),
        "half a turn off": (error == TURNS // 2).float().mean(-1),
    }
    rotated = copy.copy(guide)
    rotated.num_steps = 0
    weights = {"at lambda": start, "after the rotation step": rotated.posterior(observed).mean}
    weights[f"after {num_steps} more"] = guide.posterior(observed).mean
    for name, w in weights.items():
        metrics[name] = (learner.model.outputs(w, episodes.query_x).argmax(-1) == episodes.query_y).float()
    return metrics


def table_of(metrics: dict[str, Tensor], labels: Tensor, num_classes: int) -> list[dict[str, str]]:
    """Return a table with the mean of each metric over the queries of each class, and over all queries, in per cent.

    Args:
        metrics: metrics by name [tasks, queries].
        labels: the classes of the queries [tasks, queries].
        num_classes: the number of classes.
    """
    member = functional.one_hot(labels.flatten(), num_classes).float()
    member = torch.cat((member, torch.ones(len(member), 1)), dim=1)
    means = {name: 100 * (member.mT @ value.flatten()) / member.sum(0) for name, value in metrics.items()}
    names = [*map(str, range(num_classes)), "all"]
    return [
        {"class": name} | {title: f"{mean[row]:.1f}" for title, mean in means.items()} for row, name in enumerate(names)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=user_path, help="folder of a run with guide=sib_rotation")
    parser.add_argument("--split", default="test", help="train, val or test (%(default)s)")
    parser.add_argument("--tasks", type=int, default=100, help="number of tasks, i.e. query minibatches (%(default)s)")
    options = parser.parse_args(arguments)
    if options.tasks < 1:
        raise UsageError(f"expected --tasks >= 1, got {options.tasks}; give a larger number")
    setup, learner = restore_rotation_run(options.run)
    episodes = learner.featured(setup.tasks.stream(options.split).batch(0, options.tasks))
    rows = table_of(rotation_metrics(learner, episodes), episodes.query_y, episodes.num_classes)
    out = options.run / "rotation_accuracy" / "table.md"
    write_atomically(out, lambda path: path.write_text(markdown_table(rows) + "\n"))
    print(f"{text_table(rows)}\ntable: {out}")


if __name__ == "__main__":
    run_program(main)
