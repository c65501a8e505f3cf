"""Tasks whose support set is encoded once: do they predict as `MetaLearner.predict` does, and say what is wrong?"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from pyro_metabayes import MetaLearner, NumberPrediction, UnfamiliarTasks, UsageError
from pyro_metabayes.deployment.tasks import ClassTask, NumberTask
from pyro_metabayes.inference.capabilities import HasBaseClasses
from pyro_metabayes.models.backbones import conv4
from pyro_metabayes.validation.trained_on import TaskRange
from tests.covering import covering
from tests.pairs import Pair, random_tasks
from tests.test_contract import PAIRS

NAMES = np.array(["owl", "fox", "cat"])  # not in alphabetical order


def can_be_a_task(pair: Pair) -> bool:
    return pair.model != "lwof" and not pair.settings.get("rotation_step_size")


def arrays(pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support set without its masked points, and queries."""
    task = pair.tasks(1).observed()
    mask = task.support_mask[0]
    return task.support_x[0][mask].numpy(), task.support_y[0][mask].numpy(), task.query_x[0].numpy()


@pytest.mark.parametrize("pair", covering([pair for pair in PAIRS if can_be_a_task(pair)], ()), ids=str)
def test_a_task_predicts_as_the_learner_does(pair: Pair) -> None:
    learner, (support_x, support_y, query_x) = pair.learner(), arrays(pair)
    expected = learner.predict(support_x, support_y, query_x, num_samples=7, seed=3)
    task = learner.task(support_x, support_y, num_samples=7, seed=3)
    assert task.depends_on_queries == learner.guide.transductive
    for _ in range(2):  # a call leaves nothing behind
        if isinstance(task, NumberTask):
            got = task.predict(query_x)
            assert isinstance(got, NumberPrediction)
            pairs = list(zip(got, expected, strict=True))
        else:
            proba, log_proba = task.predict_proba(query_x), task.predict_log_proba(query_x)
            pairs = list(zip((proba, task.predict_spread(query_x)), expected, strict=True))
            np.testing.assert_allclose(np.exp(log_proba), proba, atol=2e-6)
            assert (task.predict(query_x) == proba.argmax(-1)).all()
        for value, other in pairs:
            assert isinstance(value, np.ndarray)
            np.testing.assert_allclose(value, other.detach().numpy(), atol=2e-6, rtol=1e-5)


def three_classes(seed: int = 0, dimension: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two support points of each of three classes, their labels, and 24 queries."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, dimension))
    support, query = (centres.repeat(n, 0) + rng.normal(size=(3 * n, dimension)) / 2 for n in (2, 8))
    return support, np.arange(3).repeat(2), query


@pytest.mark.parametrize("name", ["inductive", "transductive"])
@pytest.mark.parametrize("dimension", [6, 40])  # fewer and more features than points
def test_the_learners_that_ship(name: str, dimension: int) -> None:
    learner = MetaLearner.pretrained(name).double()
    support_x, support_y, query_x = three_classes(dimension=dimension)
    support_x[1], query_x[2] = 0, 0  # rows of zeros have no direction
    task = learner.task(support_x, NAMES[support_y])
    assert isinstance(task, ClassTask)
    assert task.classes.tolist() == ["cat", "fox", "owl"]
    expected = learner.predict(support_x, support_y, query_x).probabilities[:, [2, 1, 0]].numpy()
    proba = task.predict_proba(query_x)
    np.testing.assert_allclose(proba, expected, atol=1e-10)
    assert (task.predict(query_x) == task.classes[proba.argmax(-1)]).all()
    alone = np.concatenate([task.predict_proba(query_x[i : i + 1]) for i in range(len(query_x))])
    difference = np.abs(alone - proba).max()
    assert task.depends_on_queries == (name == "transductive")
    assert difference > 1e-3 if task.depends_on_queries else difference < 1e-10


def test_the_posterior_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("mean_field", "sib"):
        learner = Pair(name).learner()
        posterior, embed = learner.guide.posterior, learner.backbone.forward
        monkeypatch.setattr(learner.guide, "posterior", lambda data, of=posterior: (calls.append("q"), of(data))[1])
        monkeypatch.setattr(learner.backbone, "forward", lambda x, of=embed: (calls.append(f"{len(x)}"), of(x))[1])
        support_x, support_y, query_x = arrays(Pair(name))
        task = learner.task(support_x, support_y)
        task.predict(query_x), task.predict(query_x[:2])
        of_queries = [f"{len(query_x)}", "2"]
        expected = ["6", "q", *of_queries] if name == "mean_field" else ["6", of_queries[0], "q", of_queries[1], "q"]
        assert calls == expected, name
        calls.clear()


def test_tensors_give_tensors_and_tasks_can_be_pickled() -> None:
    learner = Pair("savi", "conditional").learner()
    support_x, support_y, query_x = arrays(Pair("savi", "conditional"))
    task = learner.task(torch.as_tensor(support_x), NAMES[support_y].tolist(), num_samples=5)
    proba = task.predict_proba(torch.as_tensor(query_x))
    assert isinstance(proba, torch.Tensor) and not proba.requires_grad
    again = pickle.loads(pickle.dumps(task))
    np.testing.assert_array_equal(again.predict_proba(query_x), proba.numpy())
    np.testing.assert_array_equal(again.predict(query_x), task.predict(query_x))
    number = Pair("exact", model="linear_regression")
    support_x, support_y, query_x = arrays(number)
    got = number.learner().task(support_x, support_y).predict(torch.as_tensor(query_x))
    assert all(isinstance(value, torch.Tensor) for value in got)


def test_a_group_without_points() -> None:
    pair = Pair("exact", model="linear_regression")
    learner, (_, _, query_x) = pair.learner(), arrays(pair)
    expected = learner.predict([], [], query_x)
    for value, other in zip(learner.task([], []).predict(query_x), expected, strict=True):
        np.testing.assert_allclose(value, other.detach().numpy(), rtol=1e-6)


def test_queries_have_the_scale_of_the_support_images() -> None:
    learner = MetaLearner.build(
        conv4.Backbone((1, 16, 16), num_filters=4), "proto", objective="elbo", prior="flat", num_classes=3
    )
    rng = np.random.default_rng(0)
    support_x, query_x = (rng.integers(0, high, size=(6, 1, 16, 16)) for high in (1000, 200))
    expected = learner.predict(support_x, [0, 1, 2, 0, 1, 2], query_x).probabilities.detach()
    got = learner.task(support_x, [0, 1, 2, 0, 1, 2]).predict_proba(query_x)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    with pytest.raises(UsageError, match="expected integers from 0 to 65535 in query_x"):
        learner.task(support_x, [0, 1, 2, 0, 1, 2]).predict(query_x + 70000)


def test_a_transductive_task_warns_where_the_caller_is() -> None:
    pair = Pair("sib")
    learner, (support_x, support_y, query_x) = pair.learner(), arrays(pair)
    learner.trained_on = TaskRange.of(random_tasks(shot=20))
    for name in ("predict", "predict_proba", "predict_log_proba", "predict_spread"):
        with pytest.warns(UnfamiliarTasks, match="2 shots") as found:
            getattr(learner.task(support_x, support_y), name)(query_x)
        assert found[0].filename == __file__, name


X, Y, QUERY = three_classes()
FULL = {"support_x": X, "support_y": Y, "query_x": QUERY}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query_x": QUERY[:, :5]}, r"expected query_x of shape \[N, 6\], N >= 1, got \[24, 5\]"),
        ({"query_x": QUERY[0]}, r"expected query_x of shape \[N, 6\], N >= 1, got \[6\]"),
        ({"query_x": QUERY[:0]}, r"expected query_x of shape \[N, 6\], N >= 1, got \[0, 6\]"),
        ({"query_x": np.where(QUERY[3] == QUERY, np.nan, QUERY)}, "expected finite values in query_x, got NaN .* 1 of"),
        ({"query_x": QUERY.astype(str)}, "expected numbers in query_x, got type <U"),
        ({"query_x": QUERY * 1j}, "expected real numbers in query_x, got complex"),
        ({"query_x": QUERY * 0}, "expected rows with a nonzero value in query_x"),
        ({"support_x": X[:, :5]}, r"expected support_x of shape \[N, 6\]"),
        ({"support_x": X[:0], "support_y": Y[:0]}, r"expected at least 2 classes in support_y, got \[\]"),
        ({"support_x": X * np.inf}, "expected finite values in support_x"),
        ({"support_y": Y[:4]}, r"a class name for each of the 6 rows of support_x, got support_y of shape \[4\]"),
        ({"support_y": np.eye(3)[Y]}, "a class name for each of the 6 rows"),
        ({"support_y": Y + 0.5}, "expected class names in support_y, such as text or integers, got numbers with"),
        ({"support_y": [0, 1, 2, 0, 1, None]}, "expected a label in every row of support_y, got 1 missing"),
        ({"support_y": np.array(["a", "b", 2, 0, 1, 0], dtype=object)}, "expected labels of one type in support_y"),
        ({"support_y": ["a", "b", 2, 0, 1.5, 0]}, "expected labels of one type in support_y, got text and other types"),
        ({"support_y": ["a", "b", "c", "a", "b", np.nan]}, "expected a label in every row of support_y, got 1 missing"),
        ({"support_y": Y * 0}, "expected at least 2 classes in support_y, got .0."),
        ({"support_y": Y % 2}, "expected tasks of 3 classes, which this guide was trained for, got 2"),
        ({"num_samples": 0}, "expected num_samples >= 1, got 0"),
        ({"seed": "a"}, "expected seed to be an integer"),
    ],
)
def test_mistakes_have_one_line(changed: dict[str, Any], message: str) -> None:
    learner = MetaLearner.build(
        "identity", "mean_field", prior="gaussian", objective="elbo", input_shape=[6], num_classes=3
    )
    given = FULL | changed
    query_x = given.pop("query_x")
    with pytest.raises(UsageError, match=message) as found:
        learner.task(**given).predict_proba(query_x)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["inductive", "transductive"])
@pytest.mark.parametrize(("support", "query"), [(6, 1), (6, 5), (1, 6)])
def test_queries_have_the_width_of_the_support_set(name: str, support: int, query: int) -> None:
    """Of a learner of inputs of any width, where an array of width 1 would be broadcast."""
    task = MetaLearner.pretrained(name).task(X[:, :support], Y)
    with pytest.raises(UsageError, match=rf"of shape \[{support}\] in query_x, as in support_x, got \[{query}\];"):
        task.predict_proba(QUERY[:, :query])


def test_numbers_that_are_missing_are_counted() -> None:
    learner = Pair("exact", model="linear_regression").learner()
    x, y, _ = arrays(Pair("exact", model="linear_regression"))
    y[1] = np.nan
    with pytest.raises(UsageError, match=f"finite numbers in support_y, got NaN or infinity in 1 of {len(x)} rows"):
        learner.task(x, y)
    with pytest.raises(UsageError, match=r"expected support_y of shape \[.*\], got"):
        learner.task(x, y[:-1])


def test_base_classes_have_no_names() -> None:
    pair = next(pair for pair in PAIRS if pair.model == "lwof")
    learner, (support_x, support_y, _) = pair.learner(), arrays(pair)
    assert isinstance(learner.model, HasBaseClasses)
    with pytest.raises(UsageError, match="got a learner that also predicts base classes"):
        learner.task(support_x, support_y)
