"""Every guide with the parts and training settings of its YAML file, and suitable tasks.

Features are simulated, so that no data set and no backbone is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional

from pyro_metabayes import Episodes, MetaLearner
from pyro_metabayes.build import build
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.experiments.cli.command import CONF
from pyro_metabayes.experiments.cli.config import Config, config_from, register

CLASSES = ("data=gaussian_features",)
SUITED = {  # data of guides that are not for few-shot classification; groups of partial_pooling have no support points
    "exact": ("data=linear_regression",),
    "leo_regression": ("data=sine_and_line",),
    "partial_pooling": ("data=linear_regression", "model=hierarchical_regression", "task.shot=0"),
    "task_scale": ("data=linear_regression",),
}
SMALL = ("+data.num_features=16", "task.query=3")  # settings for classification in toy size
FEW = {"num_steps": 12, "cleaning_steps": 12}  # largest numbers of inner steps in toy size
NUM_RANDOM, BASE_CLASSES, BASE_QUERIES, KEPT = 2, 20, 15, 0.7


def names() -> list[str]:
    return sorted(path.stem for path in Path(CONF, "guide").glob("*.yaml"))


@dataclass(frozen=True)
class Setting:
    """A guide as configured, and a batch of tasks on the CPU."""

    config: Config
    specification: dict[str, Any]
    episodes: Episodes

    @classmethod
    def of(cls, name: str, toy: bool) -> Setting:
        config = config_of(name, toy)
        settings = {key: value for key, value in config.source().items() if key != "train_shift"}  # needs domains
        source = build(settings, "data")
        stream = TaskStream(source.sampler("train", config.task), config.seed, "train")
        torch.manual_seed(config.seed)
        episodes = with_extras(config, stream.batch(0, 2 if toy else config.train.tasks_per_step))
        return cls(config, specification(config, source), episodes)

    def learner(self) -> MetaLearner:
        """Build the learner on the CPU; every call gives the same initial weights."""
        torch.manual_seed(self.config.seed)
        return MetaLearner.from_specification(self.specification)


@cache
def config_of(name: str, toy: bool) -> Config:
    """Return the configuration of `python -m experiments.run guide=NAME` on simulated data.

    With `toy`, tasks are smaller, and inner steps are at most those in FEW.
    """
    register()
    overrides = [f"guide={name}", *SUITED.get(name, CLASSES), *(SMALL if toy and name not in SUITED else ())]
    choices = [f"choices.guide={name}", "choices.data=simulated"]  # Hydra resolves these only inside a job
    with initialize_config_dir(CONF, version_base="1.3"):
        config = config_from(compose("config", [*overrides, *choices]))
    fewer = {key: min(config.guide[key], most) for key, most in FEW.items() if key in config.guide}
    return replace(config, guide=config.guide | fewer) if toy else config


def specification(config: Config, source: Any) -> dict[str, Any]:
    """Return the specification of the learner, as in experiments/runs/build_learner.py."""
    return config.specification() | {
        "input_shape": list(source.input_shape),
        "num_classes": source.num_targets or config.task.way,
        "num_targets": source.num_targets,
        "particles": config.train.particles,
        **({"num_base_classes": BASE_CLASSES} if config.task.base_query else {}),
        **({"num_weights": NUM_RANDOM} if _of_groups(config) else {}),
    }


def with_extras(config: Config, episodes: Episodes) -> Episodes:
    """Add what some guides need besides simulated points: rotated views, base classes, or groups of unequal sizes."""
    if config.guide.get("rotation_step_size"):
        shape = (*episodes.query_x.shape[:2], 3, *episodes.query_x.shape[2:])
        turned = functional.normalize(torch.randn(shape), dim=-1)
        return replace(episodes, auxiliary={"turned": turned})
    if config.task.base_query:
        return _with_base_queries(episodes, config.task.way)
    if _of_groups(config):
        return replace(episodes, query_mask=torch.rand(episodes.query_x.shape[:2]) < KEPT)
    return episodes


def _with_base_queries(episodes: Episodes, way: int) -> Episodes:
    """Append queries of base classes to those of novel classes; a task has all but `way` of the base classes."""
    num_tasks, _, num_features = episodes.query_x.shape
    base = torch.rand(num_tasks, BASE_CLASSES).argsort(-1)[:, way:]
    points = functional.normalize(torch.randn(num_tasks, BASE_QUERIES, num_features), dim=-1)
    labels = way + torch.randint(base.shape[1], (num_tasks, BASE_QUERIES))
    return replace(
        episodes,
        query_x=torch.cat((episodes.query_x, points), dim=1),
        query_y=torch.cat((episodes.query_y, labels), dim=1),
        query_mask=torch.ones(num_tasks, episodes.query_x.shape[1] + BASE_QUERIES, dtype=torch.bool),
        auxiliary={"base": base},
    )


def _of_groups(config: Config) -> bool:
    return "hierarchical_regression" in config.model["_target_"]
