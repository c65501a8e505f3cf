"""python -m experiments.turns RUN_DIR: what a step on the rotation loss does, class by class.

For the best learner of a run with guide=sib_rotation: how often its head tells by how many quarters an image was
turned, how often it is half a turn off, and the accuracy of lambda, of theta^0 after the step, and of theta^K. Leaves
turns/table.md in RUN_DIR.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from torch.nn import functional

from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.cli.messages import one_line
from pyro_metabayes.experiments.runs.assembly import Assembly
from pyro_metabayes.experiments.runs.restore_run import finished, trained
from pyro_metabayes.experiments.runs.tables import markdown_table, text_table
from pyro_metabayes.guides import sib_rotation
from pyro_metabayes.inference.rotation import TURNS, every_turn
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.storage.checkpoint import write_atomically


def learner_of(folder: Path) -> tuple[Assembly, MetaLearner]:
    """The best learner of a run, on the CPU."""
    config = replace(saved_config(folder, []), device="cpu")
    assembly = trained(finished(folder, config), config)
    if not isinstance(assembly.learner.guide, sib_rotation.Guide):
        raise UsageError(f"expected a run of guide=sib_rotation, got {assembly.config.choices['guide']}")
    return assembly, assembly.learner


@torch.no_grad()
def figures_of(learner: MetaLearner, episodes: Episodes) -> dict[str, Tensor]:
    """Of each query [T, Q]: shares of its views told right, and half a turn off; whether it is answered right."""
    guide: Any = learner.guide
    observed, num_steps = episodes.observed(), guide.num_steps
    start = guide.start(learner.model, episodes)
    told = guide.rotation.network(learner.model.outputs(start, every_turn(observed))).argmax(-1)
    off = (told.unflatten(1, (-1, TURNS)) - torch.arange(TURNS)) % TURNS
    figures = {"turns told": (off == 0).float().mean(-1), "half a turn off": (off == TURNS // 2).float().mean(-1)}
    rotated = copy.copy(guide)
    rotated.num_steps = 0
    points = {"at lambda": start, "after the rotation step": rotated.posterior(observed).mean}
    points[f"after {num_steps} more"] = guide.posterior(observed).mean
    for name, w in points.items():
        figures[name] = (learner.model.outputs(w, episodes.query_x).argmax(-1) == episodes.query_y).float()
    return figures


def table_of(figures: dict[str, Tensor], labels: Tensor, num_classes: int) -> list[dict[str, str]]:
    """Means over the queries of each class, and over all, in per cent."""
    member = functional.one_hot(labels.flatten(), num_classes).float()
    member = torch.cat((member, torch.ones(len(member), 1)), dim=1)
    means = {name: 100 * (member.mT @ value.flatten()) / member.sum(0) for name, value in figures.items()}
    names = [*map(str, range(num_classes)), "all"]
    return [
        {"class": name} | {title: f"{its[row]:.1f}" for title, its in means.items()} for row, name in enumerate(names)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.turns", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run with guide=sib_rotation")
    parser.add_argument("--split", default="test", help="train, val or test")
    parser.add_argument("--tasks", type=int, default=100, help="minibatches")
    options = parser.parse_args(arguments)
    if options.tasks < 1:
        raise UsageError(f"expected --tasks >= 1, got {options.tasks}")
    assembly, learner = learner_of(options.run)
    episodes = learner.featured(assembly.stream(options.split).batch(0, options.tasks))
    rows = table_of(figures_of(learner, episodes), episodes.query_y, episodes.num_classes)
    out = options.run / "turns" / "table.md"
    write_atomically(out, lambda path: path.write_text(markdown_table(rows) + "\n"))
    print(f"{text_table(rows)}\ntable: {out}")


if __name__ == "__main__":
    try:
        main()
    except (UsageError, OmegaConfBaseException, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
