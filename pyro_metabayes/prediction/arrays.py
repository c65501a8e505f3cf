"""Converts arrays of users to the tensors of one task, with checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_metabayes.backbone import Backbone
from pyro_metabayes.episodes import Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prediction.images import refuse_other_range, scaled_images
from pyro_metabayes.prediction.scale import cast, unit_scaled
from pyro_metabayes.prediction.tensors import Array, tensor_of
from pyro_metabayes.validation.structure import fits, words_of_shape

NAMES = "support_x", "query_x"


def task_of(
    support_x: Array,
    support_y: Array,
    query_x: Array,
    input_shape: Sequence[int | None],
    backbone: nn.Module,
    like: Tensor,
) -> Observed:
    """One classification task, as a batch with T = 1.

    Args:
        support_x: support inputs [S, *X] of any real type. Integers are images if *X has several axes, and are scaled
            to [0, 1].
        support_y: classes of the support inputs [S], integers from 0 to C - 1.
        query_x: query inputs [Q, *X].
        input_shape: *X, for which the learner was built.
        backbone: the network to which the inputs are passed.
        like: a tensor with the device and the dtype of the result.

    Raises:
        UsageError: an array has another shape or type, a value is not finite or out of range, or a class has no support
            point.
    """
    _refuse_other_columns(support_x, query_x)
    inputs = [_checked(name, x, tuple(input_shape)) for name, x in zip(NAMES, (support_x, query_x), strict=True)]
    if len(input_shape) > 1:
        inputs = list(scaled_images(*inputs))
    support, query = (_for(backbone, name, x, like) for name, x in zip(NAMES, inputs, strict=True))
    labels = _labels(support_y, len(support)).to(like.device)
    return Observed(
        support_x=support.unsqueeze(0),
        support_y=labels.unsqueeze(0),
        query_x=query.unsqueeze(0),
        num_classes=int(labels.max()) + 1,
    )


def task_of_numbers(
    support_x: Array, support_y: Array, query_x: Array, input_shape: Sequence[int | None], num_targets: int,
    backbone: nn.Module, like: Tensor,
) -> Observed:  # fmt: skip
    """As `task_of`, for a regression with labels [S, Y], or [S] if Y = 1; S may be 0.

    Raises:
        UsageError: an array has another shape or type, or a value is not finite.
    """
    shape = tuple(input_shape)
    query = _for(backbone, NAMES[1], _checked(NAMES[1], query_x, shape), like)
    support = query[:0]
    if len(support_x):
        support = _for(backbone, NAMES[0], _checked(NAMES[0], support_x, shape), like)
    labels = tensor_of("support_y", support_y).to(like)
    labels = labels.unsqueeze(-1) if labels.dim() == 1 and num_targets == 1 else labels
    if not len(support):
        labels = labels.reshape(-1, num_targets)
    if labels.shape != (len(support), num_targets) or not labels.isfinite().all():
        raise UsageError(
            f"expected support_y to hold finite numbers of shape {[len(support), num_targets]}, got "
            f"{list(labels.shape)}; remove rows without a label"
        )
    return Observed(support_x=support.unsqueeze(0), support_y=labels.unsqueeze(0), query_x=query.unsqueeze(0))


def holds_inputs(x: Tensor, input_shape: tuple[int | None, ...]) -> bool:
    """Whether a tensor has the shape [T, N, ..., *X] of one or several inputs per point."""
    leading = x.dim() - len(input_shape)
    return leading >= 2 and fits(x.shape[leading:], input_shape)


def _refuse_other_columns(support: object, query: object) -> None:
    """Raise a UsageError if support and query are data frames with different columns, or a different order of them."""
    names, others = _columns(support), _columns(query)
    if names and others and names != others:
        place = next((i for i, pair in enumerate(zip(names, others, strict=False)) if len(set(pair)) > 1), -1)
        first = f"'{others[place]}' in place of '{names[place]}'"
        raise UsageError(
            "expected the columns of support_x, in their order, in query_x, got "
            f"{first if place >= 0 else f'{len(others)} in place of {len(names)}'}; use query_x[support_x.columns]"
        )


def _columns(x: object) -> list[str]:
    """The column names of a data frame; [] for other arrays, and for columns without text names."""
    names = list(getattr(x, "columns", []))
    return names if all(isinstance(name, str) for name in names) else []


def _checked(name: str, x: Array, shape: tuple[int | None, ...]) -> Tensor:
    values = tensor_of(name, x)
    if not fits(values.shape[1:], shape) or not values.dim() or not len(values):
        expected = f"[N, {words_of_shape(shape)[1:]}, N >= 1"
        raise UsageError(f"expected {name} of shape {expected}, got {list(values.shape)}")
    bad = (~torch.isfinite(values)).flatten(1).any(1).sum().item()
    if bad:
        raise UsageError(f"expected finite values in {name}, got NaN or infinity in {bad} of {len(values)} rows")
    return values


def _for(backbone: nn.Module, name: str, x: Tensor, like: Tensor) -> Tensor:
    """Inputs with the dtype and device of `like`, after the checks that the attributes of a Backbone require."""
    if isinstance(backbone, Backbone):
        if backbone.unit_range:
            refuse_other_range(name, x)
        if backbone.scale_invariant:
            return unit_scaled(name, x).to(like)
    return cast(name, x, like)


def _labels(y: Array, num_points: int) -> Tensor:
    labels = _numbers_of_classes(y)
    if labels.shape == (num_points,) and labels.min() < 0:
        raise UsageError(
            f"expected support_y to hold integers >= 0, got {labels.min().item():g}; number the classes 0, 1, "
            "..., and remove points without a label"
        )
    if labels.is_floating_point() or labels.shape != (num_points,):
        raise UsageError(
            f"expected support_y to hold {num_points} integers >= 0, one for each support input, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    present = labels.unique().tolist()
    if present != list(range(len(present))):
        raise UsageError(
            f"expected support inputs of the classes 0, 1, 2, ... without a gap, got labels {present[:20]}; "
            "renumber the classes"
        )
    return labels.long()


def _numbers_of_classes(y: Array) -> Tensor:
    try:
        return tensor_of("support_y", y)
    except UsageError as error:
        raise UsageError(
            f"{error}. Classes are 0 to C - 1 here; pyro_metabayes.FewShotClassifier accepts names, and "
            "numpy.unique(y, return_inverse=True)[1] converts names to numbers"
        ) from None
