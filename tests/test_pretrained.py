"""The learners that ship: their files, their classifier, and their scores on banks not used in training."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import Generator, Tensor
from torch.nn.functional import normalize

from pyro_metabayes import FewShotClassifier, MetaLearner, UsageError
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.mixture.simulator import FeatureSimulator
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.pretrained import files
from pyro_metabayes.sklearn import expected_failed_checks

NAMES = tuple(files.CHECKSUMS)
TRANSDUCTION = {"check_methods_subset_invariance"}


def scores(learner: MetaLearner, episodes: Episodes) -> tuple[float, float]:
    """Accuracy, and mean NLL in nats per query."""
    with torch.no_grad():
        embedded = learner.featured(episodes)
        logits = learner.model.outputs(learner.guide.posterior(embedded).mean, embedded.query_x)
    return _accuracy(logits, episodes), _nll(logits, episodes)


def _accuracy(logits: Tensor, episodes: Episodes) -> float:
    return (logits.argmax(-1) == episodes.query_y).float().mean().item()


def _nll(logits: Tensor, episodes: Episodes) -> float:
    return -logits.log_softmax(-1).gather(-1, episodes.query_y.unsqueeze(-1)).mean().item()


def simulated(seed: int, way: int = 5, shot: int = 1, query: int = 15, number: int = 12) -> Episodes:
    labels = torch.cat([torch.arange(way).repeat_interleave(count) for count in (shot, query)]).expand(number, -1)
    x = FeatureSimulator(Generator().manual_seed(seed)).points(labels, way, 128)
    size = way * shot
    parts = {"support_x": x[:, :size], "support_y": labels[:, :size], "query_x": x[:, size:]}
    return Episodes(**parts, query_y=labels[:, size:], num_classes=way)


def photographs() -> Bank:
    """Features of photographs, which no learner that ships has seen."""
    if not os.environ.get("METABAYES_DATA"):
        pytest.skip("METABAYES_DATA is not set")
    from pyro_metabayes.data.sources import features  # reads a file

    path = Path(os.environ["METABAYES_DATA"]) / "cifar100_features" / "cifar100_lite0_pca256_int8.npz"
    archive = np.load(path)
    assert features is not None
    x, y = archive["q"].astype(np.float32) * archive["scale"], archive["y"].astype(np.int64)
    return Bank.from_arrays(x, y, {"test": np.arange(0, 100, 3)})


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_small_and_has_its_checksum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.pretrained_file(name).stat().st_size < 2**20
    monkeypatch.setitem(files.CHECKSUMS, name, "0" * 64)
    with pytest.raises(UsageError, match=r"^expected the SHA-256 checksum 0000"):
        MetaLearner.pretrained(name)


@pytest.mark.parametrize("name", NAMES)
def test_scikit_learn_accepts_it(name: str) -> None:
    logs = check_estimator(FewShotClassifier(name), on_fail=None, on_skip=None)
    failed = {log["check_name"] for log in logs if log["status"] == "failed"}
    assert failed == (TRANSDUCTION if name == "transductive" else set())
    assert set(expected_failed_checks(FewShotClassifier(name))) == failed


@pytest.mark.parametrize("classifier", [FewShotClassifier(), FewShotClassifier("inductive")])
def test_it_works_in_the_tools_of_scikit_learn(classifier: FewShotClassifier) -> None:
    random = np.random.default_rng(0)
    y = np.repeat(["ash", "elm", "oak"], 12)
    x = np.repeat(random.normal(size=(3, 40)), 12, axis=0) + 0.5 * random.normal(size=(36, 40))
    fitted = clone(classifier).fit(x, y)
    expected = fitted.predict_proba(x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(x), expected)
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(fitted.predict_proba, [x] * 8):
            np.testing.assert_array_equal(answer, expected)
    assert make_pipeline(StandardScaler(), classifier).fit(x, y).score(x, y) > 0.9
    assert (cross_val_predict(classifier, x, y, cv=3) == y).mean() > 0.9
    search = GridSearchCV(classifier, {"learner": list(NAMES)}, cv=3).fit(x, y)
    assert search.best_score_ > 0.9


def test_a_setting_that_a_learner_does_not_have_is_refused() -> None:
    x, y = np.eye(4), [0, 0, 1, 1]
    for classifier, message in (
        (FewShotClassifier("inductive", balance="known"), "expected learner='transductive' for balance='known'"),
        (
            FewShotClassifier(MetaLearner.pretrained(), balance="known"),
            "expected learner='transductive' for balance='known'",
        ),
        (FewShotClassifier(None, balance="known"), "expected learner='transductive' for balance='known'"),
        (FewShotClassifier(balance="even"), "expected balance='known'"),
        (FewShotClassifier("nothing"), "transductive, inductive, .* got 'nothing'"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            classifier.fit(x, y)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"^expected at least 2 classes in y, got 1 class"):
        FewShotClassifier().fit(x, [0, 0, 0, 0])


def test_known_balance_needs_as_many_queries_as_classes() -> None:
    """Fewer queries cannot be shared out equally: every probability of one query would be 1 / C."""
    x, y = np.eye(4), [0, 1, 2, 2]
    classifier = FewShotClassifier(balance="known").fit(x, y)
    assert classifier.predict_proba(x[:3]).shape == (3, 3)
    with pytest.raises(UsageError, match=r"^expected at least 3 queries for balance=known .*, got 2; predict all"):
        classifier.predict_proba(x[:2])


def test_empty_rows_do_not_ruin_the_others() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 20))
    support, query = (np.maximum(np.repeat(centres, n, 0) + random.normal(size=(4 * n, 20)), 0) for n in (3, 25))
    classifier, truth = FewShotClassifier().fit(support, np.repeat(range(4), 3)), np.repeat(range(4), 25)
    alone = (classifier.predict(query) == truth).mean()
    beside = (classifier.predict(np.concatenate((query, np.zeros((50, 20)))))[:100] == truth).mean()
    assert alone > 0.7 and beside > alone - 0.05
    inductive = FewShotClassifier("inductive").fit(support, np.repeat(range(4), 3))
    with_empty = inductive.predict_proba(np.concatenate((query, np.zeros((50, 20)))))[:100]
    np.testing.assert_allclose(with_empty, inductive.predict_proba(query), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_queries_has_no_effect_at_all(name: str) -> None:
    random = np.random.default_rng(0)
    support, query = random.normal(size=(8, 30)), random.normal(size=(40, 30)).repeat(2, 0)  # each query twice
    classifier, order = FewShotClassifier(name).fit(support, np.arange(8) % 4), random.permutation(80)
    np.testing.assert_array_equal(classifier.predict_proba(query[order]), classifier.predict_proba(query)[order])


def test_one_class_is_refused_by_the_learner_too() -> None:
    with pytest.raises(UsageError, match=r"^expected support points of at least 2 classes, got 1"):
        MetaLearner.pretrained().predict(np.eye(3), [0, 0, 0], np.eye(3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dimension", [1, 2, 4096])
@pytest.mark.parametrize("queries", [1, 2, 40])
def test_every_input_gets_probabilities(name: str, dimension: int, queries: int) -> None:
    random = np.random.default_rng(dimension + queries)
    classifier = FewShotClassifier(name)
    for scale in (1e-200, 1.0, 1e200):
        support = scale * random.normal(size=(7, dimension))
        for query in (
            scale * random.normal(size=(queries, dimension)),
            np.repeat(support[:1], queries, axis=0),  # duplicates of a support point
            np.zeros((queries, dimension)),
        ):
            probabilities = classifier.fit(support, [0, 0, 0, 1, 1, 2, 3]).predict_proba(query)
            assert np.isfinite(probabilities).all()
            np.testing.assert_allclose(probabilities.sum(1), 1)


def test_with_one_query_the_transductive_learner_is_as_calibrated() -> None:
    """Mean over 60 simulated blocks of 48 tasks; its standard error is below 0.01 nats."""
    learners = [MetaLearner.pretrained(name) for name in NAMES]
    gaps = []
    for seed in range(60):
        episodes = simulated(seed, query=1, number=48)
        one = episodes.change_queries(lambda x: x[:, seed % 5 : seed % 5 + 1])  # noqa: B023
        transductive, inductive = (scores(learner, one)[1] for learner in learners)
        gaps.append(transductive - inductive)
    assert np.mean(gaps) < 0.02


def test_more_steps_do_not_make_it_worse() -> None:
    few, many = MetaLearner.pretrained(), MetaLearner.pretrained(num_steps=12)
    gaps = [np.subtract(scores(many, simulated(seed)), scores(few, simulated(seed))) for seed in range(16)]
    accuracy, nll = np.mean(gaps, axis=0)
    assert accuracy > -0.005 and nll < 0.01


@pytest.mark.parametrize("shot", [1, 5])
def test_photographs_that_it_never_saw(shot: int) -> None:
    """Of 300 tasks; the standard error of an accuracy is about 0.005. Fixed cosine class means: 0.72 and 0.86."""
    episodes = photographs().tasks("test", 5, shot, 15, seed=3).batch(0, 300)
    points = normalize(torch.cat((episodes.support_x, episodes.query_x), 1), dim=-1)
    means = normalize(points[:, : 5 * shot].unflatten(1, (5, shot)).mean(2), dim=-1)
    logits = 15 * points[:, 5 * shot :] @ means.mT
    accuracy, nll = scores(MetaLearner.pretrained(), episodes)
    known = scores(MetaLearner.pretrained(balance="known"), episodes)
    assert accuracy > _accuracy(logits, episodes) + (0.05 if shot == 1 else 0.005) and nll < _nll(logits, episodes)
    assert known[0] > accuracy and known[1] < nll
