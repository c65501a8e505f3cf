"""Translation of names in settings and checkpoints of earlier versions to the current names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# In version 0.1 the sources of data were modules of pyro_metabayes.data.
_SOURCES = (
    *("cifar_fs", "digit_domains", "fc100", "features", "gaussian_features", "glyphs", "groups", "image_folder"),
    *("leo_embeddings", "linear_gaussian", "mini_imagenet", "omniglot", "pacs", "sine_and_line", "sinusoid"),
    *("spinning_lines", "tiered_imagenet"),
)
MODULES = {f"pyro_metabayes.data.{name}": f"pyro_metabayes.data.sources.{name}" for name in _SOURCES}

# Settings that now belong to another part, and the end of the error message for the old name.
MOVED_SETTINGS = {"task.train_shift": "data.train_shift, a setting of data=digit_domains and data=pacs"}

# Removed settings, with the value that the part now always uses.
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
# Removed settings whose values have no effect.
_GROUPS = ("pyro_metabayes.data.sources.groups.load", "pyro_metabayes.data.groups.load")
_DROPPED = dict.fromkeys(_GROUPS, ("centre",))  # predictors are always centred
# Former names of guide parameters that are now in a submodule. None: a step size, which is dropped if it is not learned
# and therefore no longer a parameter.
_PARAMETERS: dict[str, str | None] = {
    "guide.initial_scale": "guide.start.scale",
    "guide.initial": "guide.start.point",
    "guide.log_scale": "guide.scale.log_scale",
    "guide.scale_net": "guide.scale.network",
    "guide.log_step_size": None,
    "guide.log_rotation_step_size": None,
}


def current_specification(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Translate a specification of an earlier version to current names and settings."""
    changed = _without_implied(spec)
    if changed.get("_target_") == "guides.sib.Guide":
        changed = _without_implied(_parts_of_sib(changed))
    if changed.get("see_labels") is False:  # a setting of sib_savi
        changed = {name: value for name, value in changed.items() if name != "see_labels"} | {"label_precision": 0.0}
    return changed


def _without_implied(spec: Mapping[str, Any]) -> dict[str, Any]:
    target = str(spec.get("_target_"))
    implied, dropped = _IMPLIED.get(target, {}), _DROPPED.get(target, ())
    kept = {name: value for name, value in spec.items() if name not in dropped}
    return {name: value for name, value in kept.items() if name not in implied or value != implied[name]}


def estimated_before(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of data=groups that reproduce version 0.1, which centred predictors only if data.centre=true."""
    if data.get("_target_") not in _GROUPS or data.get("centre") is True:
        return {}
    return {"scales": {str(name): {"mean": 0.0} for name in data.get("predictors", ())}}


def _parts_of_sib(spec: dict[str, Any]) -> dict[str, Any]:
    """Choose the current guide for a specification of SIB of version 0.1. Each variant of SIB is now a guide."""
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
    """Return the specification of a learner with num_weights instead of num_random, the name in version 0.1."""
    current = {name: value for name, value in specification.items() if name != "num_random"}
    num_random = specification.get("num_random")
    return {"num_weights": num_random} | current if num_random else current


def current_name(name: str, there: Collection[str]) -> str | None:
    """Return the current name of a parameter, or of a module with parameters.

    Args:
        name: the name in a checkpoint.
        there: the names of the current parameters.

    Returns:
        The current name; None if the parameter no longer exists.
    """
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
