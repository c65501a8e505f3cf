"""FewShotClassifier(reject_above=...): which queries are rejected, with which label, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pyro_metabayes import UsageError

pytest.importorskip("sklearn")

from sklearn.base import clone

from pyro_metabayes.sklearn import FewShotClassifier


def task(kind: type | str = int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support inputs and labels of three classes, ten queries of these classes and ten of another class."""
    noise = np.random.default_rng(0)
    centres = 4 * np.eye(4, 6)
    labels = np.tile(np.arange(3), 5)
    support = centres[labels] + 0.3 * noise.normal(size=(15, 6))
    others = centres[[*labels[:10], *[3] * 10]] + 0.3 * noise.normal(size=(20, 6))
    return support, np.array(["ant", "bee", "cat"])[labels] if kind == "text" else labels.astype(kind), others


@pytest.mark.parametrize("learner", [None, "inductive", "transductive"])
@pytest.mark.parametrize(("kind", "label"), [("text", "unknown"), (int, -1), (float, -1.0), (np.uint8, -1)])
def test_queries_with_a_larger_entropy_are_rejected(learner: Any, kind: Any, label: Any) -> None:
    support, names, query = task(kind)
    plain = FewShotClassifier(learner).fit(support, names)
    p = plain.predict_proba(query)
    entropy = -(p * np.log(p.clip(1e-300))).sum(1)
    assert entropy[10:].mean() > entropy[:10].mean(), "queries of another place have a larger entropy"
    above = np.median(entropy)  # between two of them
    rejecting = clone(FewShotClassifier(learner, reject_above=above)).fit(support, names)
    got, accepted = rejecting.predict(query), entropy < above
    assert accepted.sum() == 10 and (got[~accepted] == label).all()
    np.testing.assert_array_equal(got[accepted], plain.predict(query)[accepted])
    np.testing.assert_array_equal(rejecting.predict_proba(query), p)
    assert rejecting.score(query, plain.predict(query)) == 0.5, "a rejected query is an error"
    every = FewShotClassifier(learner, reject_above=0).fit(support, names).predict(query)
    assert (every[entropy > 0] == label).all()


def test_the_label_is_free() -> None:
    support, names, query = task("text")
    got = FewShotClassifier(None, reject_above=0.0, unknown_label="none of these").fit(support, names).predict(query)
    assert "none of these" in got and set(got) <= {"none of these", "ant", "bee", "cat"}
    support, numbers, query = task(int)
    assert 99 in FewShotClassifier(None, reject_above=0.0, unknown_label=99).fit(support, numbers).predict(query)


WRONG: list[tuple[dict[str, Any], Any, str]] = [
    ({"reject_above": 1.2}, int, "expected 0 <= reject_above < log 3 = 1.099 nats"),
    ({"reject_above": -0.1}, int, "expected 0 <= reject_above < log 3"),
    ({"reject_above": math.nan}, int, "expected 0 <= reject_above < log 3"),
    ({"reject_above": "1"}, int, "got '1'"),
    ({"reject_above": True}, int, "got True"),
    ({"unknown_label": -1}, int, "expected reject_above for unknown_label=-1, got None"),
    (
        {"reject_above": 0.5, "unknown_label": 2},
        int,
        "expected an unknown_label that is not in y, got 2, the label of a class",
    ),
    (
        {"reject_above": 0.5, "unknown_label": "no"},
        int,
        "expected unknown_label to be a number, like the labels in y",
    ),
    ({"reject_above": 0.5, "unknown_label": -1}, "text", "expected unknown_label to be text, like the labels in y"),
    ({"reject_above": 0.5, "unknown_label": "bee"}, "text", "expected an unknown_label that is not in y"),
]


@pytest.mark.parametrize(("settings", "kind", "message"), WRONG, ids=str)
def test_wrong_settings_are_refused(settings: dict[str, Any], kind: Any, message: str) -> None:
    support, names, _ = task(kind)
    with pytest.raises(UsageError) as error:
        FewShotClassifier(None, **settings).fit(support, names)
    assert message in str(error.value) and "\n" not in str(error.value)
