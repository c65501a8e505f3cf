"""The scikit-learn classifier: does it keep scikit-learn's contract, and give the learner's answers?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_metabayes import MetaLearner, UsageError

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from pyro_metabayes.prediction.scikit_learn_checks import CHECK_DATA
from pyro_metabayes.pretrained.learners import chosen
from pyro_metabayes.sklearn import FewShotClassifier, expected_failed_checks
from tests.pairs import Pair
from tests.processes import Forks

SUBSET, HASH = "check_methods_subset_invariance", "check_estimators_overwrite_params"


def learner_of(guide: str, input_shape: list[int], num_classes: int = 3, **settings: Any) -> MetaLearner:
    """An untrained learner in float64."""
    backbone = {"_target_": "models.backbones.identity.Backbone", "normalise": False}
    if len(input_shape) == 3:
        backbone = {"_target_": "models.backbones.conv4.Backbone", "num_filters": 4}
    prior = "Conditional" if guide in ("mc", "savi") else "Gaussian"
    specification = {
        "input_shape": input_shape,
        "num_classes": num_classes,
        "particles": 1,
        "backbone": backbone,
        "head": {"_target_": "models.heads.Linear"},
        "prior": {"_target_": f"models.priors.{prior}"},
        "model": {"_target_": "models.few_shot_classifier.Model"},
        "guide": {"_target_": f"guides.{guide}.Guide", **settings},
        "objective": {"_target_": "pyro_metabayes.objectives.elbo.Elbo"},
    }
    return MetaLearner.from_specification(specification).double()


def task(*shape: int, num_classes: int = 3, shots: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support inputs, support labels and query inputs of well-separated classes."""
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(num_classes), shots)
    centres = 4 * generator.normal(size=(num_classes, *shape))
    support, query = (centres[labels] + generator.normal(size=(len(labels), *shape)) for _ in range(2))
    return support, labels, query


def test_without_a_learner_it_is_a_scikit_learn_classifier() -> None:
    logs = check_estimator(FewShotClassifier(None), on_fail=None, on_skip=None)
    failed = {log["check_name"]: log["exception"] for log in logs if log["status"] == "failed"}
    assert failed == {} and len(logs) > 50
    assert expected_failed_checks(FewShotClassifier(None)) == {}


LEARNERS = {
    "mc, 2 features": ("mc", 2, 3, {}),
    "mc, 3 features": ("mc", 3, 3, {}),
    "mc, 10 features": ("mc", 10, 3, {}),
    "mean_field, 2 features, 2 classes": ("mean_field", 2, 2, {}),
    "mean_field, 3 features, 2 classes": ("mean_field", 3, 2, {}),
    "sib, 3 features, 3 classes": ("sib", 3, 3, {}),
    "sib for any number of classes": ("sib", 3, 3, {"synthetic_gradient": "equivariant"}),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_exactly_the_expected_checks_fail(name: str) -> None:
    guide, num_features, num_classes, settings = LEARNERS[name]
    estimator = FewShotClassifier(learner_of(guide, [num_features], num_classes, **settings))
    expected = expected_failed_checks(estimator)
    ran = [
        log
        for log in check_estimator(estimator, expected_failed_checks=expected, on_fail=None, on_skip=None)
        if log["status"] != "skipped"
    ]
    failed = {log["check_name"] for log in ran if log["status"] in ("failed", "xfail")}
    assert failed == expected.keys() & {log["check_name"] for log in ran}
    assert all(log["status"] == "xfail" for log in ran if log["check_name"] in failed)


def test_the_expected_checks_one_by_one() -> None:
    """For inputs of three features: what has others, and SIB's own."""
    others = {check for check, (num_features, _) in CHECK_DATA.items() if num_features != 3}
    conditional = expected_failed_checks(FewShotClassifier(learner_of("mc", [3])))
    any_way = expected_failed_checks(FewShotClassifier(learner_of("sib", [3], synthetic_gradient="equivariant")))
    three_way = expected_failed_checks(FewShotClassifier(learner_of("sib", [3])))
    two_classes = {"check_estimators_nan_inf", "check_estimators_pickle", "check_pipeline_consistency"}
    assert conditional.keys() == others and HASH in others
    assert any_way.keys() == others | {SUBSET}
    assert three_way.keys() == others | {SUBSET} | two_classes
    assert "transductive" in three_way[SUBSET] and "joblib.hash" in three_way[HASH]


@pytest.mark.parametrize("guide", ["mc", "sib"])
def test_single_precision_fails_no_other_check(guide: str) -> None:
    estimator = FewShotClassifier(learner_of(guide, [3]).float())
    expected = expected_failed_checks(estimator)
    logs = check_estimator(estimator, expected_failed_checks=expected, on_fail=None, on_skip=None)
    assert [log["check_name"] for log in logs if log["status"] == "failed"] == []


def test_without_a_learner_it_is_the_softmax_of_squared_distances() -> None:
    support, labels, query = task(5)
    means = np.stack([support[labels == c].mean(0) for c in range(3)])
    logits = -((query[:, None] - means) ** 2).sum(-1)
    expected = torch.as_tensor(logits).softmax(-1).numpy()
    classifier = FewShotClassifier(None).fit(support, labels)
    np.testing.assert_allclose(classifier.predict_proba(query), expected, atol=1e-12)
    assert classifier.predict_spread(query).max() == 0
    assert classifier.score(query, labels) == 1


@pytest.mark.parametrize("guide", ["mc", "sib"])
def test_it_answers_as_the_learner_does(guide: str) -> None:
    learner = learner_of(guide, [3])
    support, labels, query = task(3)
    classifier = FewShotClassifier(learner, num_samples=7, random_state=1)
    classifier.fit(support, np.array(["a", "c", "b"])[labels])
    relabelled = np.array([0, 2, 1])[labels]  # the names in alphabetical order
    torch.manual_seed(classifier.seed_)
    expected = learner.predict(support, relabelled, query, num_samples=7, seed=classifier.seed_)
    np.testing.assert_array_equal(classifier.predict_proba(query), expected.probabilities)
    np.testing.assert_array_equal(classifier.predict_spread(query), expected.spread)
    best = np.array(["a", "b", "c"])[expected.probabilities.argmax(-1)]
    np.testing.assert_array_equal(classifier.predict(query), best)


@pytest.mark.parametrize("learner", ["inductive", "transductive", "mc", "sib", "proto"])
@pytest.mark.parametrize("number", [1, 12])
def test_the_support_set_is_encoded_in_fit(learner: str, number: int) -> None:
    """If the posterior does not depend on the queries. The predictions are those of `MetaLearner.predict`."""
    support, labels, query = task(3)
    used = learner_of(learner, [3]) if learner in ("mc", "sib", "proto") else learner
    classifier = FewShotClassifier(used, random_state=0).fit(support, labels)
    assert classifier.task_.depends_on_queries == (learner in ("transductive", "sib"))
    same = used if isinstance(used, MetaLearner) else chosen(used, None)
    expected = same.predict(support, labels, query[:number], seed=classifier.seed_)
    np.testing.assert_allclose(classifier.predict_proba(query[:number]), expected.probabilities, atol=1e-6)
    np.testing.assert_allclose(classifier.predict_spread(query[:number]), expected.spread, atol=1e-6)
    np.testing.assert_array_equal(classifier.predict(query[:number]), expected.probabilities.argmax(-1))


def test_further_training_needs_another_fit() -> None:
    learner = learner_of("proto", [3])
    support, labels, query = task(3)
    classifier = FewShotClassifier(learner).fit(support, labels)
    before = classifier.predict_proba(query)
    learner.load_weights(learner.state_dict() | {"model.head.scale": torch.tensor(0.01, dtype=torch.float64)})
    assert np.abs(classifier.fit(support, labels).predict_proba(query) - before).max() > 0.01


@pytest.mark.parametrize("learner", [None, "inductive", "transductive", learner_of("proto", [3])])
def test_one_class_is_refused(learner: Any) -> None:
    with pytest.raises(UsageError, match=r"^expected at least 2 classes in y, got 1 class; add support points"):
        FewShotClassifier(learner).fit(np.eye(3), ["owl"] * 3)


def test_a_learner_of_numbers_is_refused() -> None:
    regression = Pair("exact", model="linear_regression").learner()
    features = regression.input_shape[0]
    with pytest.raises(UsageError, match=r"^expected a learner of classes, got a learner of numbers; use MetaLearner"):
        FewShotClassifier(regression).fit(np.eye(4, features), [0, 1, 0, 1])


def test_noise_is_one_seed_a_fit_and_leaves_no_trace() -> None:
    support, labels, query = task(3)
    classifier = FewShotClassifier(learner_of("mc", [3]), num_samples=2)
    state = torch.get_rng_state()
    first = classifier.fit(support, labels).predict_proba(query)
    np.testing.assert_array_equal(classifier.predict_proba(query), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert (classifier.fit(support, labels).predict_proba(query) != first).any()
    seeded = [clone(classifier).set_params(random_state=3).fit(support, labels) for _ in range(2)]
    np.testing.assert_array_equal(*(each.predict_proba(query) for each in seeded))


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    learner = learner_of("sib", [3], posterior="delta").float()
    learner.save(tmp_path / "checkpoint.pt")
    support, labels, query = task(3)
    expected = FewShotClassifier(learner).fit(support, labels).predict_proba(query)
    for folder in (tmp_path, str(tmp_path)):
        loaded = FewShotClassifier(folder)
        np.testing.assert_array_equal(loaded.fit(support, labels).predict_proba(query), expected)
        assert SUBSET in expected_failed_checks(loaded)


@pytest.mark.parametrize("bytes_", [False, True])
def test_images(bytes_: bool) -> None:
    """Bytes are scaled to [0, 1], as the learner does it."""
    support, labels, query = task(1, 16, 16)
    support, query = (np.clip(images * 20 + 128, 0, 255).astype(np.uint8) for images in (support, query))
    learner = learner_of("proto", [1, 16, 16])
    classifier = FewShotClassifier(learner)
    if bytes_:
        probabilities = classifier.fit(support, labels).predict_proba(query)
    else:
        probabilities = classifier.fit(support / 255, labels).predict_proba(query / 255)
    expected = learner.predict(support, labels, query).probabilities
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_bytes_that_are_no_images_stay_as_they_are() -> None:
    support, labels, query = (np.abs(array).astype(np.uint8) for array in task(3))
    expected = FewShotClassifier(None).fit(support.astype(float), labels).predict_proba(query.astype(float))
    mixed = FewShotClassifier(None).fit(support, labels).predict_proba(query.astype(float))
    np.testing.assert_array_equal(mixed, expected)


@pytest.mark.parametrize("order", [np.s_[::-1], np.s_[:, ::-1]])
def test_views_with_negative_strides(order: Any) -> None:
    support, labels, query = task(3)
    classifier = FewShotClassifier(None).fit(support, labels)
    flipped = classifier.predict_proba(query[order])
    np.testing.assert_array_equal(flipped, classifier.predict_proba(query[order].copy()))


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"learner": ("mc", [3])}, (2,), r"expected support_x of shape \[N, 3\], N >= 1, got \[12, 2\]"),
        ({"learner": ("sib", [3], 5)}, (3,), "expected tasks of 5 classes.*got 3"),
        ({"num_samples": 0}, (3,), "expected num_samples >= 1, got 0"),
        ({"learner": "no_such_run"}, (3,), "or a file or folder that exists, got 'no_such_run'"),
        ({}, (1, 4, 4), r"got shape \[12, 1, 4, 4\]. Reshape your data: embed images first"),
    ],
    ids=["inputs", "classes", "samples", "folder", "images"],
)
def test_mistakes_are_named_at_fit(arguments: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    if isinstance(arguments.get("learner"), tuple):
        arguments = {"learner": learner_of(*arguments["learner"])}
    support, labels, _ = task(*shape)
    with pytest.raises(ValueError, match=message):
        FewShotClassifier(**arguments).fit(support, labels)


@pytest.mark.parametrize(
    ("support_y", "query_x", "message"),
    [
        ([0, 1.5], [[1.0]], r"expected 2 integers >= 0 in support_y.*got torch.float64"),
        ([0], [[1.0]], r"expected 2 integers >= 0 in support_y.*shape \(1,\)"),
        ([0, -1], [[1.0]], "expected integers >= 0 in support_y, got -1"),
        (["a", "b"], [[1.0]], "expected numbers in support_y"),
        ([0, 1], [1.0], r"expected query_x of shape \[N, 1\], N >= 1, got \[1\]"),
        ([0, 1], np.zeros((0, 1)), r"expected query_x of shape \[N, 1\], N >= 1, got \[0, 1\]"),
        ([0, 1], [[1.0], [np.nan]], "expected finite values in query_x.* in 1 of 2 rows"),
    ],
)
def test_a_learner_names_mistakes_in_arrays(support_y: Any, query_x: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        learner_of("proto", [1]).predict([[0.0], [1.0]], support_y, query_x)


def test_scikit_learn_is_optional(forks: Forks) -> None:
    """The engine does not import it; the classifier says in one line that it is missing."""
    program = (
        "import sys, pyro_metabayes, pyro_metabayes.evaluation.evaluate\n"
        "assert not any(name.startswith('sklearn') for name in sys.modules)\n"
        "sys.modules['sklearn'] = None\n"
        "try: import pyro_metabayes.sklearn\n"
        "except pyro_metabayes.UsageError as error: print(error)\n"
    )
    assert forks.output_of(program) == (
        "expected scikit-learn 1.6 or newer for pyro_metabayes.sklearn, got an older version or none; "
        "run: pip install 'scikit-learn>=1.6'\n"
    )
