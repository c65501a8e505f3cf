"""Pyro's objectives train our models and guides. Objectives that Pyro and we define have equal values."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro import infer, poutine
from torch import nn

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.objectives.importance_weighted import ImportanceWeighted
from pyro_metabayes.objectives.objective import Objective
from tests.pairs import Pair

STEPS = {"num_steps": 2, "step_size": 0.1}
PAIRS = [
    Pair("sib", settings=STEPS),
    Pair("savi", "conditional"),
    Pair("maml", "flat", settings=STEPS),
    Pair("mean_field", model="linear_regression"),
]
THEIRS: dict[str, tuple[Any, Objective]] = {
    "Trace_ELBO": (infer.Trace_ELBO(), Elbo()),
    "Trace_ELBO, vectorised": (
        infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        Elbo(particles=3),
    ),
    "TraceMeanField_ELBO": (infer.TraceMeanField_ELBO(), Elbo(kl="analytic")),
    "TraceGraph_ELBO": (infer.TraceGraph_ELBO(), Elbo()),
    "TraceEnum_ELBO": (infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False), Elbo()),
    "RenyiELBO": (
        infer.RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        ImportanceWeighted(particles=3),
    ),
}
JIT = ["JitTrace_ELBO", "JitTraceMeanField_ELBO", "JitTraceGraph_ELBO", "JitTraceEnum_ELBO"]


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def svi_of(learner: MetaLearner, loss: Any) -> infer.SVI:
    return infer.SVI(learner.model, learner.guide, pyro.optim.SGD({"lr": 1e-3}), loss)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_step_of_svi_is_that_of_our_objective(pair: Pair, name: str) -> None:
    """The loss, and every parameter after a step of SGD, on the same draws of one task."""
    theirs, ours = THEIRS[name]
    learners, episodes, losses = (pair.learner(), pair.learner()), pair.tasks(num_tasks=1), []
    start = nn.utils.parameters_to_vector(learners[0].parameters()).detach()
    for learner, loss in zip(learners, (theirs, ours.differentiable_loss), strict=True):
        torch.manual_seed(4)
        losses.append(svi_of(learner, loss).step(episodes))
    one, other = (nn.utils.parameters_to_vector(learner.parameters()).detach() for learner in learners)
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    torch.testing.assert_close(one, other)
    assert not torch.equal(one, start)


@pytest.mark.parametrize("name", JIT)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_compiled_objective_is_refused_in_one_line(pair: Pair, name: str) -> None:
    keywords = {"max_plate_nesting": 1} if "Enum" in name else {}
    svi = svi_of(pair.learner(), getattr(infer, name)(ignore_jit_warnings=True, **keywords))
    with pytest.raises(UsageError, match=r"^expected an objective that is not compiled, .*; use the class without Jit"):
        svi.step(pair.tasks())


def test_svi_inside_a_block_is_not_taken_for_a_compiled_one() -> None:
    learner = PAIRS[0].learner()
    with poutine.block():
        assert svi_of(learner, infer.Trace_ELBO()).step(PAIRS[0].tasks()) > 0
