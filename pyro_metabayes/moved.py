"""Names of earlier versions, in settings and checkpoints, and what they are now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Version 0.1: sources of data stood in pyro_metabayes.data.
_SOURCES = (
    *("cifar_fs", "digit_domains", "fc100", "features", "gaussian_features", "glyphs", "groups", "image_folder"),
    *("leo_embeddings", "linear_gaussian", "mini_imagenet", "omniglot", "pacs", "sine_and_line", "sinusoid"),
    *("spinning_lines", "tiered_imagenet"),
)
MODULES = {f"pyro_metabayes.data.{name}": f"pyro_metabayes.data.sources.{name}" for name in _SOURCES}

# Settings that are another part's now, and what is said where the command line has them.
MOVED_SETTINGS = {"task.train_shift": "data.train_shift, a setting of data=digit_domains and data=pacs"}

# Settings that a part does not have any more, at the value that it implies.
_IMPLIED: dict[str, dict[str, Any]] = {
    "guides.sib.Guide": {
        **{"rotation_step_size": 0.0, "true_gradient": False, "reduction": "sum"},
        **{"normalise": True, "over_batch": False, "learn_scale": True},
    },
    "guides.sib_ablation.Guide": {"inner_kl": 0.0, "inner_samples": 0, "balance": "unknown"},
    "guides.sib_rotation.Guide": {
        **{"initialisation": "global", "inner_kl": 0.0, "inner_samples": 0, "balance": "unknown"},
    },
    "guides.sib_oracle.Guide": {"true_gradient": True, "inner_samples": 0},
    "guides.sib_savi.Guide": {"see_labels": True, "learn_step_size": True},
}
# Settings that a part does not have any more, and whose values do not matter.
_GROUPS = ("pyro_metabayes.data.sources.groups.load", "pyro_metabayes.data.groups.load")
_DROPPED = dict.fromkeys(_GROUPS, ("centre",))  # predictors are always centred
# Parameters of guides whose parts are modules of their own now; None: a fixed step size, which is a setting.
_PARAMETERS: dict[str, str | None] = {
    "guide.initial_scale": "guide.start.scale",
    "guide.initial": "guide.start.point",
    "guide.log_scale": "guide.scale.log_scale",
    "guide.scale_net": "guide.scale.network",
    "guide.log_step_size": None,
    "guide.log_rotation_step_size": None,
}


def current_specification(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part as it is specified now; a specification of this version is returned as it is."""
    changed = _without_implied(spec)
    if changed.get("_target_") == "guides.sib.Guide":
        changed = _without_implied(_parts_of_sib(changed))
    if changed.get("see_labels") is False:  # of sib_savi
        changed = {name: value for name, value in changed.items() if name != "see_labels"} | {"label_precision": 0.0}
    return changed


def _without_implied(spec: Mapping[str, Any]) -> dict[str, Any]:
    target = str(spec.get("_target_"))
    implied, dropped = _IMPLIED.get(target, {}), _DROPPED.get(target, ())
    kept = {name: value for name, value in spec.items() if name not in dropped}
    return {name: value for name, value in kept.items() if name not in implied or value != implied[name]}


def estimated_before(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a run on data=groups of version 0.1 implies: predictors were not centred unless data.centre was true."""
    if data.get("_target_") not in _GROUPS or data.get("centre") is True:
        return {}
    return {"scales": {str(name): {"mean": 0.0} for name in data.get("predictors", ())}}


def _parts_of_sib(spec: dict[str, Any]) -> dict[str, Any]:
    """Version 0.1 had one guide for SIB, its step on a rotation loss, its ablations and its oracle."""
    if spec.pop("learn_scale", True) is False and spec.get("posterior", "normal") != "delta":
        spec["posterior"] = "fixed"
    if "rotation_step_size" in spec:
        return spec | {"_target_": "guides.sib_rotation.Guide"}
    spec.pop("rotation_weight", None)
    if "true_gradient" in spec:
        return spec | {"_target_": "guides.sib_oracle.Guide"}
    if "reduction" in spec or "normalise" in spec or "over_batch" in spec:
        normalise, over_batch = spec.pop("normalise", True), spec.pop("over_batch", False)
        spec["normalisation"] = "batch" if normalise and over_batch else "task" if normalise else "none"
        return spec | {"_target_": "guides.sib_ablation.Guide"}
    return spec


def current_shared_values(specification: Mapping[str, Any]) -> dict[str, Any]:
    """The specification of a learner as it is now: num_random, of version 0.1, is num_weights (0: not given)."""
    current = {name: value for name, value in specification.items() if name != "num_random"}
    num_random = specification.get("num_random")
    return {"num_weights": num_random} | current if num_random else current


def current_name(name: str, there: Collection[str]) -> str | None:
    """The name of a parameter, or of the module of some, among those that are there; None: it is no weight now."""
    if _has(there, name):
        return name
    for old, new in _PARAMETERS.items():
        if name == old or name.startswith(f"{old}."):
            renamed = None if new is None else new + name.removeprefix(old)
            if renamed is None or _has(there, renamed):
                return renamed
    return name


def _has(there: Collection[str], name: str) -> bool:
    return any(other == name or other.startswith(f"{name}.") for other in there)
