"""Images of the training classes that are held out of training, for the evaluation of base classes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.errors import UsageError


def held_out_rows(bank: Bank, per_class: int) -> Tensor:
    """Return the row numbers [B, per_class] of the held-out inputs of the B training classes.

    The inputs are drawn at random, with the same result in every run.
    """
    classes = bank.splits["train"]
    sizes = bank.class_sizes[classes]
    if bank.pairs and not bank.pairs.single.all():
        raise UsageError(
            "expected only different images for pretrain.holdout_per_class, got data with pairs of renderings of one "
            "image; use other data, such as data=cifar_fs"
        )
    if not 0 < per_class < int(sizes.min()):
        raise UsageError(
            f"expected pretrain.holdout_per_class to be at least 1 and less than {int(sizes.min())}, the size of the "
            f"smallest training class, got {per_class}"
        )
    keys = torch.rand(len(classes), int(sizes.max()), generator=Generator().manual_seed(0), dtype=torch.float64)
    positions = keys.masked_fill(torch.arange(keys.shape[1]) >= sizes.unsqueeze(1), -1.0).topk(per_class).indices
    return bank.class_starts[classes].unsqueeze(1) + positions


def halves(rows: Tensor) -> dict[str, Tensor]:
    """Divide the held-out row numbers [B, n] of B classes into one half for validation and one half for the test."""
    middle = rows.shape[1] // 2
    return {"val": rows[:, :middle], "test": rows[:, middle:]}


def without_rows(bank: Bank, rows: Tensor) -> Bank:
    """Return the bank without the given rows, which must belong to training classes."""
    rest = torch.ones(len(bank.labels), dtype=torch.bool)
    rest[rows.flatten()] = False
    sizes = torch.bincount(bank.labels[rest], minlength=len(bank.class_sizes))
    views = None if bank.views is None else bank.views[:, rest[bank.rows("train")].to(bank.views.device)]
    inputs = bank.in_memory[rest.to(bank.inputs.device)]
    auxiliary = {name: values[rest.to(values.device)] for name, values in bank.auxiliary.items()}
    return replace(bank, inputs=inputs, class_sizes=sizes, pairs=None, views=views, auxiliary=auxiliary)
