"""Case 11: predictions and training steps of guides with 64 tasks, beside raw batched PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.guides import transductive as raw
from benchmarks.measure import Row, Way, rows_of, time_interleaved
from benchmarks.setting import Size, Tasks, tasks
from pyro_metabayes import MetaLearner

GOAL, FEATURES, SHORT = "<= 1.30", 256, 20  # SHORT: inner steps of tim, whose 1000 would take minutes
TIM = {"num_steps": SHORT}
# name of the row: guide, settings of guide, head, model, function in raw PyTorch
TRANSDUCTIVE: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, Callable[..., Tensor]]] = {
    "soft_kmeans": ("soft_kmeans", {}, {"_target_": "models.heads.Linear"}, "few_shot_classifier", raw.soft_kmeans),
    "pt_map": ("pt_map", {}, {"_target_": "models.heads.Linear"}, "few_shot_classifier", raw.pt_map),
    "laplacian_shot": (
        "laplacian_shot",
        {},
        {"_target_": "models.heads.Linear"},
        "laplacian_shot",
        raw.laplacian_shot,
    ),
    "bd_cspn": ("bd_cspn", {}, {"_target_": "models.heads.CosineOffset"}, "few_shot_classifier", raw.bd_cspn),
    "tim": (
        "tim",
        TIM,
        {"_target_": "models.heads.Linear", "scale": 7.5},
        "few_shot_classifier",
        partial(raw.tim, num_steps=SHORT, alpha=1.0, marginal=10.0),
    ),
    "alpha_tim": (
        "tim",
        {**TIM, "alpha": 2.0, "marginal_weight": 1.0},
        {"_target_": "models.heads.Linear", "scale": 7.5},
        "few_shot_classifier",
        partial(raw.tim, num_steps=SHORT, alpha=2.0, marginal=1.0),
    ),
    "paddle": (
        "paddle",
        {"temperature": 60.0},
        {"_target_": "models.heads.Linear"},
        "few_shot_classifier",
        raw.paddle,
    ),
}


def rows(size: Size) -> list[Row]:
    (number,) = size.tasks(64)
    table, data = [], tasks(number, features=FEATURES)
    for name in TRANSDUCTIVE:
        seconds = time_interleaved(transductive_ways(name, data), size.rounds(10))
        case = f"{name} (delta), prediction, T={number}"
        table += rows_of(case, seconds, {"learner": "raw batched"}, {"learner": GOAL})
    return table


def transductive_ways(name: str, data: Tasks) -> dict[str, Way]:
    """Logits of all queries, in raw PyTorch and by the learner."""
    guide, settings, head, model, function = TRANSDUCTIVE[name]
    module, observed = learner(guide, settings, head, model).to(data.query.dtype), data.episodes.observed()
    return {
        "raw batched": torch.no_grad()(lambda: function(data.support, data.query)),
        "learner": torch.no_grad()(lambda: module.predictive(observed, 1).logits[0]),  # type: ignore[attr-defined]
    }


def learner(
    guide: str, settings: dict[str, Any], head: dict[str, Any], model: str = "few_shot_classifier"
) -> MetaLearner:
    """A classifier with a flat prior."""
    return MetaLearner.from_specification(
        {
            "backbone": {"_target_": "models.backbones.identity.Backbone", "normalise": False},
            "head": head,
            "prior": {"_target_": "models.priors.Flat"},
            "model": {"_target_": f"models.{model}.Model"},
            "guide": {"_target_": f"guides.{guide}.Guide", **settings},
            "objective": {"_target_": "pyro_metabayes.objectives.elbo.Elbo"},
            "input_shape": [FEATURES],
            "num_classes": 5,
            "particles": 1,
        }
    )
