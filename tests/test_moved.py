"""Do settings and checkpoints of earlier versions mean what they meant?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_metabayes import MetaLearner
from pyro_metabayes.build import build
from pyro_metabayes.moved import current_name, current_specification
from tests.commands import call, lines_of, ran
from tests.pairs import ROOT, Pair

SIB = "guides.sib.Guide"
RUN = ROOT / "tests/assets/version_0_1"  # savi on simulated features, four steps, by version 0.1.0
DEFAULTS = {"normalise": True, "over_batch": False, "reduction": "sum", "learn_scale": True, "true_gradient": False}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({"num_steps": 2}, {"_target_": SIB, "num_steps": 2}),
    "defaults": ({**DEFAULTS, "rotation_step_size": 0.0, "rotation_weight": 0.3}, {"_target_": SIB}),
    "a fixed scale": ({"learn_scale": False}, {"_target_": SIB, "posterior": "fixed"}),
    "a point estimate": ({"learn_scale": False, "posterior": "delta"}, {"_target_": SIB, "posterior": "delta"}),
    "the mean": (
        {"reduction": "mean", "inner_kl": 0.0},
        {"_target_": "guides.sib_ablation.Guide", "reduction": "mean", "normalisation": "task"},
    ),
    "no norm": ({"normalise": False}, {"_target_": "guides.sib_ablation.Guide", "normalisation": "none"}),
    "one norm": ({"over_batch": True}, {"_target_": "guides.sib_ablation.Guide", "normalisation": "batch"}),
    "the oracle": (
        {"true_gradient": True, "inner_samples": 0, "step_size": 0.1},
        {"_target_": "guides.sib_oracle.Guide", "step_size": 0.1},
    ),
    "a rotation step": (
        {"rotation_step_size": 0.1, "rotation_weight": 0.5, "initialisation": "global"},
        {"_target_": "guides.sib_rotation.Guide", "rotation_step_size": 0.1, "rotation_weight": 0.5},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_settings_of_sib_name_the_guide_that_has_them(change: str) -> None:
    settings, expected = CHANGES[change]
    assert current_specification({"_target_": SIB, **settings}) == expected
    assert current_specification(expected) == expected
    model = Pair("sib").learner().model
    assert type(
        build({"_target_": SIB, **settings}, "guide", model=model, num_classes=3, num_weights=5)
    ).__module__ == (f"pyro_metabayes.{expected['_target_'].removesuffix('.Guide')}")


@pytest.mark.parametrize(("see_labels", "expected"), [(True, {}), (False, {"label_precision": 0.0})])
def test_a_posterior_that_sees_no_labels_has_no_label_precision(see_labels: bool, expected: dict[str, float]) -> None:
    spec = {"_target_": "guides.sib_savi.Guide", "see_labels": see_labels, "learn_step_size": True}
    assert current_specification(spec) == {"_target_": "guides.sib_savi.Guide", **expected}


@pytest.mark.parametrize(
    ("old", "there", "expected"),
    [
        ("guide.initial_scale", ["guide.start.scale"], "guide.start.scale"),
        ("guide.scale_net.0.weight", ["guide.scale.network.0.weight"], "guide.scale.network.0.weight"),
        ("guide.log_scale", ["guide.log_scale"], "guide.log_scale"),  # of mean_field, where nothing has changed
        ("guide.initial", ["guide.initial"], "guide.initial"),
        ("guide.log_step_size", ["guide.log_step_size"], "guide.log_step_size"),
        ("guide.log_step_size", ["guide.start.scale"], None),  # fixed: a setting
        ("guide.nosuch", ["guide.start.scale"], "guide.nosuch"),
    ],
)
def test_weights_have_the_names_of_this_version(old: str, there: list[str], expected: str | None) -> None:
    assert current_name(old, there) == expected


def test_a_run_of_version_0_1_predicts_and_is_verified(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    prediction = MetaLearner.load(RUN).predict(noise.normal(size=(5, 8)), np.arange(5), noise.normal(size=(3, 8)))
    assert prediction.probabilities.shape == (3, 5) and torch.isfinite(prediction.probabilities).all()
    folder = shutil.copytree(RUN, tmp_path / "run")
    outcome = call("verify", str(folder))  # metrics of draws differ, which version 0.2 makes in another way
    assert outcome.code == 1 and "versions.pyro_metabayes: 0.1.0 in results.json" in outcome.out + outcome.err


def test_a_run_of_version_0_1_goes_on(tmp_path: Path) -> None:
    folder = shutil.copytree(RUN, tmp_path / "run")
    ran("run", f"resume={folder}", "train.steps=6")
    assert (folder / "metrics.jsonl").read_text().count("\n") == 3


def test_moments_of_version_0_1_go_on_where_parameters_have_other_names(tmp_path: Path) -> None:
    """sib, four steps by version 0.1.0; the last line of its metrics after four more, by that version."""
    folder = shutil.copytree(ROOT / "tests/assets/version_0_1_sib", tmp_path / "run")
    ran("run", f"resume={folder}", "train.steps=8")
    last = lines_of(folder)[-1]
    assert {name: last[name] for name in ("loss", "kl")} == pytest.approx(
        {"loss": 89.67758178710938, "kl": 152.1617431640625}, rel=1e-4
    )
