"""Export of the predictions of a learner to a file that runs without this package."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from pyro_metabayes.deployment.onnx_file import check_packages, onnx_bytes
from pyro_metabayes.deployment.program import Points, Program, recorded_noise
from pyro_metabayes.errors import UsageError
from pyro_metabayes.prediction.predicts import Predicts
from pyro_metabayes.storage.checkpoint import write_atomically
from pyro_metabayes.validation.structure import fits, words_of_shape

SIZES = (3, 4), (5, 9)  # (support points per class, queries) of the task that is traced, and of the task for a check
SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
CLOSE = {torch.float64: 1e-8}  # largest error of the check, relative and absolute; of other types 1e-4


def exported_program(
    learner: Predicts, num_classes: int, input_shape: Sequence[int], num_samples: int, seed: int
) -> ExportedProgram:
    """Trace the predictions of a learner with torch.export, for any number of support and query points.

    Args:
        learner: the learner.
        num_classes: number of classes of a task; 0 in a regression.
        input_shape: shape of one input.
        num_samples: number of draws of w.
        seed: seed of the draws.

    Raises:
        UsageError: the learner cannot be exported.
    """
    traced, other = (_points(learner, num_classes, input_shape, *size) for size in SIZES)
    support, query = Dim("support", min=1), Dim("query", min=1)
    with torch.no_grad(), pyro.validation_enabled(False), warnings.catch_warnings(action="ignore"):
        noise = recorded_noise(learner, (traced, other), num_classes, num_samples, seed)
        program = Program(learner, num_classes, num_samples, noise)
        try:
            exported = torch.export.export(program, traced, dynamic_shapes=({0: support}, {0: support}, {0: query}))
        except Exception as error:  # of many types, from torch
            raise _untraceable(learner, error) from error
        _check(exported.module()(*other), program(*other))
    return exported


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a program to a file NAME.pt2 for torch.export.load, or NAME.onnx.

    Raises:
        UsageError: ONNX lacks an operator that the program needs.
    """
    content = onnx_bytes(program) if path.suffix == ".onnx" else _archive(program)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def check_file(path: Path) -> None:
    """Raise a UsageError if a path does not end in .pt2 or .onnx, or if ONNX is needed but not installed."""
    if path.suffix not in (".pt2", ".onnx"):
        raise UsageError(f"expected a file NAME.pt2 (torch.export) or NAME.onnx, got '{path}'; choose one of these")
    if path.suffix == ".onnx":
        check_packages()


def check_input_shape(shape: Sequence[int | None], given: Any) -> Sequence[int]:
    """Determine the shape of one input of the exported program.

    Args:
        shape: input shape of the learner, with None for an axis of any size.
        given: input shape that the user chooses; None: the input shape of the learner.

    Raises:
        UsageError: the size of an axis is not known, or differs from the size in the learner.
    """
    if not isinstance(given, Sequence | None):
        raise UsageError(f"expected input_shape to be a list of sizes, such as [256], got {given!r}; pass a list")
    chosen = shape if given is None else list(given)
    sizes = [size for size in chosen if type(size) is int and size > 0]
    if len(sizes) < len(chosen) or not fits(sizes, shape):
        raise UsageError(
            f"expected an input_shape that this learner takes, {words_of_shape(shape)}, got "
            f"{'none' if given is None else chosen}; pass, for example, input_shape={[size or 256 for size in shape]}"
        )
    return sizes


def _points(learner: Predicts, num_classes: int, input_shape: Sequence[int], shot: int, queries: int) -> Points:
    """Generate a random task with inputs between 0 and 1, like pixels of images."""
    like, generator = next(learner.parameters(), torch.empty(0)), torch.Generator().manual_seed(0)

    def inputs(number: int, *shape: int) -> Tensor:
        return torch.rand(number, *shape, generator=generator).to(like)

    labels = torch.arange(num_classes, device=like.device).repeat(shot)
    if not num_classes:
        labels = inputs(shot, learner.num_targets).round()  # numbers that every likelihood takes
    return inputs(len(labels), *input_shape), labels, inputs(queries, *input_shape)


def _check(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise a UsageError if the program and the learner predict differently."""
    close = CLOSE.get(expected[0].dtype, 1e-4)
    for value, other in zip(got, expected, strict=True):
        if not torch.allclose(value, other, rtol=close, atol=close, equal_nan=True):
            difference = (value - other).abs().max().item()
            raise UsageError(
                f"expected the exported program to predict like the learner, got a difference of {difference:.2g} "
                "on a task of another size; use MetaLearner.task"
            )


def _untraceable(learner: Predicts, error: Exception) -> UsageError:
    guide = type(learner.guide).__module__.rpartition(".")[2]
    reason = SENTENCE_END.split(str(error).strip(), maxsplit=1)[0].rstrip(".!")
    return UsageError(
        f"expected a learner that torch.export can trace for any number of points, got guide={guide}, for which it "
        f"reports {type(error).__name__}: {reason}; use MetaLearner.task, or another guide (docs/export.md)"
    )


def _archive(program: ExportedProgram) -> bytes:
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()
