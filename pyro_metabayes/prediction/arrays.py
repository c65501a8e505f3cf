"""Conversion of the user's arrays to the tensors of one task, with checks."""

from __future__ import annotations

import math
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


class SupportSet:
    """Support set of one task, converted from the user's arrays; also converts the query inputs of the task.

    Args:
        x: support inputs [S, *X] of any real type. In classification, integers with several axes *X are images, and
            are scaled to [0, 1].
        y: support labels. Classification: integers [S] from 0 to C - 1. Regression: numbers [S, Y], or [S] if Y = 1;
            S may be 0.
        input_shape: *X, the shape of one input of the learner.
        backbone: the network that receives the inputs.
        like: a tensor with the wanted device and dtype.
        num_targets: number Y of values in one label of a regression; 0: the labels are classes.

    Attributes:
        x: converted support inputs [S, *X].
        y: converted labels [S] or [S, Y].
        num_classes: number of classes C; 0 in a regression.

    Raises:
        UsageError: an array has another shape or type; a value is not finite or out of range; or a class has no
            support point.
    """

    def __init__(
        self, x: Array, y: Array, input_shape: Sequence[int | None], backbone: nn.Module, like: Tensor,
        num_targets: int = 0,
    ) -> None:  # fmt: skip
        self._shape, self._backbone, self._like = tuple(input_shape), backbone, like
        self._columns = _columns(x)
        self._images = not num_targets and len(input_shape) > 1
        if num_targets and not tensor_of(NAMES[0], x).numel():
            self._given = like.new_zeros(0, *(size or 0 for size in self._shape))
            self.x = self._given
        else:
            self._given = _checked(NAMES[0], x, self._shape)
            scaled = scaled_images(self._given, self._given)[0] if self._images else self._given
            self.x = _for(backbone, NAMES[0], scaled, like)
        if num_targets:
            self.y = _labels_of_numbers(y, len(self.x), num_targets).to(like)
        else:
            self.y = _labels(y, len(self.x)).to(like.device)
        self.num_classes = 0 if num_targets else int(self.y.max()) + 1

    def queries(self, x: Array) -> Tensor:
        """Convert query inputs [Q, *X] to a tensor of the same shape, in the same way as the support inputs.

        Raises:
            UsageError: the array has another shape or type; or a value is not finite or out of range.
        """
        _refuse_other_columns(self._columns, _columns(x))
        values = _checked(NAMES[1], x, self._shape)
        if len(self.x) and values.shape[1:] != self._given.shape[1:]:
            raise UsageError(
                f"expected inputs of shape {list(self._given.shape[1:])} in query_x, as in support_x, got "
                f"{list(values.shape[1:])}; encode query_x and support_x in the same way"
            )
        values = scaled_images(self._given, values)[1] if self._images else values
        return _for(self._backbone, NAMES[1], values, self._like)

    def task(self, queries: Tensor) -> Observed:
        """Return a batch of one task, with this support set and converted query inputs [Q, *X]."""
        support = self.x if len(self.x) else queries[:0]
        x, y, query_x = (value.unsqueeze(0) for value in (support, self.y, queries))
        return Observed(support_x=x, support_y=y, query_x=query_x, num_classes=self.num_classes)


def holds_inputs(x: Tensor, input_shape: tuple[int | None, ...]) -> bool:
    """Return whether x has shape [T, N, ..., *X]: T tasks of N points, with one or more inputs per point."""
    leading = x.dim() - len(input_shape)
    return leading >= 2 and fits(x.shape[leading:], input_shape)


def _refuse_other_columns(names: Sequence[str], others: Sequence[str]) -> None:
    """Raise a UsageError if support and query data frames have different columns, or another order of columns."""
    if names and others and names != others:
        place = next((i for i, pair in enumerate(zip(names, others, strict=False)) if len(set(pair)) > 1), -1)
        first = f"'{others[place]}' in place of '{names[place]}'"
        raise UsageError(
            "expected query_x to have the columns of support_x in the same order, got "
            f"{first if place >= 0 else f'{len(others)} in place of {len(names)}'}; pass query_x[support_x.columns]"
        )


def _columns(x: object) -> list[str]:
    """Return the column names of a data frame; [] for other arrays, and for names that are not text."""
    names = list(getattr(x, "columns", []))
    return names if all(isinstance(name, str) for name in names) else []


def _checked(name: str, x: Array, shape: tuple[int | None, ...]) -> Tensor:
    values = tensor_of(name, x)
    if not fits(values.shape[1:], shape) or not values.dim() or not len(values):
        expected = f"[N, {words_of_shape(shape)[1:]}, N >= 1"
        raise UsageError(f"expected {name} of shape {expected}, got {list(values.shape)}; reshape the array")
    finite = math.isfinite(values.sum().item())  # one pass over the values; the sum of finite values may overflow
    if not finite and len(bad := (~torch.isfinite(values)).flatten(1).any(1).nonzero()):
        raise UsageError(
            f"expected finite values in {name}, got NaN or infinity in {len(bad)} of {len(values)} rows; fix or remove "
            f"these rows (the first is row {bad[0].item()})"
        )
    return values


def _for(backbone: nn.Module, name: str, x: Tensor, like: Tensor) -> Tensor:
    """Convert inputs to the dtype and device of `like`, after the checks for this kind of backbone."""
    if isinstance(backbone, Backbone):
        if backbone.unit_range:
            refuse_other_range(name, x)
        if backbone.scale_invariant:
            return unit_scaled(name, x).to(like)
    return cast(name, x, like)


def _labels_of_numbers(y: Array, num_points: int, num_targets: int) -> Tensor:
    labels = tensor_of("support_y", y)
    labels = labels.unsqueeze(-1) if labels.dim() == 1 and num_targets == 1 else labels
    if not num_points:
        labels = labels.reshape(-1, num_targets)
    if labels.shape != (num_points, num_targets):
        raise UsageError(
            f"expected support_y of shape {[num_points, num_targets]}, got {list(labels.shape)}; pass one row of "
            "numbers for each row of support_x"
        )
    if bad := (~labels.isfinite()).any(1).sum().item():
        raise UsageError(
            f"expected finite numbers in support_y, got NaN or infinity in {bad} of {num_points} rows; "
            "remove these rows"
        )
    return labels


def _labels(y: Array, num_points: int) -> Tensor:
    labels = _numbers_of_classes(y)
    if labels.shape == (num_points,) and labels.min() < 0:
        raise UsageError(
            f"expected integers >= 0 in support_y, got {labels.min().item():g}; number the classes from 0, "
            "and remove points without a label"
        )
    if labels.is_floating_point() or labels.shape != (num_points,):
        raise UsageError(
            f"expected {num_points} integers >= 0 in support_y, got {labels.dtype} of shape {tuple(labels.shape)}; "
            "pass one integer label per support input"
        )
    present = labels.unique().tolist()
    if present != list(range(len(present))):
        raise UsageError(
            f"expected the classes 0, 1, 2, ... without a gap in support_y, got {present[:20]}; renumber the classes"
        )
    return labels.long()


def _numbers_of_classes(y: Array) -> Tensor:
    try:
        return tensor_of("support_y", y)
    except UsageError as error:
        raise UsageError(
            f"{error}. Labels must be integers from 0; numpy.unique(y, return_inverse=True)[1] converts class names to "
            "integers, and pyro_metabayes.FewShotClassifier accepts class names"
        ) from None
