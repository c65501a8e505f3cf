"""Images of the training classes that are kept out of training: what a test of base classes needs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import Bank
from pyro_metabayes.errors import UsageError


def held_out_rows(bank: Bank, per_class: int) -> Tensor:
    """Rows [B, per_class] of `per_class` inputs of each of the B training classes, drawn once and for all."""
    classes = bank.splits["train"]
    sizes = bank.class_sizes[classes]
    if bank.twin is not None and (bank.twin != torch.arange(len(bank.twin))).any():
        raise UsageError(
            "expected inputs without twins (two renderings of one source) for pretrain.holdout_per_class, which would "
            "part them, got a bank that has some; take other data, such as data=cifar_fs"
        )
    if not 0 < per_class < int(sizes.min()):
        raise UsageError(
            f"expected 0 < pretrain.holdout_per_class < {int(sizes.min())}, the inputs of the smallest training class, "
            f"got {per_class}"
        )
    keys = torch.rand(len(classes), int(sizes.max()), generator=Generator().manual_seed(0), dtype=torch.float64)
    within = keys.masked_fill(torch.arange(keys.shape[1]) >= sizes.unsqueeze(1), -1.0).topk(per_class).indices
    return bank.class_starts[classes].unsqueeze(1) + within


def halves(held_out: Tensor) -> dict[str, Tensor]:
    """Held-out rows [B, n] for the queries of base classes in validation and in the test, one half each."""
    middle = held_out.shape[1] // 2
    return {"val": held_out[:, :middle], "test": held_out[:, middle:]}


def without_rows(bank: Bank, rows: Tensor) -> Bank:
    """The bank of all other rows; `rows` are of training classes."""
    kept = torch.ones(len(bank.labels), dtype=torch.bool)
    kept[rows.flatten()] = False
    sizes = torch.bincount(bank.labels[kept], minlength=len(bank.class_sizes))
    views = None if bank.views is None else bank.views[:, kept[bank.rows("train")].to(bank.views.device)]
    inputs = bank.in_memory[kept.to(bank.inputs.device)]
    turned = None if bank.turned is None else bank.turned[kept.to(bank.turned.device)]
    return replace(bank, inputs=inputs, class_sizes=sizes, twin=None, views=views, turned=turned)
