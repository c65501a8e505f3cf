"""The meta-learner as a scikit-learn classifier. Only this file imports scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from os import PathLike
from typing import Any, Self

import numpy as np

from pyro_metabayes.deployment.tasks import ClassTask
from pyro_metabayes.errors import UnfamiliarTasks, UsageError
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.open_set.rejection import Rejection
from pyro_metabayes.prediction.probabilities import check_num_samples
from pyro_metabayes.prediction.prototypes import SupportFrame, prototypical_networks
from pyro_metabayes.prediction.scikit_learn_checks import failed_checks
from pyro_metabayes.prediction.tensors import readable
from pyro_metabayes.pretrained.learners import chosen, refuse_balance, ships
from pyro_metabayes.validation.labels import readable_labels, warn_unlabelled
from pyro_metabayes.validation.scikit_learn_messages import explaining

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    if (error.name or "").partition(".")[0] != "sklearn":
        raise  # scikit-learn is installed, but something that it imports is missing
    raise UsageError(
        "expected scikit-learn 1.6 or newer for pyro_metabayes.sklearn, got an older version or none; "
        "run: pip install 'scikit-learn>=1.6'"
    ) from None


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Classifier with the predictions of a trained meta-learner: `fit` takes the support set, `predict` the query set.

        classifier = FewShotClassifier().fit(support_embeddings, names)
        probabilities = classifier.predict_proba(query_embeddings)

    `fit` does not train. It checks and encodes the support set. After further training of a learner, call `fit` again.
    The default learner is transductive: predictions depend on the whole query set, so `predict(X[:5])` may differ from
    `predict(X)[:5]`. The order of the queries has no effect.

    Args:
        learner: `transductive` or `inductive` (learners of this package for any embeddings, way and shot), a
            MetaLearner, or the folder of a run. None: prototypical networks on the given features (softmax of minus
            the squared distance to the class means).
        num_samples: number of draws of the latent. Probabilities are averages over draws. A point estimate needs one.
        random_state: seed of the draws. Each `fit` fixes one seed, so a fitted classifier repeats its predictions.
        balance: only for `transductive`. `known`: each call has equally many queries of every class. `unknown` or
            None: the learner estimates the class frequencies.
        reject_above: largest entropy in nats of an accepted query, below log C for C classes. `predict` rejects queries
            with a larger entropy. None: no query is rejected. For queries of unknown classes take `inductive`: the
            transductive learner fits its classes to them too, so that it rejects mainly queries between known classes.
        unknown_label: label of rejected queries, not in y. None: "unknown" if labels are text, else -1.

    Attributes:
        classes_: the C labels of the support set, sorted.
    """

    def __init__(
        self,
        learner: MetaLearner | str | PathLike[str] | None = "transductive",
        num_samples: int = 100,
        random_state: Any = None,
        balance: str | None = None,
        reject_above: float | None = None,
        unknown_label: Any = None,
    ) -> None:
        self.learner = learner
        self.num_samples = num_samples
        self.random_state = random_state
        self.balance = balance
        self.reject_above = reject_above
        self.unknown_label = unknown_label

    def fit(self, X: Any, y: Any) -> Self:
        """Check that the learner can use the support set, and encode it.

        Args:
            X: inputs [S, *X]: features, or images.
            y: class labels [S], such as text or integers, of at least two classes. No label is missing (None, NaN or
                blank text), and no two labels differ only in surrounding white space. -1 is a class, with a warning.

        Returns:
            The classifier itself.

        Raises:
            UsageError: a label or an argument of the constructor is not valid, or the learner cannot use these inputs
                or this number of classes.
        """
        check_num_samples(self.num_samples)
        X, y = self._validated(X, readable_labels("y", y))
        with explaining(X, y):
            check_classification_targets(y)
            self.seed_ = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        warn_unlabelled(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UsageError("expected at least 2 classes in y, got 1 class; add support points of another class")
        self.rejection_ = Rejection.of(self.reject_above, self.unknown_label, self.classes_)
        self._encode(X, numbers)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities [Q, C] of the classes in `classes_` for the query set X [Q, *X] of one task."""
        return self._by_content(self._queries(X), self.task_.predict_proba)

    def predict_spread(self, X: Any) -> np.ndarray:
        """Return the standard deviations [Q, C] of the probabilities over draws of w; 0 for a point estimate."""
        return self._by_content(self._queries(X), self.task_.predict_spread)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class [Q] of each query in X [Q, *X]; `unknown_label` for rejected queries."""
        queries = self._queries(X)
        nearest = self._by_content(queries, self.nearest_.predict_proba)
        labels = self.classes_[nearest.argmax(-1)]
        if self.rejection_ is None:
            return labels
        same = self.nearest_ is self.task_
        return self.rejection_(labels, nearest if same else self._by_content(queries, self.task_.predict_proba))

    def _encode(self, X: np.ndarray, numbers: np.ndarray) -> None:
        """Set `task_`, which predicts probabilities, and `nearest_`, which predicts labels.

        Args:
            X: support inputs [S, *X].
            numbers: classes [S] of the support points, from 0 to C - 1.
        """
        self.frame_ = SupportFrame.of(X) if self.learner is None else None
        support = self._framed(X), numbers
        if self.frame_ is not None:
            refuse_balance(self.learner, self.balance)
            shape = X.shape[1:], len(self.classes_)
            self.task_ = self._task(prototypical_networks(*shape, self.frame_.unit), *support)
            self.nearest_ = self._task(prototypical_networks(*shape), *support)
            return
        self.task_ = self.nearest_ = self._task(chosen(self.learner, self.balance), *support)
        if not ships(self.learner):  # a learner of this package accepts every support set
            with warnings.catch_warnings(action="ignore", category=UnfamiliarTasks):  # a single query is unfamiliar
                self.task_.predict_proba(X[:1])  # raises an error if the learner cannot use this support set

    def _task(self, learner: MetaLearner, support_x: np.ndarray, numbers: np.ndarray) -> ClassTask:
        if learner.num_targets:
            raise UsageError("expected a learner of classes, got a learner of numbers; use MetaLearner.task")
        task = learner.task(support_x, numbers, self.num_samples, self.seed_)
        assert isinstance(task, ClassTask)
        return task

    def _queries(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self._framed(self._validated(X, reset=False))

    def _by_content(self, queries: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Predict the queries. A learner of this package gets them sorted by content.

        The order of the queries then has no effect, not even by rounding.
        """
        if not ships(self.learner):
            return predict(queries)
        order = _order_by_content(queries)
        return predict(queries[order])[order.argsort()]

    def _framed(self, X: np.ndarray) -> np.ndarray:
        return X if self.frame_ is None else self.frame_(X)

    def _validated(self, X: Any, *y: Any, **options: Any) -> Any:
        """Return the arrays after scikit-learn's checks. Only a learner that the user trained accepts images."""
        rows = self.learner is None or ships(self.learner)
        options |= {"dtype": np.float64} if rows else {"allow_nd": True}
        X = readable("X", X)
        with explaining(X, *y), np.errstate(over="ignore", invalid="ignore"):  # an overflow is reported as infinity
            return validate_data(self, X, *y, **options)


def _order_by_content(X: np.ndarray) -> np.ndarray:
    """Return the indices [Q] that sort the rows of X [Q, D] by their bytes, an order that depends on the rows alone."""
    rows = np.ascontiguousarray(X)
    return rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel().argsort()


def expected_failed_checks(estimator: FewShotClassifier) -> dict[str, str]:
    """Return the checks of `sklearn.utils.estimator_checks.check_estimator` that an estimator fails by design.

    Args:
        estimator: the classifier.

    Returns:
        {name of a check: reason}; empty if `learner` is None.
    """
    if estimator.learner is None:
        return {}
    reasons = failed_checks(chosen(estimator.learner, estimator.balance))
    if not isinstance(estimator.learner, MetaLearner):  # the check compares hashes of `learner`, here text or a path
        del reasons["check_estimators_overwrite_params"]
    return reasons
