"""The checks of scikit-learn's `check_estimator` that a learner cannot pass. This file does not import scikit-learn."""

from __future__ import annotations

import torch

from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.validation.structure import fits

# {check of scikit-learn 1.6 to 1.9: (number of features of its data, numbers of classes of its data sets)}.
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
}


def failed_checks(learner: MetaLearner) -> dict[str, str]:
    """List the checks of scikit-learn's `check_estimator` that a classifier with this learner fails, with the reasons.

    The checks use data sets of several shapes. A learner accepts only one input shape, and some guides only one number
    of classes. All other checks pass. In float32, a listed check may also pass.

    Args:
        learner: the learner.

    Returns:
        {name of the check: reason}.
    """
    shape, way = learner.input_shape, learner.guide.num_classes
    reasons: dict[str, str] = {}
    for check, (num_features, counts) in CHECK_DATA.items():
        if not fits((num_features,), shape):
            reasons[check] = f"the learner accepts inputs {list(shape)}, the check has {[num_features]}"
        elif way is not None and counts - {way}:
            reasons[check] = f"the guide was built for {way} classes, the check has {sorted(counts)}"
    if next(learner.parameters(), torch.empty(0)).dtype != torch.float64:
        order = "requires more digits than float32 has; learner.double() passes"
        reasons["check_methods_sample_order_invariance"] = order
    if learner.guide.transductive:
        reasons["check_methods_subset_invariance"] = "predictions of a transductive guide depend on the whole query set"
    reasons["check_estimators_overwrite_params"] = "joblib.hash gives different values for a torch tensor and its copy"
    return reasons
