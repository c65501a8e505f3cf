"""Checks of the values of a batch of tasks: class range and finite numbers. The checks read the values on the host."""

from __future__ import annotations

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import HasBaseClasses, has
from pyro_metabayes.validation.structure import check_inputs


def validate(data: object, model: nn.Module, num_features: int | None) -> None:
    """Check inputs and values of tasks if Pyro's validation is on, as in the first step of a training.

    Args:
        data: the tasks, with features as inputs. Objects of other classes than Observed are not checked.
        model: the model. The tasks must have the dtype and device of the parameters of the model.
        num_features: number of features of an input; None: not checked.

    Raises:
        UsageError: the inputs do not fit the model, a class is out of range, or a number is not finite.
    """
    if not is_validation_enabled() or not isinstance(data, Observed):
        return
    if num_features is not None:
        check_inputs(data, (num_features,), next(model.parameters(), None), bytes_too=False)
    check_values(data, model)


def check_points(data: Observed) -> None:
    """Check that every task has unmasked queries and support points. This reads the masks on the host.

    Every task of Episodes needs an unmasked query. In classification every task needs an unmasked support point, or
    all tasks of the batch have no support points. A class without support points is allowed.

    Raises:
        UsageError: all queries or all support points of a task are masked. Or, with unknown_mask, a task has no query
            of an unknown class, or a query of an unknown class is not masked in query_mask.
    """
    if data.query_x.is_meta:
        return
    if isinstance(data, Episodes) and (empty := int((~data.query_mask).all(1).sum())):
        raise UsageError(
            f"expected at least one unmasked query per task (query_mask), got none in {empty} of {data.num_tasks} "
            "tasks; remove these tasks"
        )
    if isinstance(data, Episodes) and data.unknown_mask is not None:
        _check_unknown(data.unknown_mask, data.query_mask)
    if data.num_classes and data.support_x.shape[1] and (empty := int((~data.support_mask).all(1).sum())):
        raise UsageError(
            f"expected at least one unmasked support point per task (support_mask), got none in {empty} of "
            f"{data.num_tasks} tasks; remove these tasks, or use no support points in any task (S = 0)"
        )


def _check_unknown(unknown: Tensor, labelled: Tensor) -> None:
    if both := int((unknown & labelled).sum()):
        raise UsageError(
            "expected queries of unknown classes (unknown_mask) to be masked in query_mask, got "
            f"{both} unmasked queries of unknown classes; pass query_mask & ~unknown_mask as query_mask"
        )
    if empty := int((~unknown).all(1).sum()):
        raise UsageError(
            f"expected at least one query of an unknown class per task, got none in {empty} of {len(unknown)} tasks; "
            "pass unknown_mask=None for tasks without unknown classes"
        )


def check_values(data: Observed, model: object) -> None:
    """Check that class labels are in range and numbers are finite.

    Masked points are checked too: a mask multiplies by 0, and 0 times NaN is NaN.

    Args:
        data: the tasks, whose values are read on the host.
        model: the model. If it also predicts base classes (classes of the training), query labels may be base classes.
            With C classes per task, the base classes have the labels C, C + 1, ...

    Raises:
        UsageError: a class is out of range, or a number is not finite.
    """
    base = model.num_base_classes if has(model, HasBaseClasses) else 0
    most = {"support_y": data.num_classes, "query_y": data.num_classes and data.num_classes + base}
    flags = {name: flag for name in ("support_x", "query_x", *most) if (flag := _wrong(data, name, most)) is not None}
    if not flags or data.query_x.is_meta:  # a tensor on the meta device has no values
        return
    for name, number in zip(flags, torch.stack([flag.sum() for flag in flags.values()]).tolist(), strict=True):
        if number:
            raise UsageError(_message(name, getattr(data, name)[flags[name]], most.get(name, 0)))


def _wrong(data: Observed, name: str, most: dict[str, int]) -> Tensor | None:
    """Return a mask of the invalid values of a tensor. None if the tensor is absent or holds integer inputs."""
    values = getattr(data, name, None)
    if values is None:
        return None
    if values.is_floating_point():
        return ~values.isfinite()
    return (values < 0) | (values >= most[name]) if name in most else None


def _message(name: str, wrong: Tensor, most: int) -> str:
    if wrong.is_floating_point():
        return f"expected finite values in {name}, also for masked points, got NaN or infinity in {len(wrong)} entries"
    return (
        f"expected classes from 0 to {most - 1} in {name}, also for masked points, got {wrong.unique()[:5].tolist()}; "
        "number the classes of each task 0, 1, ..., or set num_classes"
    )
