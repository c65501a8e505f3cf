"""Case `memory`: memory that a step of sib keeps for the backward pass, by number of tasks T and inner steps K."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.measure import Row, Spread
from benchmarks.setting import FEATURES, WAY, Size, learner, tasks
from benchmarks.sib_raw import RawSib

CASE = "sib, kept for backward"


def rows(size: Size) -> list[Row]:
    shapes = ((2, 1),) if size.toy else ((8, 3), (64, 1), (64, 3), (64, 10), (256, 3))
    return [row for number, steps in shapes for row in _measure(number, steps)]


def _measure(number: int, steps: int) -> list[Row]:
    data = tasks(number)
    task_storages = {tensor.untyped_storage().data_ptr() for tensor in (data.support, data.query, data.labels)}
    module = learner("sib", "Gaussian", of_guide={"posterior": "delta", "num_steps": steps})
    raw, episodes = RawSib(FEATURES, WAY, steps), data.episodes
    megabytes = {
        "raw batched": kept_megabytes(lambda: raw.loss(data.support, data.query, data.labels), task_storages),
        "learner": kept_megabytes(lambda: module(episodes)["loss"], task_storages),
    }
    against = Spread(*[megabytes["learner"] / megabytes["raw batched"]] * 3)
    return [
        Row(f"{CASE}, T={number}, K={steps}", "raw batched", Spread(*[megabytes["raw batched"]] * 3), "MB"),
        Row(
            f"{CASE}, T={number}, K={steps}",
            "learner",
            Spread(*[megabytes["learner"]] * 3),
            "MB",
            "raw batched",
            against,
        ),
    ]


def kept_megabytes(loss: object, task_storages: set[int]) -> float:
    """Return the megabytes of the distinct storages that autograd saves, without the storages of the tasks."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in task_storages:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()  # type: ignore[operator]  # the graph stays alive until every storage is counted
    del value
    return sum(sizes.values()) / 1e6
