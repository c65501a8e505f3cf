"""Case `sampling`: drawing 64 tasks from 100 classes of 600 images, compared with a loop over tasks and images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from benchmarks.measure import Row, rows_of, time_interleaved
from benchmarks.setting import FEATURES, QUERY, SHOT, WAY, Size
from benchmarks.sib import ways as training
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.task_shape import BLOCK, TaskShape

CASE = f"drawing {BLOCK} tasks, 100 classes of 600"


def rows(size: Size) -> list[Row]:
    per_class = 20 if size.toy else 600
    step = training(2 if size.toy else BLOCK)["learner"]
    seconds = time_interleaved({"training step of sib": step, **ways(per_class)}, size.rounds(20))
    pairs = {"in one gather": "training step of sib", "loop over images": "in one gather"}
    pairs["loop, rows stacked"] = "in one gather"
    goals = {"in one gather": "<= 0.13", "loop over images": ">= 9"}
    return rows_of(CASE, seconds, pairs, goals)


def ways(per_class: int) -> dict[str, Callable[[], object]]:
    """Return the variants. "loop over images" fills a tensor image by image and permutes it, as released code does."""
    bank = _bank(per_class)
    draw = BankSampler(bank).sampler("train", TaskShape(WAY, SHOT, QUERY))
    generator, numbers = Generator().manual_seed(0), np.random.default_rng(0)
    of_class = [[(label, i) for i in range(per_class)] for label in range(100)]
    images = bank.inputs.view(100, per_class, FEATURES)

    def stacked() -> list[Tensor]:
        batches = []
        for _ in range(BLOCK):
            labels = numbers.choice(100, WAY, replace=False)
            rows = [label * per_class + numbers.choice(per_class, SHOT + QUERY, replace=False) for label in labels]
            batches.append(bank.inputs[torch.from_numpy(np.concatenate(rows))])
        return batches

    def looped() -> list[Tensor]:
        tasks = [_one_task(images, of_class, numbers) for _ in range(BLOCK)]
        return [torch.stack(parts) for parts in zip(*tasks, strict=True)]

    return {
        "in one gather": lambda: draw(generator).tasks(slice(BLOCK)),
        "loop over images": looped,
        "loop, rows stacked": stacked,
    }


def _bank(per_class: int) -> Bank:
    """Return a bank of 100 classes of random features. Every split has all classes."""
    return Bank(
        inputs=torch.randn(100 * per_class, FEATURES),
        class_sizes=torch.full((100,), per_class),
        splits={split: torch.arange(100) for split in ("train", "val", "test")},
        class_names=[str(i) for i in range(100)],
    )


def _one_task(
    images: Tensor, of_class: list[list[tuple[int, int]]], numbers: np.random.Generator
) -> tuple[Tensor, ...]:
    """Return a permuted task, filled image by image.

    Args:
        images: N feature vectors of size D per class [100, N, D].
        of_class: for each class, the indices (class, number) of its vectors in `images`.
        numbers: source of the random numbers.
    """
    support, query = torch.empty(WAY * SHOT, FEATURES), torch.empty(WAY * QUERY, FEATURES)
    support_y, query_y = torch.empty(WAY * SHOT, dtype=torch.long), torch.empty(WAY * QUERY, dtype=torch.long)
    for c, label in enumerate(numbers.choice(len(of_class), WAY, replace=False)):
        places = of_class[label]
        sampled = [places[i] for i in numbers.choice(len(places), SHOT + QUERY, replace=False)]
        for j, image in enumerate(sampled[:SHOT]):
            support[c * SHOT + j].copy_(images[image])
            support_y[c * SHOT + j] = c
        for j, image in enumerate(sampled[SHOT:]):
            query[c * QUERY + j].copy_(images[image])
            query_y[c * QUERY + j] = c
    order, query_order = torch.randperm(len(support)), torch.randperm(len(query))
    return support[order], support_y[order], query[query_order], query_y[query_order]
