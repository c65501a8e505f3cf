"""Arguments that no prediction can use are refused with a one-line message that states the wrong value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pyro.infer import Predictive

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from tests.pairs import Pair, random_tasks, stream_of

PROTO = Pair("proto", "flat").learner()
X = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=-1).numpy()
Y = [0, 1, 2, 0, 1, 2]
NAMES = list("abcde")


def test_columns_in_another_order_are_refused() -> None:
    support, query = pd.DataFrame(X, columns=NAMES), pd.DataFrame(X, columns=NAMES)
    with pytest.raises(UsageError, match=r"same order, got 'e' in place of 'a'; pass query_x\[support_x.columns\]"):
        PROTO.predict(support, Y, query[NAMES[::-1]])
    same = PROTO.predict(support, Y, query[NAMES[::-1]][support.columns]).probabilities
    for other in (query, X, pd.DataFrame(X)):  # an array and numbered columns say nothing about the order
        assert torch.equal(PROTO.predict(support, Y, other).probabilities, same)


@pytest.mark.parametrize("seed", ["a", 2**70, -(2**64), 1.5, None, True])
def test_a_seed_is_an_integer_that_torch_takes(seed: Any) -> None:
    with pytest.raises(UsageError, match=r"expected seed to be an integer from -2\^63 to 2\^64 - 1, got"):
        PROTO.predict(X, Y, X, seed=seed)
    with pytest.raises(UsageError, match=r"expected seed to be an integer from -2\^63 to 2\^64 - 1, got"):
        evaluate(PROTO, stream_of(random_tasks()), EvalSettings(tasks=3), seed=seed)


def test_a_numpy_integer_is_a_seed() -> None:
    learner = Pair("savi", "conditional").learner()
    one, other = (learner.predict(X, Y, X, seed=seed).probabilities for seed in (np.int64(3), 3))
    assert torch.equal(one, other)


def test_a_negative_label_is_named() -> None:
    with pytest.raises(UsageError, match="expected integers >= 0 in support_y, got -1; number"):
        PROTO.predict(X, [0, 1, 2, 0, 1, -1], X)


def test_one_class_is_not_a_task_to_train_on() -> None:
    learner: MetaLearner = Pair("sib", settings={"num_steps": 1, "step_size": 0.1}).learner()
    with pytest.raises(UsageError, match="got 1; provide support points of all 3 classes"):
        learner.predict(X, [0] * 6, X)


def test_predictive_with_a_flat_prior_says_what_to_take() -> None:
    tasks = random_tasks().observed()
    with pytest.raises(UsageError, match=r"got a flat prior; use learner\.posterior_predictive") as error:
        Predictive(PROTO.model, guide=PROTO.guide, num_samples=2)(tasks)
    assert "\n" not in str(error.value)
    assert PROTO.posterior_predictive(tasks, 2)[1].batch_shape[1:] == tasks.query_mask.shape
