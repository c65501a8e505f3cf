"""Do the pairs of the contract tests suit a new model, likelihood or head that no list names?"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from pyro.distributions import NegativeBinomial, OrderedLogistic, TorchDistribution
from torch import Tensor

from pyro_metabayes.models import generalised_regression, linear_regression, neural_regression, ordinal
from pyro_metabayes.models.heads import Cosine
from tests.covering import PARTS, covering, covering_first, every_two, goals
from tests.pairs import LEVELS, Pair, are_levels, every_pair, has_rows


class Counts(linear_regression.Model):
    """A model of negative binomial counts without the argument `noise`."""

    def __init__(self, prior: Any, num_targets: int, num_features: int, observe: str = "query") -> None:
        super().__init__(prior, num_targets, num_features, observe=observe)

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return NegativeBinomial(torch.tensor(2.0), logits=outputs).to_event(1)


class Levels(ordinal.Model):
    """An ordinal model with a scaled predictor."""

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return OrderedLogistic(2 * outputs, self.cutpoints).to_event(1)


class Flags(generalised_regression.Model):
    """A model of labels 0 and 1, or of counts with another family."""


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        (linear_regression.Model, {}, None),
        (Counts, {}, LEVELS - 1),
        (Levels, {}, LEVELS - 1),
        (Flags, {}, 1),
        (Flags, {"family": "poisson"}, LEVELS - 1),
    ],
    ids=str,
)
def test_a_new_model_is_tried_on_labels_of_its_likelihood(
    model: type, settings: dict[str, Any], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType(f"pyro_metabayes.models.planted_{model.__module__.split('.')[-1]}_{model.__name__}".lower())
    module.Model = model  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    pair = Pair("mean_field", model=module.__name__.rpartition(".")[2], model_settings=settings)
    episodes = pair.tasks(num_tasks=6)
    assert are_levels(episodes.query_y) == (expected is not None)
    if expected is not None:
        assert episodes.query_y.max() == expected and episodes.query_y.is_floating_point()
    assert pair.learner()(episodes)["loss"].isfinite()


class Sharp(Cosine):
    """A head outside models/heads."""


def test_a_head_in_another_file_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sharp, "__module__", neural_regression.__name__)
    monkeypatch.setattr(neural_regression, "Sharp", Sharp, raising=False)
    assert has_rows({"_target_": "models.neural_regression.Sharp"})
    assert not has_rows({"_target_": "models.neural_regression.Network"})


@pytest.mark.parametrize("together", [(), (("guide", "model"),), every_two()], ids=len)
def test_few_pairs_cover_what_all_of_them_do(together: list[tuple[str, str]]) -> None:
    """Every value of every part and setting, and the combinations that are asked for."""
    pairs = every_pair()
    few = covering(pairs, together)
    assert set().union(*(goals(pair, together) for pair in few)) == set().union(*(goals(it, together) for it in pairs))
    assert few == covering(pairs, together) and len(few) < 0.65 * len(pairs)
    for part in PARTS:
        assert {getattr(pair, part) for pair in few} == {getattr(pair, part) for pair in pairs}


def test_pairs_that_are_left_out_are_slow() -> None:
    pairs = every_pair()
    parameters = covering_first(pairs)
    assert [case if isinstance(case, Pair) else case.values[0] for case in parameters] == pairs
    left = [case for case in parameters if not isinstance(case, Pair)]
    assert 0 < len(left) < len(pairs) and all([mark.name for mark in case.marks] == ["slow"] for case in left)
