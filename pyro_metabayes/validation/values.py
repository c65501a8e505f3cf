"""Values of a batch of tasks: classes in their range, and finite numbers. Read where the host may wait."""

from __future__ import annotations

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasBaseClasses
from pyro_metabayes.validation.structure import check_inputs


def validate(data: object, model: nn.Module, num_features: int | None) -> None:
    """Checks of inputs and values where the validation of Pyro is on, as in the first step of a training.

    Args:
        data: the tasks, with features as inputs; what is no Observed is not checked.
        model: the model, whose parameters have the dtype and the device of the tasks.
        num_features: D; None where no learner has told it.

    Raises:
        UsageError: other inputs than the model takes, or a value that no model can use.
    """
    if not is_validation_enabled() or not isinstance(data, Observed):
        return
    if num_features is not None:
        check_inputs(data, (num_features,), next(model.parameters(), None), bytes_too=False)
    check_values(data, model)


def check_points(data: Observed) -> None:
    """Refuse tasks without a point that they need; masks are read on the host.

    A task of classes in a batch with support points must have one, and labelled tasks must have a query. A support set
    of no points at all (S = 0) is legal, and so is a class without support points, whose class mean is 0.

    Raises:
        UsageError: a task whose points are all masked, or no queries.
    """
    if data.query_x.is_meta:
        return
    if isinstance(data, Episodes) and (empty := int((~data.query_mask).all(1).sum())):
        raise UsageError(
            f"expected at least one query per task, unmasked in query_mask, got none in {empty} of {data.num_tasks} "
            "tasks; drop these tasks"
        )
    if data.num_classes and data.support_x.shape[1] and (empty := int((~data.support_mask).all(1).sum())):
        raise UsageError(
            f"expected at least one support point per task, unmasked in support_mask, got none in {empty} of "
            f"{data.num_tasks} tasks; drop these tasks, or give no task any support point (S = 0)"
        )


def check_values(data: Observed, model: object) -> None:
    """Refuse classes out of range and numbers that are not finite, of masked points too, since 0 times NaN is NaN.

    Args:
        data: the tasks, whose values are read on the host.
        model: whose base classes, if any, follow those of the task in the labels of the queries.

    Raises:
        UsageError: such a value.
    """
    base = model.num_base_classes if isinstance(model, HasBaseClasses) else 0
    most = {"support_y": data.num_classes, "query_y": data.num_classes and data.num_classes + base}
    flags = {name: flag for name in ("support_x", "query_x", *most) if (flag := _wrong(data, name, most)) is not None}
    if not flags or data.query_x.is_meta:  # a tensor on the meta device has no values
        return
    for name, number in zip(flags, torch.stack([flag.sum() for flag in flags.values()]).tolist(), strict=True):
        if number:
            raise UsageError(_message(name, getattr(data, name)[flags[name]], most.get(name, 0)))


def _wrong(data: Observed, name: str, most: dict[str, int]) -> Tensor | None:
    """Where the values of a tensor cannot be used; None for bytes, and for what is not there."""
    values = getattr(data, name, None)
    if values is None:
        return None
    if values.is_floating_point():
        return ~values.isfinite()
    return (values < 0) | (values >= most[name]) if name in most else None


def _message(name: str, wrong: Tensor, most: int) -> str:
    if wrong.is_floating_point():
        return f"expected finite values in {name}, of masked points too, got NaN or infinity in {len(wrong)}"
    return (
        f"expected classes from 0 to {most - 1} in {name}, of masked points too, got {wrong.unique()[:5].tolist()}; "
        "number the classes of each task 0, 1, ..., or set num_classes"
    )
