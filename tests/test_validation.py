"""Unusable batches of tasks are refused in one line, where they are made or where they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor
from torch.nn.functional import normalize

from pyro_metabayes import Episodes, FewShotClassifier, MetaLearner, Observed, UsageError
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.validation.values import check_values
from tests.pairs import Pair, random_regressions, random_tasks, stream_of

LABELS, INPUTS = ("support_y", "query_y"), ("support_x", "query_x")
MASKS = ("support_mask", "query_mask")


def tensors_of(numbers: bool) -> dict[str, Any]:
    """The arguments of a valid batch: 3 tasks of 3 classes, or of 2 numbers."""
    tasks = random_regressions() if numbers else random_tasks()
    given = {name: getattr(tasks, name) for name in (*INPUTS, *LABELS, *MASKS)}
    return given | {"num_classes": tasks.num_classes}


# A change of one tensor that no batch can have, the tensors that it is made to, and what the line says.
BREAKS: dict[str, tuple[tuple[str, ...], Callable[[Tensor], Any], str]] = {
    "no task axis": ((*INPUTS, *LABELS, *MASKS), lambda x: x[0], "expected "),
    "another number of tasks": ((*INPUTS, *LABELS, *MASKS), lambda x: x[:-1], "expected "),
    "another number of points": ((*INPUTS, *LABELS, *MASKS), lambda x: x[:, :-1], "expected "),
    "another number of features": (INPUTS, lambda x: x[..., :-1], "points of the same shape"),
    "another dtype": (INPUTS, lambda x: x.half(), "points of the same shape"),
    "complex": (INPUTS, lambda x: x.cfloat(), "floating point or uint8"),
    "another device": ((*INPUTS, *LABELS, *MASKS), lambda x: x.to("meta"), "expected all tensors on"),
    "an array": ((*INPUTS, *LABELS, *MASKS), lambda x: x.numpy(), "to be a tensor, got ndarray"),
    "a list": ((*INPUTS, *LABELS, *MASKS), lambda x: x.tolist(), "to be a tensor, got list"),
    "labels of the wrong kind": (LABELS, lambda y: y.long() if y.is_floating_point() else y.float(), "expected "),
    "labels of int32": (LABELS, lambda y: y.int(), "expected "),
    "one-hot labels": (LABELS, lambda y: y.unsqueeze(-1).expand(*y.shape, 3), "expected "),
    "a float mask": (MASKS, lambda mask: mask.float(), "of torch.bool"),
}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), numbers=st.booleans(), observed=st.booleans())
def test_what_does_not_fit_together_is_refused_in_one_line(data: st.DataObject, numbers: bool, observed: bool) -> None:
    """One broken tensor of a batch of classes or of numbers, with and without query labels."""
    kind = data.draw(st.sampled_from(sorted(BREAKS)))
    names, change, message = BREAKS[kind]
    name = data.draw(st.sampled_from([name for name in names if not (observed and name == "query_y")]))
    arguments = tensors_of(numbers)
    if observed:
        del arguments["query_y"]
    assert (Observed if observed else Episodes)(**arguments).num_tasks == 3  # nothing else is wrong
    with pytest.raises(UsageError, match=message) as error:
        (Observed if observed else Episodes)(**arguments | {name: change(arguments[name])})
    assert "\n" not in str(error.value) and "; " in str(error.value), kind


@pytest.mark.parametrize("num_classes", [-1, 2.0, None, torch.tensor(3)])
def test_the_number_of_classes_is_one(num_classes: Any) -> None:
    with pytest.raises(UsageError, match="expected num_classes to be"):
        replace(random_tasks(), num_classes=num_classes)


def test_a_forgotten_number_of_classes_is_not_a_regression() -> None:
    with pytest.raises(UsageError, match="set num_classes to the number of classes"):
        replace(random_tasks(), num_classes=0)


@pytest.mark.parametrize("name", ["classes", "auxiliary"])
def test_optional_tensors_have_the_axis_of_tasks(name: str) -> None:
    wrong = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(UsageError, match="of 3 tasks"):
        replace(random_tasks(), **{name: wrong if name == "classes" else {"turned": wrong}})


# ---------------------------------------------------------------- no value is read


def test_a_batch_is_made_without_values() -> None:
    arguments = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in tensors_of(False).items()}
    assert Episodes(**arguments).pooled().support_x.is_meta
    check_values(Episodes(**arguments), None)  # there are none


@pytest.mark.parametrize("transform", ["vmap", "grad", "jacrev", "compile"])
def test_a_batch_is_made_within_transforms(transform: str) -> None:
    arguments = tensors_of(False)

    def score(x: Tensor) -> Tensor:
        tasks = Episodes(**arguments | {"query_x": x})
        return tasks.pooled().support_x.square().sum() / 2

    x = arguments["query_x"]
    with pyro.validation_enabled(False):
        match transform:
            case "vmap":
                many = torch.func.vmap(score)(torch.stack((x, 2 * x)))
                torch.testing.assert_close(many, torch.stack((score(x), score(2 * x))))
            case "compile":
                torch.testing.assert_close(torch.compile(score, backend="eager")(x), score(x))
            case _:
                torch.testing.assert_close(getattr(torch.func, transform)(score)(x), x)


# ---------------------------------------------------------------- values, where a batch is used

VALUES: dict[str, tuple[tuple[str, ...], float]] = {
    "a class too many": (LABELS, 3),
    "a class far off": (LABELS, 7),
    "a negative class": (LABELS, -1),
    "padding as a class": (LABELS, -100),
    "NaN": (INPUTS, float("nan")),
    "infinity": (INPUTS, float("inf")),
}
PAIRS = [
    Pair("proto", "flat"),
    Pair("sib", settings={"num_steps": 1, "step_size": 0.1}),
    Pair("maml", "flat", settings={"num_steps": 1, "step_size": 0.1}),
]
DOORS: dict[str, Callable[[Any, Episodes], object]] = {
    "loss": lambda learner, tasks: learner(tasks),
    "evaluate": lambda learner, tasks: evaluate(learner, stream_of(tasks), EvalSettings(tasks=3, samples=2), seed=0),
    "svi": lambda learner, tasks: SVI(learner.model, learner.guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO()).step(
        tasks
    ),
    "posterior_predictive": lambda learner, tasks: learner.posterior_predictive(tasks, 2),
    "Predictive": lambda learner, tasks: Predictive(learner.model, guide=learner.guide, num_samples=2)(tasks),
}
LEARNERS = {str(pair): pair.learner() for pair in PAIRS}


@settings(max_examples=100, deadline=None)
@given(
    pair=st.sampled_from(sorted(LEARNERS)),
    door=st.sampled_from(sorted(DOORS)),
    kind=st.sampled_from(sorted(VALUES)),
    which=st.integers(0, 1),
    place=st.tuples(st.integers(0, 2), st.integers(0, 5)),
    masked=st.booleans(),
)
def test_values_that_no_method_can_use_are_refused_in_one_line(
    pair: str, door: str, kind: str, which: int, place: tuple[int, int], masked: bool
) -> None:
    """One value of one tensor, at each door, for guides that fail on it and for those that do not."""
    learner, tasks = LEARNERS[pair], random_tasks()
    names, value = VALUES[kind]
    name = names[which]
    changed = getattr(tasks, name).clone()
    changed[place] = value
    mask = getattr(tasks, f"{name[:-2]}_mask").clone()
    mask[place] = not masked
    expected = "expected classes from 0 to 2 in" if name in LABELS else "expected finite values in"
    with pytest.raises(UsageError, match=f"{expected} {name}, also for masked points, got") as error:
        DOORS[door](learner, replace(tasks, **{name: changed, f"{name[:-2]}_mask": mask}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", LABELS)
def test_numbers_are_finite(name: str) -> None:
    pair = Pair("mean_field", model="linear_regression")
    tasks = pair.tasks()
    values = getattr(tasks, name).clone()
    values[0, 0, 0] = float("nan")
    with pytest.raises(UsageError, match=f"expected finite values in {name}, also for masked points, got NaN"):
        pair.learner()(replace(tasks, **{name: values}))


def test_base_classes_follow_those_of_the_task() -> None:
    """Query labels up to C + B - 1 with B base classes, support labels up to C - 1."""
    pair = Pair("proto", "flat", "linear", model="lwof")
    learner, tasks = pair.learner(), pair.tasks()
    query_y, support_y = tasks.query_y.clone(), tasks.support_y.clone()
    query_y[0, 0], support_y[0, 0] = 6, 3
    assert torch.isfinite(learner(replace(tasks, query_y=query_y))["loss"])
    query_y[0, 0] = 7
    for changed, most in (({"query_y": query_y}, 6), ({"support_y": support_y}, 2)):
        with pytest.raises(UsageError, match=f"expected classes from 0 to {most} in"):
            learner(replace(tasks, **changed))


# ---------------------------------------------------------------- tasks without points


def masked(name: str, of: slice) -> Episodes:
    """Random tasks, in some of which all points of a set are masked."""
    mask = getattr(random_tasks(), name).clone()
    mask[of] = False
    return replace(random_tasks(), **{name: mask})


def without(name: str) -> Episodes:
    """Random tasks without any point of a set."""
    fields = {f"{name}_{part}": getattr(random_tasks(), f"{name}_{part}")[:, :0] for part in ("x", "y", "mask")}
    return replace(random_tasks(), **fields)


NO_POINTS = {
    "all queries of a task masked": (masked("query_mask", slice(1, 2)), "one unmasked query per task"),
    "all queries masked": (masked("query_mask", slice(None)), "one unmasked query per task"),
    "no queries": (without("query"), "one unmasked query per task"),
    "all support masked": (masked("support_mask", slice(2, 3)), "one unmasked support point per task"),
}


@pytest.mark.parametrize("door", ["loss", "evaluate"])
@pytest.mark.parametrize("kind", NO_POINTS)
def test_tasks_without_points_are_refused_in_one_line(kind: str, door: str) -> None:
    tasks, message = NO_POINTS[kind]
    for learner in LEARNERS.values():
        with pytest.raises(
            UsageError,
            match=rf"expected at least {message} \(.*\), got none in [13] of [13] t",
        ):
            DOORS[door](learner, tasks)


def test_no_support_set_and_classes_without_support_points_are_legal() -> None:
    """For guides that need none: others refuse S = 0."""
    of_one = random_tasks().support_y.eq(0) & random_tasks().support_mask
    assert torch.isfinite(LEARNERS[str(PAIRS[0])](replace(random_tasks(), support_mask=of_one))["loss"])
    assert torch.isfinite(Pair("mean_field").learner()(without("support"))["loss"])


def test_no_tasks_are_refused_where_they_are_made() -> None:
    with pytest.raises(UsageError, match="expected at least one task, got none"):
        random_tasks().tasks(slice(0))


# ---------------------------------------------------------------- what the learner takes

OTHERS: dict[str, tuple[Callable[[Episodes], Episodes], str]] = {
    "features": (
        lambda tasks: tasks.map_tensors(lambda x: x[..., :4] if x.dim() == 3 else x),
        r"\*X = \[5\] for this learner .*got \*X = \[4\]",
    ),
    "images": (lambda tasks: replace(tasks, **{name: getattr(tasks, name)[..., None] for name in INPUTS}), r"got \*X"),
    "float64": (
        lambda tasks: replace(tasks, **{name: getattr(tasks, name).double() for name in INPUTS}),
        "torch.float32",
    ),
    "float16": (
        lambda tasks: replace(tasks, **{name: getattr(tasks, name).half() for name in INPUTS}),
        "torch.float32",
    ),
    "bytes": (lambda tasks: replace(tasks, **{name: getattr(tasks, name).byte() for name in INPUTS}), "torch.float32"),
    "device": (lambda tasks: tasks.to("meta"), "expected tasks on cpu, where the learner is, got meta"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("other", OTHERS)
def test_what_the_learner_does_not_take_is_refused_in_one_line(other: str, door: str) -> None:
    change, message = OTHERS[other]
    with pytest.raises(UsageError, match=message):
        DOORS[door](LEARNERS[str(PAIRS[0])], change(random_tasks()))


def test_arrays_of_numpy_become_a_batch_through_torch() -> None:
    """The line for an array says how, and what it says works."""
    arrays = {name: np.asarray(value) for name, value in tensors_of(False).items() if name != "num_classes"}
    tasks = Episodes(**{name: torch.as_tensor(value) for name, value in arrays.items()}, num_classes=3)
    assert torch.isfinite(LEARNERS[str(PAIRS[0])](tasks)["loss"])


@pytest.mark.parametrize("part", ["model", "guide"])
@pytest.mark.parametrize("other", OTHERS)
def test_the_parts_of_a_learner_say_what_they_take(other: str, part: str) -> None:
    change, message = OTHERS[other]
    for learner in LEARNERS.values():
        with pytest.raises(UsageError, match=message) as error:
            getattr(learner, part)(change(random_tasks()))
        assert "\n" not in str(error.value)


def test_raw_images_for_a_frozen_backbone_are_refused_in_one_line() -> None:
    parts = {"backbone": "conv4", "guide": "proto", "objective": "elbo", "prior": "flat"}
    learner = MetaLearner.build(**parts, input_shape=(3, 16, 16), num_classes=3, frozen=True)
    tasks = random_tasks(features=3 * 16 * 16).map_tensors(
        lambda x: x.unflatten(-1, (3, 16, 16)) if x.shape[-1] == 768 else x
    )
    for call in (
        learner,
        learner.model,
        learner.guide,
        lambda data: learner.posterior_predictive(data.observed(), 2),
        lambda data: evaluate(learner, data, EvalSettings(tasks=3)),
    ):
        with pytest.raises(UsageError, match=r"\*X = \[64\] for this learner \(features if"):
            call(tasks)


# ---------------------------------------------------------------- rows that all point in one direction


def shifted(tasks: Episodes, offset: float) -> Episodes:
    return replace(tasks, **{name: normalize(getattr(tasks, name) + offset, dim=-1) for name in INPUTS})


@pytest.mark.parametrize("door", ["loss", "evaluate"])
def test_a_common_offset_is_refused_in_one_line(door: str) -> None:
    for learner in (LEARNERS[str(PAIRS[0])], LEARNERS[str(PAIRS[1])]):
        with pytest.raises(UsageError, match=r"rows that all point in one direction.*subtract the mean"):
            DOORS[door](learner, shifted(random_tasks(), 1e6))
        DOORS[door](learner, shifted(random_tasks(), 10.0))


def test_a_classifier_refuses_features_with_a_common_offset() -> None:
    tasks = random_tasks(1)
    x, y = tasks.support_x[0].double().numpy(), tasks.support_y[0].numpy()
    learner = LEARNERS[str(PAIRS[0])]
    with pytest.raises(UsageError, match="rows that all point in one direction"):
        FewShotClassifier(learner).fit(normalize(torch.tensor(x + 1e6), dim=-1).numpy(), y)
    same = normalize(torch.tensor(x[:1]), dim=-1).expand(5, -1).numpy()  # queries that are alike are no mistake
    assert len(FewShotClassifier(learner).fit(x, y).predict(same)) == 5
