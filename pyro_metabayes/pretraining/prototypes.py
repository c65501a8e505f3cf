"""The validation score of pretraining: few-shot accuracy of class means on validation classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.stream import generator_of
from pyro_metabayes.data.task_shape import BLOCK, TaskShape
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.pretraining.extraction import extract

WAY, QUERY = 5, 15


class PrototypeScore:
    """Accuracy of the nearest class mean (cosine) on fixed 5-way tasks of validation classes.

    A call with a backbone returns the accuracy, 0 to 1. It returns None if the validation split is too small for these
    tasks, or if the bank has domains with shared classes.

    Args:
        bank: the data set, with images as inputs.
        device: device of the backbone.
        shot: support points per class.
        per_class: largest number of images per class, which limits the time; None: all images.
        num_tasks: number of tasks, rounded up to a multiple of the block size of the task sampler.
    """

    def __init__(
        self, bank: Bank, device: torch.device, shot: int = 1, per_class: int | None = 100, num_tasks: int = 512
    ) -> None:
        self.bank, self.device, self.num_blocks = _validation_bank(bank, per_class), device, -(-num_tasks // BLOCK)
        sizes = self.bank.class_sizes
        self.shape = TaskShape(WAY, shot, QUERY)
        self.possible = len(sizes) >= WAY and int(sizes.min()) >= shot + QUERY and not bank.num_shared

    def __call__(self, backbone: nn.Module) -> float | None:
        if not self.possible:
            return None
        features = extract(backbone, self.bank.in_memory, self.device)
        draw = BankSampler(self.bank.with_inputs(features)).sampler("val", self.shape)
        hits = [_hits(draw(generator_of(0, "val", block)).tasks(slice(None))) for block in range(self.num_blocks)]
        return torch.cat(hits).mean().item()


def _validation_bank(bank: Bank, per_class: int | None) -> Bank:
    """Return a bank (data set) of the validation classes only, with at most `per_class` images per class."""
    labels, rows = bank.labels, bank.rows("val")
    within = rows - bank.class_starts[labels[rows]]
    rows = rows if per_class is None else rows[within < per_class]
    sizes = torch.bincount(labels[rows], minlength=len(bank.class_sizes))[bank.splits["val"]]
    none = torch.empty(0, dtype=torch.int64)
    splits = {"train": none, "val": torch.arange(len(sizes)), "test": none}
    names = [bank.class_names[int(number)] for number in bank.splits["val"]]
    return Bank(bank.in_memory[rows], sizes, splits, names)


def _hits(episodes: Episodes) -> Tensor:
    """Return [T, Q] for Q queries of T tasks: 1 if the nearest class mean is that of the true class, else 0."""
    members = functional.one_hot(episodes.support_y, episodes.num_classes).to(episodes.support_x.dtype)
    means = functional.normalize(members.mT @ episodes.support_x, dim=-1)
    return ((episodes.query_x @ means.mT).argmax(-1) == episodes.query_y).float()
