"""Case `guides`: predictions and training steps of guides with 64 tasks, compared with raw batched PyTorch.

mc and savi are in the case `conditional`, sib in the cases `sib` and `published`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import gradient
from benchmarks.guides import transductive as raw
from benchmarks.guides.adaptive import RawLaplace, RawLeo, llama_loss
from benchmarks.measure import Row, Way, rows_of, time_interleaved
from benchmarks.setting import WAY, Size, Tasks, make_step, tasks
from pyro_metabayes import MetaLearner

GOAL, FEATURES, SHORT = "<= 1.30", 256, 20  # SHORT: inner steps of tim; its default of 1000 would take minutes
LINEAR, OFFSET, HALF_TAU = ({"_target_": "models.heads.Linear"}, {"_target_": "models.heads.CosineOffset"}, 7.5)
TIM = LINEAR | {"scale": HALF_TAU}
# by name of the row: guide, its settings, head, function in raw PyTorch
TRANSDUCTIVE: dict[str, tuple[str, dict[str, Any], dict[str, Any], Callable[..., Tensor]]] = {
    "soft_kmeans": ("soft_kmeans", {}, LINEAR, raw.soft_kmeans),
    "pt_map": ("pt_map", {}, LINEAR, raw.pt_map),
    "laplacian_shot": ("laplacian_shot", {}, LINEAR, raw.laplacian_shot),
    "bd_cspn": ("bd_cspn", {}, OFFSET, raw.bd_cspn),
    "tim": ("tim", {"num_steps": SHORT}, TIM, partial(raw.tim, num_steps=SHORT, alpha=1.0, marginal=10.0)),
    "alpha_tim": (
        "tim",
        {"num_steps": SHORT, "alpha": 2.0, "marginal_weight": 1.0},
        TIM,
        partial(raw.tim, num_steps=SHORT, alpha=2.0, marginal=1.0),
    ),
    "paddle": ("paddle", {"temperature": 60.0}, LINEAR, raw.paddle),
}
COSINE, GAUSSIAN = {"_target_": "models.heads.Cosine"}, {"_target_": "models.priors.Gaussian", "scale": 0.03}


def rows(size: Size) -> list[Row]:
    (number,) = size.tasks(64)
    table, data = [], tasks(number, features=FEATURES)
    cases = {f"{name} (delta), prediction": transductive_ways(name, data) for name in TRANSDUCTIVE}
    cases |= {
        "laplace (low-rank precision), training step": laplace_ways(data),
        "leo (normal), training step": leo_ways(data),
        "maml (delta), meta-step on sinusoids": sinusoid_ways("maml", number),
        "llama (delta), meta-step on sinusoids": sinusoid_ways("llama", number),
    }
    for name, ways in cases.items():
        seconds = time_interleaved(ways, size.rounds(10))
        table += rows_of(f"{name}, T={number}", seconds, {"learner": "raw batched"}, {"learner": GOAL})
    return table


def transductive_ways(name: str, data: Tasks) -> dict[str, Way]:
    """Return functions that compute the logits of all queries, in raw PyTorch and by the learner."""
    guide, settings, head, function = TRANSDUCTIVE[name]
    model = "laplacian_shot" if name == "laplacian_shot" else "few_shot_classifier"
    module = learner(guide, settings, head, model).to(data.query.dtype)
    observed = data.episodes.observed()
    return {
        "raw batched": torch.no_grad()(lambda: function(data.support, data.query)),
        "learner": torch.no_grad()(lambda: module.predictive(observed, 1).logits[0]),  # type: ignore[attr-defined]
    }


def laplace_ways(data: Tasks) -> dict[str, Way]:
    module = learner("laplace", {"learn_step_size": True}, COSINE, prior=GAUSSIAN)
    return _steps(RawLaplace(FEATURES), module, data)


def leo_ways(data: Tasks) -> dict[str, Way]:
    return _steps(RawLeo(FEATURES, WAY), learner("leo", {}, None, "leo", None), data)


def _steps(raw_module: nn.Module, module: MetaLearner, data: Tasks) -> dict[str, Way]:
    """Return training steps with Adam."""
    episodes, loss = data.episodes, raw_module.loss
    arguments = data.support, data.query, data.labels
    return {
        "raw batched": make_step(raw_module.parameters(), lambda: loss(*arguments), adam=True),  # type: ignore[operator]
        "learner": make_step(module.parameters(), lambda: module(episodes)["loss"], adam=True),
    }


def sinusoid_ways(guide: str, number: int, num_steps: int = 1) -> dict[str, Way]:
    """Return meta-steps with one inner step, as in `benchmarks/gradient.py`."""
    episodes = gradient.tasks(number)
    points = episodes.support_x, episodes.support_y, episodes.query_x, episodes.query_y
    theta = gradient.initial()
    step = make_step(theta, lambda: llama_loss(theta, *points, num_steps), adam=True)
    return {
        "raw batched": step if guide == "llama" else gradient.batched_step(episodes, num_steps)[0],
        "learner": gradient.learner_step(episodes, num_steps, guide)[0],
    }


def learner(
    guide: str,
    settings: dict[str, Any],
    head: dict[str, Any] | None,
    model: str = "few_shot_classifier",
    prior: dict[str, Any] | None = {"_target_": "models.priors.Flat"},  # noqa: B006
) -> MetaLearner:
    """Build a few-shot classifier on features."""
    parts = {"head": head, "prior": prior}
    return MetaLearner.from_specification(
        {
            "backbone": {"_target_": "models.backbones.identity.Backbone", "normalise": False},
            "model": {"_target_": f"models.{model}.Model"},
            "guide": {"_target_": f"guides.{guide}.Guide", **settings},
            "objective": {"_target_": "pyro_metabayes.objectives.elbo.Elbo"},
            "input_shape": [FEATURES],
            "num_classes": WAY,
            "particles": 1,
        }
        | parts
    )
