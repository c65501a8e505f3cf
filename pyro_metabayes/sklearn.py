"""The meta-learner as a scikit-learn classifier; the only file that imports scikit-learn."""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from pyro_metabayes.errors import UnfamiliarTasks, UsageError
from pyro_metabayes.inference.capabilities import HasBaseClasses
from pyro_metabayes.learner import MetaLearner, Prediction
from pyro_metabayes.seeding import noise_of

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    if (error.name or "").partition(".")[0] != "sklearn":
        raise  # scikit-learn is there, something that it imports is not
    raise UsageError(
        "expected scikit-learn 1.6 or newer for pyro_metabayes.sklearn, found none or an older one; "
        "run: pip install 'scikit-learn>=1.6'"
    ) from None

# The data of scikit-learn's checks (1.6 to 1.9): {check: (features, class counts where they matter)}.
CHECK_DATA: dict[str, tuple[int, set[int]]] = {
    "check_fit2d_1feature": (1, {2}),
    "check_classifier_data_not_an_array": (2, {2}),  # runs where pandas is installed
    "check_classifiers_classes": (2, {2, 3}),
    "check_classifiers_train": (2, {2, 3}),
    "check_estimators_fit_returns_self": (2, {3}),
    "check_estimators_overwrite_params": (2, {3}),
    "check_fit_check_is_fitted": (2, {2}),
    "check_fit_idempotent": (2, {2}),
    "check_n_features_in": (2, {2}),
    "check_readonly_memmap_input": (2, {3}),
    "check_classifiers_one_label": (3, set()),  # accepts an error that mentions classes
    "check_dict_unchanged": (3, {3}),
    "check_dont_overwrite_parameters": (3, {3}),
    "check_estimators_nan_inf": (3, {2}),
    "check_estimators_pickle": (3, {2}),
    "check_f_contiguous_array_estimator": (3, {3}),
    "check_fit2d_predict1d": (3, {3}),
    "check_fit_score_takes_y": (3, {3}),
    "check_methods_sample_order_invariance": (3, {3}),
    "check_methods_subset_invariance": (3, {3}),
    "check_pipeline_consistency": (3, {2}),
    "check_supervised_y_2d": (3, {3}),
    "check_n_features_in_after_fitting": (4, {3}),
    "check_positive_only_tag_during_fit": (4, {3}),
    "check_estimators_dtypes": (5, {2}),
    "check_array_api_input": (10, {2}),  # runs where SCIPY_ARRAY_API is set
    "check_dtype_object": (10, {4}),
    "check_fit2d_1sample": (10, {1}),
}


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """p(y | x, support) of a trained meta-learner: `fit` takes the support set, `predict_proba` the query set.

        classifier = FewShotClassifier("runs/glyphs/sib/...").fit(support_images, names)
        classifier.predict(query_images)

    `fit` trains nothing; it checks the support set and the classes against the learner. With a transductive guide (sib)
    predictions depend on the whole query set, so those for a subset of X differ from those for X.

    Args:
        learner: a MetaLearner, or the folder of a run. None: prototypical networks on the given features (softmax of
            minus the squared distance to the class means), which need no training.
        num_samples: number of draws of the latent over which probabilities are averaged; one suffices for a point
            estimate.
        random_state: seed of those draws. Each `fit` fixes one seed, so predictions of a fitted classifier repeat.

    Attributes:
        classes_: the C labels of the support set, sorted.
    """

    def __init__(
        self,
        learner: MetaLearner | str | PathLike[str] | None = None,
        num_samples: int = 100,
        random_state: Any = None,
    ) -> None:
        self.learner = learner
        self.num_samples = num_samples
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Store the support set.

        Args:
            X: inputs [S, *X]: features, or images.
            y: labels [S] of any type.

        Returns:
            The classifier itself.

        Raises:
            UsageError: the learner takes other inputs or another number of classes.
        """
        X, y = self._validated(X, y)
        check_classification_targets(y)
        self.support_x_, (self.classes_, self.support_y_) = X, np.unique(y, return_inverse=True)
        self.seed_ = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        self.learner_ = self._learner_for(X.shape[1:], len(self.classes_))
        with warnings.catch_warnings(action="ignore", category=UnfamiliarTasks):  # of a single query
            self._prediction(X[:1])  # refuses what the learner does not take
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [Q, C] of `classes_`, with X [Q, *X] as the query set of one task."""
        return self._answer(X).probabilities.cpu().numpy()

    def predict_spread(self, X: Any) -> np.ndarray:
        """Standard deviation [Q, C] of those probabilities over draws of the latent; 0 for a point estimate."""
        return self._answer(X).spread.cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class [Q] of each query point, as a label of `classes_`."""
        best = self._answer(X).probabilities.argmax(-1)
        return self.classes_[best.cpu().numpy()]

    def _answer(self, X: Any) -> Prediction:
        check_is_fitted(self)
        return self._prediction(self._validated(X, reset=False))

    def _prediction(self, X: np.ndarray) -> Prediction:
        with noise_of(self.seed_):
            return self.learner_.predict(self.support_x_, self.support_y_, X, self.num_samples)

    def _validated(self, *arrays: Any, **options: Any) -> Any:
        """Arrays after the checks of scikit-learn; only a learner takes images and bytes."""
        options |= {"dtype": np.float64} if self.learner is None else {"allow_nd": True}
        return validate_data(self, *arrays, **options)

    def _learner_for(self, input_shape: tuple[int, ...], num_classes: int) -> MetaLearner:
        if self.learner is None:
            return MetaLearner.from_specification(_proto(input_shape, num_classes)).double()
        learner = _loaded(self.learner)
        if isinstance(learner.model, HasBaseClasses):
            raise UsageError(
                "expected a learner whose classes are those of fit, got one of learning without forgetting, which "
                "answers with base classes too; take MetaLearner.predict"
            )
        return learner


def expected_failed_checks(estimator: FewShotClassifier) -> dict[str, str]:
    """The checks of `sklearn.utils.estimator_checks.check_estimator` that fail, with the reasons; {} without a learner.

    A learner is built for one shape of input, and some guides for one number of classes, but the checks have data of
    their own. In float64 exactly these checks fail; in float32 no others do.

    Args:
        estimator: the classifier.

    Returns:
        {name of a check: reason}.
    """
    if estimator.learner is None:
        return {}
    learner = _loaded(estimator.learner)
    shape, way = learner.input_shape, learner.guide.num_classes
    reasons: dict[str, str] = {}
    for check, (num_features, counts) in CHECK_DATA.items():
        if shape != (num_features,):
            reasons[check] = f"the learner takes inputs {list(shape)}, the check has {[num_features]}"
        elif way is not None and counts - {way}:
            reasons[check] = f"the guide serves {way} classes, the check has {sorted(counts)}"
    if next(learner.parameters()).dtype != torch.float64:
        reasons["check_methods_sample_order_invariance"] = "asks for the digits of float64: learner.double()"
    if learner.guide.transductive:
        reasons["check_methods_subset_invariance"] = "a transductive guide answers for the whole query set"
    reasons["check_estimators_overwrite_params"] = "joblib.hash of a torch tensor differs from its copy's"
    return reasons


def _loaded(learner: MetaLearner | str | PathLike[str]) -> MetaLearner:
    return learner if isinstance(learner, MetaLearner) else MetaLearner.load(Path(learner))


def _proto(input_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
    """Prototypical networks on raw features, as a specification: the engine imports no model and no guide."""
    return {
        "input_shape": list(input_shape),
        "num_classes": num_classes,
        "particles": 1,
        "backbone": {"_target_": "models.backbones.identity.Backbone", "normalise": False},
        "head": {"_target_": "models.heads.Linear"},
        "prior": {"_target_": "models.priors.Flat"},
        "model": {"_target_": "models.few_shot_classifier.Model"},
        "guide": {"_target_": "guides.proto.Guide"},
        "objective": {"_target_": "pyro_metabayes.objectives.elbo.Elbo"},
    }
