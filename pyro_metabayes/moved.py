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

# Settings that have left a part: at this default they are dropped, else the part is another one now.
_SETTINGS: dict[str, dict[str, tuple[Any, str]]] = {
    "guides.sib.Guide": {
        "rotation_step_size": (0.0, "guides.sib_rotation.Guide"),
        "true_gradient": (False, "guides.sib_oracle.Guide"),
        "reduction": ("sum", "guides.sib_ablation.Guide"),
        "normalise": (True, "guides.sib_ablation.Guide"),
        "over_batch": (False, "guides.sib_ablation.Guide"),
        "learn_scale": (True, "guides.sib_ablation.Guide"),
    },
}
# Settings that a part does not have, and the value that it implies.
_IMPLIED: dict[str, dict[str, Any]] = {
    "guides.sib.Guide": {"rotation_weight": 1.0},
    "guides.sib_rotation.Guide": {"initialisation": "global", "inner_kl": 0.0, "inner_samples": 0},
    "guides.sib_oracle.Guide": {"true_gradient": True, "inner_samples": 0},
}
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
    leaving = _SETTINGS.get(str(spec.get("_target_")), {})
    changed = [name for name, (default, _) in leaving.items() if name in spec and spec[name] != default]
    kept = {name: value for name, value in spec.items() if name not in leaving or name in changed}
    if changed:
        kept["_target_"] = leaving[changed[0]][1]
    implied = _IMPLIED.get(str(kept.get("_target_")), {})
    return {name: value for name, value in kept.items() if name not in implied or value != implied[name]}


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
