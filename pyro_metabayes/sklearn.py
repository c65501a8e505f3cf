"""The meta-learner as a scikit-learn classifier. Only this file imports scikit-learn."""

from __future__ import annotations

import warnings
from os import PathLike
from typing import Any, Self, cast

import numpy as np

from pyro_metabayes.errors import UnfamiliarTasks, UsageError
from pyro_metabayes.inference.capabilities import HasBaseClasses
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.open_set.rejection import Rejection
from pyro_metabayes.prediction.probabilities import Prediction, check_num_samples
from pyro_metabayes.prediction.prototypes import SupportFrame, prototypical_networks
from pyro_metabayes.prediction.scikit_learn_checks import failed_checks, one_line
from pyro_metabayes.prediction.tensors import readable, readable_labels
from pyro_metabayes.pretrained.files import CHECKSUMS
from pyro_metabayes.pretrained.learners import loaded, shipped

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

    `fit` does not train. It stores and checks the support set. The default learner is transductive: predictions depend
    on the whole query set, so `predict(X[:5])` may differ from `predict(X)[:5]`.

    Args:
        learner: `transductive` or `inductive` (learners of this package for any embeddings, way and shot), a
            MetaLearner, or the folder of a run. None: prototypical networks on the given features (softmax of minus
            the squared distance to the class means).
        num_samples: number of draws of the latent. Probabilities are averages over draws. A point estimate needs one.
        random_state: seed of the draws. Each `fit` fixes one seed, so a fitted classifier repeats its predictions.
        balance: only for `transductive`. `known`: each call has equally many queries of every class. `unknown` or
            None: the learner estimates the class frequencies.
        reject_above: largest entropy in nats of an accepted query, below log C for C classes. `predict` rejects queries
            with a larger entropy. None: no query is rejected.
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
        """Check that the learner can use the support set, and store it.

        Args:
            X: inputs [S, *X]: features, or images.
            y: labels [S] of any type.

        Returns:
            The classifier itself.

        Raises:
            UsageError: the learner cannot use these inputs or this number of classes.
        """
        check_num_samples(self.num_samples)
        X, y = self._validated(X, readable_labels("y", y))
        check_classification_targets(y)
        self.classes_, self.support_y_ = np.unique(y, return_inverse=True)
        self.rejection_ = Rejection.of(self.reject_above, self.unknown_label, self.classes_)
        self.seed_ = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        self.frame_ = SupportFrame.of(X) if self.learner is None else None
        self.support_x_ = self._framed(X)
        self._load_learners(X.shape[1:], len(self.classes_))
        if self._ships:  # a learner of this package accepts every support set
            return self
        with warnings.catch_warnings(action="ignore", category=UnfamiliarTasks):  # for the single query below
            self._prediction(self.learner_, X[:1])  # raises an error if the learner cannot use this support set
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities [Q, C] of the classes in `classes_` for the query set X [Q, *X] of one task."""
        return self._answer(X).probabilities.cpu().numpy()

    def predict_spread(self, X: Any) -> np.ndarray:
        """Return the standard deviations [Q, C] of the probabilities over draws of w; 0 for a point estimate."""
        return self._answer(X).spread.cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class [Q] of each query in X [Q, *X]; `unknown_label` for rejected queries."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        nearest = self._prediction(self.nearest_, X)
        labels = self.classes_[nearest.probabilities.argmax(-1).cpu().numpy()]
        if self.rejection_ is None:
            return labels
        answer = nearest if self.nearest_ is self.learner_ else self._prediction(self.learner_, X)
        return self.rejection_(labels, answer.probabilities)

    def _answer(self, X: Any) -> Prediction:
        check_is_fitted(self)
        return self._prediction(self.learner_, self._validated(X, reset=False))

    def _prediction(self, learner: MetaLearner, X: np.ndarray) -> Prediction:
        order = _order_by_content(X) if self._ships else np.arange(len(X))  # so that the order has no effect
        points = self.support_x_, self.support_y_, self._framed(X)[order]
        prediction = learner.predict(*points, self.num_samples, self.seed_)
        assert isinstance(prediction, Prediction)
        return Prediction(*(values[order.argsort()] for values in prediction))

    def _framed(self, X: np.ndarray) -> np.ndarray:
        return X if self.frame_ is None else self.frame_(X)

    def _validated(self, X: Any, *y: Any, **options: Any) -> Any:
        """Return the arrays after scikit-learn's checks. Images and bytes need a learner that the user trained."""
        rows = self.learner is None or self._ships
        options |= {"dtype": np.float64} if rows else {"allow_nd": True}
        X = readable("X", X)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # an overflow is reported as infinity
                return validate_data(self, X, *y, **options)
        except ValueError as error:  # a TypeError (sparse matrix, object) has one line already
            raise UsageError(one_line(str(error))) from None

    def _load_learners(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        """Set `learner_`, which predicts probabilities, and `nearest_`, which predicts labels."""
        if self.learner is None:
            self._refuse_balance()
            frame = cast(SupportFrame, self.frame_)  # set by fit where there is no learner
            self.learner_ = prototypical_networks(input_shape, num_classes, frame.unit)
            self.nearest_ = prototypical_networks(input_shape, num_classes)
            return
        if num_classes < 2:
            raise UsageError("expected at least 2 classes in y, got 1 class; add support points of another class")
        self.learner_ = self.nearest_ = self._loaded()
        if isinstance(self.learner_.model, HasBaseClasses):
            raise UsageError(
                "expected a learner that predicts only the classes in y, got a learner that also predicts base "
                "classes (learning without forgetting); use MetaLearner.predict"
            )

    def _loaded(self) -> MetaLearner:
        """Return the learner that `learner` names. The learners of this package compute in float64."""
        if self._ships:
            if self.learner != "transductive":
                self._refuse_balance()
            return shipped(str(self.learner), self.balance)
        self._refuse_balance()
        return loaded(self.learner)

    @property
    def _ships(self) -> bool:
        return isinstance(self.learner, str) and self.learner in CHECKSUMS

    def _refuse_balance(self) -> None:
        if self.balance is not None:
            raise UsageError(
                f"expected learner='transductive' for balance='{self.balance}', got another learner; remove balance, "
                "or set learner='transductive' (or MetaLearner.pretrained('transductive', balance='known'))"
            )


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
    reasons = failed_checks(estimator._loaded())
    if not isinstance(estimator.learner, MetaLearner):  # the check compares hashes, and text has the hash of its copy
        del reasons["check_estimators_overwrite_params"]
    return reasons
