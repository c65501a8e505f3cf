"""Tasks compute what depends on the support set alone once; later calls apply it to queries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.models.heads import Cosine, CosineOffset, Head, Linear
from pyro_metabayes.prediction.averages import log_mean_softmax

WAY, FEATURES, QUERIES = 3, 6, 8
GUIDES = {"proto": "flat", "maml": "flat", "mc": "gaussian", "savi": "conditional", "laplace": "gaussian"}


class WithoutQueries(TorchDispatchMode):
    """Records the operations that do not read the queries, except views of tensors."""

    def __init__(self, queries: Tensor) -> None:
        super().__init__()
        self.of_queries: list[Tensor] = [queries]  # kept, so that no other tensor gets the identity of one of them
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        read, made = _tensors((args, kwargs)), _tensors(value)
        if any(tensor is known for tensor in read for known in self.of_queries):
            self.of_queries += made
        elif not {_memory(tensor) for tensor in made} <= {_memory(tensor) for tensor in read}:
            self.names.append(str(func))
        return value


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def points(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A support point of each class, and queries."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(WAY, FEATURES, generator=generator), torch.randn(QUERIES, FEATURES, generator=generator)


def built(guide: str, head: str = "cosine") -> MetaLearner:
    if guide == "inductive":
        return MetaLearner.pretrained(guide)
    settings: dict[str, Any] = {"head": head, "objective": "elbo", "input_shape": [FEATURES], "num_classes": WAY}
    return MetaLearner.build("identity", guide, prior=GUIDES[guide], **settings)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "predict_spread"])
@pytest.mark.parametrize("head", ["cosine", "cosine_offset", "linear"])
@pytest.mark.parametrize("guide", [*GUIDES, "inductive"])
def test_a_call_computes_nothing_but_functions_of_its_queries(guide: str, head: str, method: str) -> None:
    support_x, query_x = points()
    task: Any = built(guide, head).task(support_x, range(WAY), num_samples=7)
    assert not task.depends_on_queries
    with WithoutQueries(query_x) as found:
        getattr(task, method)(query_x)
    assert len(found.of_queries) > 10 and found.names == []


@pytest.mark.parametrize("shape", [(3, WAY), (4, 3, WAY), (2, 4, 3, WAY)], ids=str)  # [..., T, C]
@pytest.mark.parametrize("head", [Cosine(7.0), CosineOffset(7.0), Linear(2.0)], ids=lambda head: type(head).__name__)
def test_a_head_at_fixed_weights_has_its_outputs(head: Head, shape: tuple[int, ...]) -> None:
    head = head.double()
    w = torch.randn(*shape, head.num_weights(FEATURES), dtype=torch.float64)
    w[..., 0, :] = 0  # a class without support points
    x = torch.nn.functional.normalize(torch.randn(3, QUERIES, FEATURES, dtype=torch.float64), dim=-1)
    torch.testing.assert_close(head.outputs_at(w)(x), head.outputs(w, x))


def test_a_derived_head_is_not_mistaken_for_its_base() -> None:
    class Cubed(Cosine):
        def outputs(self, w: Tensor, x: Tensor) -> Tensor:
            return super().outputs(w, x) ** 3

    w, x = torch.randn(2, WAY, FEATURES), torch.nn.functional.normalize(torch.randn(2, QUERIES, FEATURES), dim=-1)
    torch.testing.assert_close(Cubed().outputs_at(w)(x), Cosine().outputs(w, x) ** 3)


@pytest.mark.parametrize("distance", [1.0, 80.0, 300.0])  # exp(-300) is 0 in float32
@pytest.mark.parametrize("draws", [1, 9])
def test_logarithms_are_accurate_where_probabilities_are_not(distance: float, draws: int) -> None:
    logits = torch.randn(draws, WAY, QUERIES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[:, 0, 0] -= distance
    expected = logits.log_softmax(-2).logsumexp(0) - math.log(draws)
    assert expected[0, 0] < -distance / 2
    torch.testing.assert_close(log_mean_softmax(logits.float()).double(), expected, rtol=1e-6, atol=1e-6)


ROWS = points()[1].numpy()
GRADIENT = torch.tensor(ROWS, requires_grad=True)
SAME: dict[str, Any] = {
    "a list": ROWS.tolist(),
    "float64": ROWS.astype(np.float64),
    "float64, Fortran order": np.asfortranarray(ROWS.astype(np.float64)),
    "a tensor with gradient": GRADIENT,
    "a list of tensors": list(torch.tensor(ROWS)),
    "one query": ROWS[:1],
}


@pytest.mark.parametrize("guide", ["proto", "mc", "inductive"])
@pytest.mark.parametrize("name", SAME)
def test_queries_of_other_types(guide: str, name: str) -> None:
    task: Any = built(guide).task(points()[0], range(WAY))
    expected = task.predict_proba(ROWS)
    got = task.predict_proba(SAME[name])
    assert isinstance(got, np.ndarray) or not got.requires_grad
    np.testing.assert_allclose(got, expected[: len(got)], atol=1e-6)


WRONG: dict[str, tuple[Any, str]] = {
    "width": (ROWS[:, :5], r"in query_x, .*got \[(8, )?5\]|expected query_x .*got \[(8, )?5\]"),
    "NaN": (np.where(ROWS[2] == ROWS, np.nan, ROWS), "expected finite values in query_x, got NaN or infinity in 1 of"),
    "infinity": (np.where(ROWS[2] == ROWS, np.inf, ROWS), "expected finite values in query_x"),
    "infinities of both signs": (ROWS * np.array([np.inf, -np.inf] * 3), "got NaN or infinity in 8 of 8"),
    "no query": (ROWS[:0], r"expected query_x of shape .*got \[0, 6\]"),
    "one row": (ROWS[0], r"expected query_x of shape .*got \[6\]"),
    "text": (ROWS.astype(str), "expected numbers in query_x, got type <U"),
    "unequal rows": ([[1.0] * 6, [1.0] * 5], "expected an array of numbers in query_x, got rows of several lengths"),
    "none": (None, "expected an array of numbers in query_x"),
}


@pytest.mark.parametrize("guide", ["proto", "mc", "inductive"])
@pytest.mark.parametrize("name", WRONG)
def test_mistakes_have_one_line(guide: str, name: str) -> None:
    task: Any = built(guide).task(points()[0], range(WAY))
    query_x, message = WRONG[name]
    for method in (task.predict, task.predict_log_proba, task.predict_spread):
        with pytest.raises(UsageError, match=message) as found:
            method(query_x)
        assert "\n" not in str(found.value)
