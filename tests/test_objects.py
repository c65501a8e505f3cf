"""A learner built from objects equals the one that its specification builds, and can be saved and loaded."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import pyro_metabayes
from pyro_metabayes import MetaLearner
from pyro_metabayes.build import arguments_of, target_of
from pyro_metabayes.guides import mc, mean_field, proto
from pyro_metabayes.models import few_shot_classifier, heads, linear_regression, priors
from pyro_metabayes.models.backbones import identity
from pyro_metabayes.moved import current_specification
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.specification.parts import PARTS, check_parts
from tests.covering import covering_first
from tests.pairs import FEATURES, GROUPED, WAY, Pair, every_pair, random_tasks
from tests.test_build import refuses

ONE_OF_A_KIND = list({(pair.guide, pair.model, pair.regression): pair for pair in every_pair()}.values())


def constructed(specification: dict[str, Any]) -> MetaLearner:
    """The learner of a specification, built by calls of the constructors with the arguments that they have."""
    surroundings = {"num_targets": 0} | {name: value for name, value in specification.items() if name not in PARTS}
    for part in PARTS:
        if not specification[part]:
            continue
        settings = {**current_specification(specification[part])}
        constructor = target_of(settings, part)
        del settings["_target_"]
        asked = {name: value for name, value in surroundings.items() if name in arguments_of(constructor)}
        surroundings[part] = made = constructor(**asked, **settings)
        if part == "backbone":
            surroundings = {"num_weights": made.num_features} | surroundings | {"num_features": made.num_features}
        if part == "head":
            surroundings["num_weights"] = made.num_weights(surroundings["num_features"])
    return MetaLearner(*(surroundings[part] for part in ("backbone", "model", "guide", "objective")))


def shared(specification: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in specification.items() if name not in PARTS}


def parts_of(specification: dict[str, Any]) -> dict[str, Any]:
    return {part: current_specification(spec) if (spec := specification[part]) else None for part in PARTS}


@torch.no_grad()
def loss_of(learner: MetaLearner, pair: Pair) -> Tensor:
    torch.manual_seed(2)
    return learner(pair.tasks(num_tasks=1))["loss"]


@pytest.mark.parametrize("pair", covering_first(every_pair()), ids=str)
def test_a_learner_from_objects_is_that_of_the_specification(pair: Pair, tmp_path: Path) -> None:
    specification = pair.specification(particles=2)
    torch.manual_seed(0)
    specified = MetaLearner.from_specification(specification)
    torch.manual_seed(0)
    learner = constructed(specification)
    assert parts_of(learner.specification) == parts_of(specification)
    given = {"num_targets": 0} | shared(specification)  # of these, what no part asks for is not recorded
    assert shared(learner.specification).items() <= given.items()

    learner.save(tmp_path / "learner.pt")
    loaded = MetaLearner.load(tmp_path / "learner.pt")
    assert loaded.specification == learner.specification
    weights = specified.state_dict()
    for other in (learner, loaded):
        assert list(other.state_dict()) == list(weights)
        assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())
    if pair in ONE_OF_A_KIND:
        assert torch.equal(loss_of(loaded, pair), loss_of(specified, pair))


# ---------------------------------------------------------------- mistakes


class Parts:
    """The parts of a small classifier, one of which a test replaces."""

    def __init__(self, scale: Any = 0.1) -> None:
        self.backbone: Any = identity.Backbone([FEATURES])
        self.model: Any = few_shot_classifier.Model(heads.Cosine(), priors.Gaussian(FEATURES))
        self.guide: Any = mean_field.Guide(self.model, WAY, FEATURES, scale)
        self.objective: Any = Elbo()

    def learner(self, **others: Any) -> MetaLearner:
        return MetaLearner(**(vars(self) | others))


def test_arguments_by_position_and_by_name_are_recorded_alike() -> None:
    learner = Parts(scale=0.2).learner()
    assert learner.specification["guide"] == {"_target_": "guides.mean_field.Guide", "scale": 0.2}
    assert shared(learner.specification) == {"input_shape": [FEATURES], "num_classes": WAY, "num_targets": 0}


def test_a_part_in_the_place_of_another_is_refused() -> None:
    parts = Parts()
    for name, other in (("backbone", "model"), ("model", "backbone"), ("guide", "model"), ("objective", "guide")):
        with refuses(rf"^expected {name} to be an object of pyro_metabayes\.\w[\w.]*, got pyro_metabayes\.\w[\w.]*$"):
            parts.learner(**{name: getattr(parts, other)})
    with refuses(
        r"^expected backbone to be an object of pyro_metabayes\.backbone\.Backbone, got torch\.nn\.[a-z.\\]*Linear$"
    ):
        parts.learner(backbone=nn.Linear(FEATURES, FEATURES))


def test_a_part_given_twice_is_refused() -> None:
    with refuses(r"^expected guide and model with the same model object, got two objects; construct .*$"):
        Parts().learner(guide=Parts().guide)
    prior = priors.Gaussian(FEATURES)
    model: Any = few_shot_classifier.Model(prior, prior)  # type: ignore[arg-type]
    with refuses(r"^expected head and prior to be two objects, got one Gaussian for both; construct two$"):
        Parts().learner(model=model, guide=proto.Guide(model))


def test_parts_that_do_not_fit_are_refused() -> None:
    parts = Parts()
    with refuses(rf"^expected the same num_weights in all parts, got 7 and prior\.num_weights={FEATURES}; .*$"):
        parts.learner(guide=mean_field.Guide(parts.model, WAY, 7))
    with refuses(rf"^expected num_weights={FEATURES} for this backbone and head, got num_weights=7; .*$"):
        wide = few_shot_classifier.Model(heads.Cosine(), priors.Gaussian(7))
        parts.learner(model=wide, guide=proto.Guide(wide))
    model = linear_regression.Model(priors.Conditional(FEATURES, FEATURES, 1), 2, FEATURES)
    with refuses(r"^expected the same num_targets in all parts, got 2 and prior\.num_targets=1; .*$"):
        parts.learner(model=model, guide=mc.Guide(model))
    with refuses(r"^expected a backbone with input_shape, got a backbone that was constructed without; .*$"):
        parts.learner(backbone=Shapeless())


class Shapeless(pyro_metabayes.Backbone):
    """A backbone that does not declare its input shape."""

    num_features = FEATURES


def test_an_argument_that_cannot_be_saved_is_refused_at_save(tmp_path: Path) -> None:
    class Local(mean_field.Guide):
        """A guide inside a function, which cannot be imported by name."""

    learner = Parts(scale=np.float64(0.1)).learner()
    assert learner(random_tasks())["loss"].isfinite(), "only saving needs plain values"
    with refuses(
        r"^load could not rebuild the learner: expected guide\.scale .*float64; pass plain values to the constr"
    ):
        learner.save(tmp_path / "learner.pt")
    parts = Parts()
    with refuses(r"expected the class of guide at the top level of a module .*Local; move the class .*; or save only"):
        parts.learner(guide=Local(parts.model, WAY, FEATURES)).save(tmp_path / "learner.pt")
    assert not list(tmp_path.iterdir())


def test_a_copy_records_what_its_original_did() -> None:
    learner = Parts(scale=0.3).learner()
    copied = copy.deepcopy(learner)
    assert copied.specification == learner.specification
    assert copied.guide.model is copied.model is not learner.model


# ---------------------------------------------------------------- what the source provides


def test_no_setting_of_a_part_is_what_the_source_provides() -> None:
    with refuses(r"^unknown key 'model\.num_base_classes'; models\.lwof\.Model takes: inner, scale"):
        check_parts({"model": {"_target_": "models.lwof.Model", "num_base_classes": 3}})


def test_counts_of_version_0_1_are_understood() -> None:
    grouped = next(pair for pair in every_pair() if pair.model in GROUPED).specification()
    num_weights = grouped.pop("num_weights")
    old = grouped | {"num_random": num_weights, "num_base_classes": 0}
    assert MetaLearner.from_specification(old).specification == grouped | {
        "num_weights": num_weights,
        "num_base_classes": 0,
    }
    old = Pair("proto", "flat").specification() | {"num_random": 0, "num_base_classes": 0}
    MetaLearner.from_specification(old)


def test_auxiliary_inputs_are_embedded_and_others_are_kept() -> None:
    parts = Parts()
    learner = parts.learner(frozen=False)
    tasks = random_tasks()
    views = 3 * torch.randn(*tasks.query_x.shape[:2], 2, FEATURES)
    base = torch.arange(FEATURES).expand(tasks.num_tasks, -1)  # as many base classes as features
    embedded = learner.featured(replace(tasks, auxiliary={"views": views, "base": base})).auxiliary
    torch.testing.assert_close(embedded["views"], normalize(views, dim=-1))
    assert torch.equal(embedded["base"], base)
