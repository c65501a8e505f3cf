"""Is the closed form of each head's pullback the gradient that autograd computes, through inner steps too?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import typing_extensions
from torch import Tensor, nn
from torch.nn.functional import normalize

import pyro_metabayes
from pyro_metabayes import MetaLearner, Observed, class_means
from pyro_metabayes.inference.capabilities import has, require
from pyro_metabayes.models.heads import Cosine, CosineOffset, Head, Linear
from pyro_metabayes.models.parts.cosines import LARGE, Cosines, cosines
from pyro_metabayes.models.parts.products import fold_samples
from tests.pairs import FEATURES, HEADS, WAY, Pair, random_tasks

TASKS, POINTS = 3, 7
HEAD_CLASSES = [Cosine, CosineOffset, Linear]
heads = pytest.mark.parametrize("head_class", HEAD_CLASSES)


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def inputs(head: Head, *samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """w [..., T, C, W], x [T, N, D] of unit length, and a cotangent on the logits."""
    w = torch.randn(*samples, TASKS, WAY, head.num_weights(FEATURES))
    x = normalize(torch.randn(TASKS, POINTS, FEATURES), dim=-1)
    return w, x, torch.randn(*samples, TASKS, POINTS, WAY)


@heads
@pytest.mark.parametrize("samples", [(), (4,), (2, 3)])
def test_the_closed_form_is_the_vector_jacobian_product(head_class: type[Head], samples: tuple[int, ...]) -> None:
    head = head_class(3.0)
    w, x, cotangent = inputs(head, *samples)
    logits, pullback = head.outputs_and_pullback(w, x)
    expected_logits, vjp = torch.func.vjp(lambda latent: head.outputs(latent, x), w)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(pullback(cotangent), vjp(cotangent)[0], rtol=1e-10, atol=1e-10)
    leaf = w.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(head.outputs(leaf, x), leaf, cotangent)
    torch.testing.assert_close(pullback(cotangent), by_autograd, rtol=1e-10, atol=1e-10)


@heads
def test_gradients_flow_through_the_closed_form(head_class: type[Head]) -> None:
    """Second derivatives: those of pullback(g) with respect to w, x, g and the head's own parameters."""
    head = head_class(3.0)
    leaves = [value.requires_grad_() for value in inputs(head)]
    weights = torch.randn(leaves[0].shape)

    def gradients(pulled: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        total = (pulled(*leaves) * weights).sum()
        return torch.autograd.grad(total, [*leaves, *head.parameters()], allow_unused=True)

    closed = gradients(lambda w, x, g: head.outputs_and_pullback(w, x)[1](g))
    general = gradients(lambda w, x, g: torch.func.vjp(lambda latent: head.outputs(latent, x), w)[1](g)[0])
    for one, other in zip(closed, general, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@heads
def test_samples_are_a_loop_over_samples(head_class: type[Head]) -> None:
    head = head_class(3.0)
    w, x, cotangent = inputs(head, 2, 3)
    logits, pullback = head.outputs_and_pullback(w, x)
    pulled = pullback(cotangent)
    assert logits.shape == cotangent.shape and pulled.shape == w.shape
    for i in range(2):
        for j in range(3):
            one, pull_one = head.outputs_and_pullback(w[i, j], x)
            torch.testing.assert_close(logits[i, j], one)
            torch.testing.assert_close(pulled[i, j], pull_one(cotangent[i, j]))


def test_folding_is_the_product_written_out() -> None:
    w, x = torch.randn(2, TASKS, WAY, FEATURES), torch.randn(TASKS, POINTS, FEATURES)
    expected = torch.einsum("ltcd,tnd->ltcn", w, x)
    torch.testing.assert_close(fold_samples(w, x), expected)


@pytest.mark.parametrize("samples", [(), (4,), (2, 3)])
def test_the_cosines_own_gradient_is_that_of_autograd(samples: tuple[int, ...]) -> None:
    """To second order, of w and x, through the cosines and the inverse norms; autograd's own is taken for a small w."""
    w, x, _ = inputs(Cosine(), *samples)
    assert w.numel() < LARGE
    weights = [torch.randn_like(value) for value in cosines(w, x)]

    def derivatives(cosines_of: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in (w, x)]
        loss = sum((a * b).square().sum() for a, b in zip(cosines_of(*leaves), weights, strict=True))
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        second = torch.autograd.grad(sum(value.square().sum() for value in first), leaves)
        return [loss, *first, *second]

    for own, expected in zip(derivatives(Cosines.apply), derivatives(cosines), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


def test_the_cosines_own_gradient_bears_functional_transforms_and_a_class_without_support() -> None:
    w, x, _ = inputs(Cosine())
    w[0, 0] = 0

    def loss(cosines_of: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        return lambda w, x: (cosines_of(w.unsqueeze(0), x.unsqueeze(0))[0] - 0.5).square().sum()

    own, expected = (
        torch.func.vmap(torch.func.grad(loss(cosines_of)))(w, x) for cosines_of in (Cosines.apply, cosines)
    )
    torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


def test_a_large_batch_of_tasks_is_its_tasks() -> None:
    """Large enough that logits and gradients come from the cosines' own gradient; task by task they do not."""
    head, many = Cosine(), LARGE // (WAY * FEATURES) + 1
    w, x = torch.randn(many, WAY, FEATURES), normalize(torch.randn(many, POINTS, FEATURES), dim=-1)

    def logits_and_gradient(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = w.clone().requires_grad_()
        logits = head.outputs(leaf, x)
        return logits, torch.autograd.grad(logits.square().sum(), leaf)[0]

    apart = [logits_and_gradient(w[t : t + 1], x[t : t + 1]) for t in range(0, many, 100)]
    for together, each in zip(logits_and_gradient(w, x), zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(together[::100], torch.cat(each), rtol=1e-10, atol=1e-10)


@heads
def test_the_gradient_of_the_weights_is_contiguous(head_class: type[Head]) -> None:
    """Class-major products give dL/dw in the layout of w; query-major ones give a transposed view."""
    head = head_class(3.0)
    w, x, cotangent = inputs(head)
    assert gradient_of(lambda v: fold_samples(v, x), w).is_contiguous()
    assert head.outputs_and_pullback(w, x)[1](cotangent).is_contiguous()
    assert not gradient_of(lambda v: x @ v.mT, w).is_contiguous(), "the check would notice nothing"


def gradient_of(product: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """The gradient in the memory layout of the backward pass, before accumulation."""
    leaf = w[..., :FEATURES].clone().requires_grad_()
    return torch.autograd.grad(product(leaf).square().sum(), leaf)[0]


def test_linear_prototypes_are_squared_distances() -> None:
    """softmax of -|x - m_c|^2, what ProtoNets say, at scale 1."""
    head, means = Linear(), torch.randn(TASKS, WAY, FEATURES)
    _, x, _ = inputs(head)
    distances = torch.cdist(x, means).square()
    got = head.outputs(head.prototypes(means), x).softmax(-1)
    torch.testing.assert_close(got, (-distances).softmax(-1))


def test_cosine_is_the_cosine() -> None:
    head = Cosine(4.0)
    w, x, _ = inputs(head)
    expected = 4 * torch.nn.functional.cosine_similarity(x.unsqueeze(2), w.unsqueeze(1), dim=-1)
    torch.testing.assert_close(head.outputs(w, x), expected)


# ---------------------------------------------------------------- K inner steps


class Slowly(pyro_metabayes.Model):
    """The few-shot classifier with the general outputs_and_pullback: torch.func.vjp, no closed form."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def event_shape(self, observed: Any) -> torch.Size:
        return self.inner.event_shape(observed)

    def prior(self, observed: Any) -> Any:
        return self.inner.prior(observed)

    def likelihood(self, w: Tensor, x: Tensor, observed: Any) -> Any:
        return self.inner.likelihood(w, x, observed)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return self.inner.outputs(w, x)

    def prototypes(self, observed: Any) -> Tensor:
        return self.inner.prototypes(observed)


def loss_and_gradients(learner: MetaLearner) -> dict[str, Tensor]:
    learner.zero_grad()
    torch.manual_seed(3)
    loss = learner(random_tasks())["loss"]
    loss.backward()
    gradients = {
        name.replace("inner.", ""): value.grad for name, value in learner.named_parameters() if value.grad is not None
    }
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "settings",
    [
        {"posterior": "delta"},
        {"posterior": "normal", "inner_kl": 1.0, "inner_samples": 2},
        {"posterior": "amortized", "synthetic_gradient": "equivariant", "initialisation": "global"},
    ],
    ids=str,
)
def test_inner_steps_are_those_of_the_general_pullback(settings: dict[str, Any], head: str, num_steps: int) -> None:
    """Loss, and the gradient of every parameter through K unrolled steps, to 1e-10."""
    pair = Pair("sib", "gaussian", head, settings={**settings, "num_steps": num_steps, "step_size": 0.1})
    learner = pair.learner()
    closed = loss_and_gradients(learner)
    learner.model = Slowly(learner.model)
    learner.guide._model = (learner.model,)
    general = loss_and_gradients(learner)
    assert closed.keys() == general.keys()
    for name, value in general.items():
        torch.testing.assert_close(closed[name], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("head", HEADS)
def test_two_inner_steps_pass_gradcheck(head: str) -> None:
    """Finite differences of theta^2 with respect to what it starts from, the inputs and the head's scale."""
    settings = {"posterior": "delta", "num_steps": 2, "step_size": 0.1, "learn_step_size": True}
    learner = Pair("sib", "flat", head, settings=settings).learner(way=2, features=2)
    episodes = random_tasks(num_tasks=1, way=2, shot=1, query=2, features=2).observed()
    guide: Any = learner.guide
    names = ["start.scale", "log_step_size", "xi.outputs.weight", "xi.norms.0.weight"]

    def theta(query_x: Tensor, *values: Tensor) -> Tensor:
        named = {f"guide.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Mean(guide), named, (replace(episodes, query_x=query_x),))

    values = [episodes.query_x, *(guide.get_parameter(name) for name in names)]
    leaves = [value.detach().clone().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(theta, leaves)


class Mean(nn.Module):
    """The posterior mean of a guide as a module, for torch's functional_call with other parameters."""

    def __init__(self, guide: pyro_metabayes.Guide) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, observed: Observed) -> Tensor:
        return self.guide.posterior(observed).mean


@pytest.mark.parametrize("posterior", ["normal", "delta"])
@pytest.mark.parametrize("head", HEADS)
def test_no_inner_step_is_the_prototype_classifier(posterior: str, head: str) -> None:
    settings = {"num_steps": 0, "posterior": posterior}
    sib = Pair("sib", "flat", head, settings=settings).learner()
    torch.nn.init.ones_(sib.guide.start.scale)
    observed = random_tasks().observed()
    mean = sib.guide.posterior(observed).mean
    torch.testing.assert_close(mean, sib.model.head.prototypes(class_means(observed)), rtol=0, atol=0)
    proto = Pair("proto", "flat", head).learner()
    proto.model.head.load_state_dict(sib.model.head.state_dict())  # prototypes may have parameters
    torch.testing.assert_close(mean, proto.guide.posterior(observed).mean, rtol=0, atol=0)
    if type(sib.model.head) not in HEAD_CLASSES:
        return  # the distance of another head is not known here
    for task in range(observed.num_tasks):  # the nearest mean, written out
        for i, x in enumerate(observed.query_x[task]):
            means = [observed.support_x[task][observed.support_y[task] == c].mean(0) for c in range(WAY)]
            near = [
                float(torch.dot(x, m) / m.norm()) if head.startswith("cosine") else -float((x - m).square().sum())
                for m in means
            ]
            logits = sib.model.outputs(mean, observed.query_x)[task, i]
            assert logits.argmax().item() == max(range(WAY), key=near.__getitem__)


@pytest.mark.parametrize("num_steps", [0, 2])
def test_the_cosine_bias_is_seen_by_xi_alone(num_steps: int) -> None:
    """Without inner steps the bias is the same for all classes: its gradient is 0, up to rounding."""
    settings = {"num_steps": num_steps, "posterior": "delta", "step_size": 0.1}
    learner = Pair("sib", "flat", settings=settings).learner()
    learner(random_tasks())["loss"].backward()
    gradient = learner.model.head.bias.grad.abs().item()
    assert gradient < 1e-14 if num_steps == 0 else gradient > 1e-8


def test_a_class_without_support_stays_finite() -> None:
    """Its weights have length 0 and no direction: no gradient, neither inner nor outer, may blow up there."""
    head = Cosine()
    w = torch.randn(2, 3, 5)
    w[:, 1] = 0
    w.requires_grad_()
    logits, pullback = head.outputs_and_pullback(w, torch.nn.functional.normalize(torch.randn(2, 4, 5), dim=-1))
    gradient = pullback(torch.randn(2, 4, 3))
    assert torch.equal(gradient[:, 1], torch.zeros(2, 5))
    (logits.square().sum() + gradient.square().sum()).backward()
    assert w.grad is not None and torch.isfinite(w.grad).all()


@typing_extensions.runtime_checkable
class HasTrainedScale(typing_extensions.Protocol):
    """A protocol with the instance check of Python 3.12 and later, on every version."""

    scale: Tensor


def test_parameters_and_submodules_are_capabilities_on_every_python() -> None:
    """`isinstance` of Python 3.12 looks into `__dict__` alone, where torch keeps neither."""
    head = Linear()
    assert not isinstance(head, HasTrainedScale)
    assert has(head, HasTrainedScale) and not has(nn.ReLU(), HasTrainedScale)
    assert require(head, HasTrainedScale, "guide=mine") is head
