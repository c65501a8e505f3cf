"""Closed forms of every model (pullback, derivatives, CDF, mean), compared with its outputs and likelihood.

Models are found in the folder. A test has the name of the model and its settings.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Categorical, Laplace, Normal, OrderedLogistic, TorchDistribution
from torch import Tensor
from torch.nn.functional import pad

import pyro_metabayes
from pyro_metabayes import Episodes, MetaLearner, Observed, UsageError, class_means, models
from pyro_metabayes.guides import laplace, llama, maml, sib
from pyro_metabayes.inference.descent import loss_gradient, output_gradient
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.inference.family import class_probabilities
from pyro_metabayes.inference.laplace import fisher_root
from pyro_metabayes.likelihoods.numbers import NumberPredictions
from pyro_metabayes.likelihoods.predictions import predictions_of
from pyro_metabayes.models import (
    few_shot_classifier,
    generalised_regression,
    hierarchical_regression,
    linear_regression,
)
from pyro_metabayes.models.backbones import identity
from pyro_metabayes.models.heads import Linear
from pyro_metabayes.models.priors import Gaussian
from pyro_metabayes.objectives.elbo import Elbo
from tests.pairs import FEATURES, WAY, Pair, every_pair, random_regressions, random_tasks

TASKS, POINTS = 3, 4


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


# ---------------------------------------------------------------- models that claim a closed form


def one_per_model() -> dict[str, Pair]:
    """One pair for every generative model in the folder."""
    return {f"{pair.model}-{pair.regression}": pair for pair in every_pair()}


def canonical_classes() -> set[type]:
    names = [module.name for module in pkgutil.iter_modules(models.__path__)]
    found = [getattr(importlib.import_module(f"pyro_metabayes.models.{name}"), "Model", None) for name in names]
    return {cls for cls in found if cls is not None and cls.canonical is not False}


def test_every_model_that_claims_closed_forms_is_tried() -> None:
    assert canonical_classes() <= {type(pair.learner().model) for pair in one_per_model().values()}
    assert len(canonical_classes()) >= 7


def hessians(model: Any, outputs: Tensor, y: Tensor) -> Tensor:
    """Hessians [N, C, C] of -log p(y | outputs), by a loop over points."""

    def loss(at: Tensor, label: Tensor) -> Tensor:
        return -model.likelihood_of(at.unsqueeze(0)).log_prob(label.unsqueeze(0)).sum()

    each = zip(outputs, y, strict=True)
    return torch.stack([torch.func.jacrev(torch.func.grad(lambda at, y=label: loss(at, y)))(o) for o, label in each])


def every_variant() -> dict[str, Pair]:
    """A pair of every model with each of its heads and settings."""
    return {
        "-".join([pair.model, pair.head, f"{pair.regression}", *map(str, pair.model_settings.values())]): pair
        for pair in every_pair()
    }


variants = pytest.mark.parametrize("pair", every_variant().values(), ids=every_variant().keys())


@variants
def test_the_pullback_is_the_vector_jacobian_product_of_the_outputs(pair: Pair) -> None:
    """Of every model, since a step of an inner loop takes it whether the model is canonical or not."""
    check_pullback(pair.learner().model, pair.tasks(TASKS))


@variants
def test_the_predictions_have_the_distribution_of_the_likelihood(pair: Pair) -> None:
    """The CDF and the mean that scores read, against sums and integrals of the density."""
    check_predictions(pair.learner().model, pair.tasks(TASKS))


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (hierarchical_regression, {"row_weights": 1}),
        (generalised_regression, {"row_offsets": 1}),
        (generalised_regression, {"row_offsets": 1, "family": "poisson"}),
    ],
    ids=["weight", "offset of 0 and 1", "offset of counts"],
)
def test_a_column_beside_the_features_belongs_to_the_pullback(module: Any, settings: dict[str, Any]) -> None:
    """The weight or the offset of a row, which only groups have."""
    prior = Gaussian(num_weights=2, scale=0.5)
    check_pullback(module.Model(prior, 1, 4, 2, **settings), random_regressions(features=4, targets=1))


def check_pullback(model: Any, episodes: Episodes) -> None:
    """Check the pullback at two latents per task."""
    x = episodes.query_x
    w = 0.5 * torch.randn(2, episodes.num_tasks, *model.event_shape(episodes.observed()))
    outputs, pullback = model.outputs_and_pullback(w, x)
    expected, vjp, *_ = torch.func.vjp(lambda latent: model.outputs(latent, x), w)
    cotangent = torch.randn_like(expected)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(pullback(cotangent), vjp(cotangent)[0])


def check_predictions(model: Any, episodes: Episodes) -> None:
    """Check predictions of one query on a grid [G] of values of the first component of its label."""
    observed = episodes.observed().tasks(slice(0, 1))
    w = 0.5 * torch.randn(1, 1, *model.event_shape(observed))

    def likelihood(num_labels: int) -> TorchDistribution:
        x = observed.query_x[:, :1]
        torch.manual_seed(5)  # a model may decode its weights with noise
        return model.likelihood(w, x.expand(-1, num_labels, *x.shape[2:]), observed)

    if episodes.num_classes:
        return  # labels without an order
    labels = grid_of(innermost(likelihood(1)))
    family: Any = innermost(likelihood(len(labels)))
    mask = torch.ones(1, len(labels), dtype=torch.bool)
    columns = labels.view(1, -1, 1).expand(1, len(labels), *family.batch_shape[3:])
    predictions: Any = predictions_of(likelihood(len(labels)), columns, mask)
    if predictions.pit_bounds is None:
        return  # 0 and 1 are classes
    density = family.log_prob(columns)[0, 0].exp()[:, 0]
    below, up_to = cumulative(labels, density, family.support.is_discrete)
    low, high = (bound.view(len(labels), -1)[:, 0] for bound in predictions.pit_bounds)
    assert up_to[-1].item() == pytest.approx(1, abs=1e-3), "the density does not integrate to 1"
    torch.testing.assert_close(high, up_to, atol=1e-3, rtol=0)
    torch.testing.assert_close(low, below, atol=1e-3, rtol=0)
    if isinstance(predictions, NumberPredictions):
        at = labels if family.support.is_discrete else labels - labels.diff(prepend=labels[:1]) / 2
        mean = at @ up_to.diff(prepend=torch.zeros(1))
        torch.testing.assert_close(predictions.mean[0, 0, 0, 0], mean, atol=1e-2, rtol=1e-2)


def grid_of(family: Any) -> Tensor:
    """A grid of whole numbers, or of numbers that is dense near the draws of a distribution and reaches far beyond."""
    draws = family.sample((1000,))[..., 0].flatten()
    if family.support.is_discrete:
        most = 3 * draws.abs().max() + 20
        values = torch.arange(-most, most + 1)
    else:
        low, middle, high = draws.quantile(torch.tensor([0.25, 0.5, 0.75]))
        values = middle + (high - low) * torch.linspace(-12, 12, 4001).sinh()
    return values[family.support.check(values)]


def cumulative(labels: Tensor, density: Tensor, discrete: bool) -> tuple[Tensor, Tensor]:
    """P(label < y) and P(label <= y) [G] by sums, or by the trapezoidal rule."""
    if discrete:
        up_to = density.cumsum(0)
        return up_to - density, up_to
    up_to = torch.cat((torch.zeros_like(density[:1]), torch.cumulative_trapezoid(density, labels)))
    return up_to, up_to


@pytest.mark.parametrize("pair", one_per_model().values(), ids=one_per_model().keys())
def test_closed_forms_are_the_derivatives_of_the_likelihood(pair: Pair) -> None:
    model: Any = pair.learner().model
    if not model.canonical:
        pytest.skip("the model claims no closed form")
    check_gradient(model, pair.tasks(TASKS))
    check_curvature(model, pair.tasks(TASKS))


def outputs_of(model: Any, episodes: Episodes) -> Tensor:
    """Outputs at two random latents."""
    w = 0.5 * torch.randn(2, episodes.num_tasks, *model.event_shape(episodes))
    return model.outputs(w, episodes.query_x).detach()


def check_gradient(model: Any, episodes: Episodes) -> None:
    outputs, y = outputs_of(model, episodes), episodes.query_y
    mask = torch.rand(episodes.query_mask.shape) < 0.6
    expected = torch.func.grad(lambda at: -(model.likelihood_of(at).log_prob(y) * mask).sum())(outputs)
    with torch.no_grad():
        torch.testing.assert_close(output_gradient(model, outputs, y, mask), expected)


def check_curvature(model: Any, episodes: Episodes) -> None:
    outputs, y = outputs_of(model, episodes), episodes.query_y
    with torch.no_grad():
        root = fisher_root(model, outputs)[0, 0]
    torch.testing.assert_close(root @ root.mT, hessians(model, outputs[0, 0], y[0]))


# ---------------------------------------------------------------- models that claim none


class Tempered(few_shot_classifier.Model):
    """A model with the likelihood softmax(outputs / 4)."""

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return Categorical(logits=outputs / 4)


class Ordinal(few_shot_classifier.Model):
    """Cumulative logit: P(y <= c) = sigmoid(cutpoint_c - w . x), one row of weights for all classes."""

    def event_shape(self, observed: Observed) -> torch.Size:
        return torch.Size((1, observed.query_x.shape[-1] + 1))

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return OrderedLogistic(outputs.squeeze(-1), torch.arange(WAY - 1.0, device=outputs.device) - 0.3)

    def initial_latent(self, num_classes: int, num_features: int) -> Tensor:
        return 0.1 * torch.ones(1, num_features + 1)

    def prototypes(self, observed: Observed) -> Tensor:
        means = class_means(observed)
        return pad(means[:, -1:] - means[:, :1], (0, 1))


class NumbersOrdinal(Ordinal):
    """The same model with outputs [..., T, N], without an axis for components."""

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        return super().outputs(w, x).squeeze(-1)

    def outputs_and_pullback(self, w: Tensor, x: Tensor) -> Any:
        value, pullback = super().outputs_and_pullback(w, x)
        return value.squeeze(-1), lambda cotangent: pullback(cotangent.unsqueeze(-1))

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return super().likelihood_of(outputs.unsqueeze(-1))


class Heteroscedastic(linear_regression.Model):
    """y ~ N(exp(first output), exp(second output)^2)."""

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        return Normal(outputs[..., :1].exp(), outputs[..., 1:].exp()).to_event(1)


PLANTED = [Tempered, Ordinal, NumbersOrdinal]
planted = pytest.mark.parametrize("kind", PLANTED)


def model_of(kind: type) -> Any:
    return kind(Linear(), Gaussian(num_weights=FEATURES + 1, scale=0.5))


def learner_of(model: Any, guide: Any) -> MetaLearner:
    return MetaLearner(identity.Backbone(input_shape=[FEATURES], normalise=False), model, guide, Elbo())


def masked(episodes: Episodes) -> Episodes:
    support, query = episodes.support_mask.clone(), episodes.query_mask.clone()
    support[0, 0] = query[1, 2] = False
    return replace(episodes, support_mask=support, query_mask=query)


def test_another_likelihood_does_not_inherit_the_claim() -> None:
    class Mixin:
        likelihood_of = Tempered.likelihood_of

    class Mixed(Mixin, few_shot_classifier.Model):  # type: ignore[misc]
        pass

    class Claimed(few_shot_classifier.Model):
        canonical = True
        likelihood_of = few_shot_classifier.Model.likelihood_of

    class Renamed(few_shot_classifier.Model):
        pass

    assert [kind.canonical for kind in (Tempered, Ordinal, Mixed, Claimed, Renamed)] == [False] * 3 + [True] * 2
    assert pyro_metabayes.Model.canonical is False


def test_a_claim_for_another_family_is_refused() -> None:
    class Wrong(few_shot_classifier.Model):
        canonical = True

        def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
            return Laplace(outputs, 1.0).to_event(1)

    points = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(1, 2)
    message = r"a Categorical or Normal likelihood .*delete `canonical = True` from tests\.test_likelihoods\.Wrong"
    with pytest.raises(UsageError, match=message):
        output_gradient(model_of(Wrong), *points)
    with pytest.raises(UsageError, match=message):
        fisher_root(model_of(Wrong), points[0])


def test_a_claim_for_another_mean_or_scale_is_found() -> None:
    """By the check that every model of the folder goes through."""

    class Exponential(linear_regression.Model):
        canonical = True

        def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
            return Normal(outputs.exp(), self.noise).to_event(1)

    class Colder(few_shot_classifier.Model):
        canonical = True
        likelihood_of = Tempered.likelihood_of

    regression = Exponential(Gaussian(num_weights=3), num_targets=2, num_features=3)
    for model, episodes in ((regression, random_regressions()), (model_of(Colder), random_tasks())):
        with pytest.raises(AssertionError):
            check_gradient(model, episodes)
        with pytest.raises(AssertionError):
            check_curvature(model, episodes)


@planted
def test_the_gradient_is_that_of_the_likelihood_for_samples_and_masks(kind: type) -> None:
    model, episodes = model_of(kind), masked(random_tasks(TASKS))
    w = torch.randn(2, TASKS, *model.event_shape(episodes), requires_grad=True)
    points = episodes.support_x, episodes.support_y, episodes.support_mask
    log_prob = model.likelihood(w, points[0], episodes).log_prob(points[1])
    (expected,) = torch.autograd.grad(-(log_prob * points[2]).sum(), w)
    with torch.no_grad():
        torch.testing.assert_close(loss_gradient(model, w, *points), expected)
    torch.testing.assert_close(loss_gradient(model, w, *points), expected)


@planted
def test_the_root_is_that_of_the_expected_hessian(kind: type) -> None:
    model = model_of(kind)
    outputs = torch.randn(POINTS, *([WAY] if kind is Tempered else [1] if kind is Ordinal else []))
    probs = model.likelihood_of(outputs).probs.mT.view(WAY, POINTS, 1, 1)
    of_labels = torch.stack([hessians(model, outputs, torch.full((POINTS,), c)) for c in range(WAY)])
    expected = (probs * of_labels.view(WAY, POINTS, *[outputs[0].numel()] * 2)).sum(0)
    root = fisher_root(model, outputs).view(POINTS, -1, WAY)
    torch.testing.assert_close(root @ root.mT, expected)


def test_the_root_of_a_normal_with_another_mean_and_scale() -> None:
    """Fisher information of N(m, s^2): 1 / s^2 for m and 2 for log s, with m = exp(o_1) and log s = o_2."""
    model = Heteroscedastic(Gaussian(num_weights=2), num_targets=2, num_features=2)
    outputs = torch.randn(POINTS, 2)
    root = fisher_root(model, outputs)
    mean, sd = outputs.exp().unbind(-1)
    expected = torch.diag_embed(torch.stack((mean.square() / sd.square(), torch.full_like(sd, 2.0)), -1))
    torch.testing.assert_close(root @ root.mT, expected)


@planted
def test_the_derivatives_run_on_the_meta_device(kind: type) -> None:
    model, episodes = model_of(kind).to("meta"), random_tasks(TASKS).to(torch.device("meta"))
    w = torch.zeros(TASKS, *model.event_shape(episodes), device="meta")
    with pyro.validation_enabled(False), torch.no_grad():
        gradient = loss_gradient(model, w, episodes.support_x, episodes.support_y, episodes.support_mask)
        root = fisher_root(model, model.outputs(w, episodes.support_x))
    assert gradient.device.type == root.device.type == "meta" and gradient.shape == w.shape


# ---------------------------------------------------------------- the guides with them


def by_autograd(model: Any, w: Tensor, episodes: Episodes, part: str) -> Tensor:
    """d/dw of the sum of -log p over the unmasked points of the support or query set."""
    x, y, mask = (getattr(episodes, f"{part}_{name}") for name in ("x", "y", "mask"))
    w = w.detach().requires_grad_()
    (slope,) = torch.autograd.grad(-(model.likelihood(w, x, episodes).log_prob(y) * mask).sum(), w)
    return slope


def fisher_by_hand(model: Any, w: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """sum_i E_y[g g^T] [T, P, P], where g is the gradient of log p(y | x_i, w), by loops over points and classes."""
    total = torch.zeros(len(w), w[0].numel(), w[0].numel())
    for t in range(len(w)):
        for i in mask[t].nonzero().flatten().tolist():
            at = w[t : t + 1].detach().requires_grad_()
            log_probs = model.likelihood(at, x[t : t + 1, i : i + 1], None).logits.flatten()
            for log_prob in log_probs:
                slope = torch.autograd.grad(log_prob, at, retain_graph=True)[0].flatten()
                total[t] += log_prob.exp().detach() * slope.outer(slope)
    return total


@planted
def test_maml_descends_on_the_likelihood_of_the_model(kind: type) -> None:
    model, episodes = model_of(kind), masked(random_tasks(TASKS))
    guide = maml.Guide(model, WAY, FEATURES, num_steps=1, step_size=0.3)
    start = guide.start.point.expand(TASKS, -1, -1)
    rate = 0.3 / episodes.support_mask.sum(-1).view(-1, 1, 1)
    expected = start - rate * by_autograd(model, start, episodes, "support")
    torch.testing.assert_close(guide.posterior(episodes.observed()).mean, expected)


@planted
def test_laplace_has_the_curvature_of_the_likelihood(kind: type) -> None:
    model, episodes = model_of(kind), masked(random_tasks(TASKS))
    q: Any = laplace.Guide(model, num_steps=2, step_size=0.3).posterior(episodes.observed())
    precision = torch.diag_embed(1 / model.prior(episodes).variance.flatten(1))
    precision = precision + fisher_by_hand(model, q.loc, episodes.support_x, episodes.support_mask)
    torch.testing.assert_close(q.variance.flatten(1), torch.linalg.inv(precision).diagonal(dim1=-2, dim2=-1))


@planted
def test_llama_corrects_by_the_curvature_of_the_likelihood(kind: type) -> None:
    model, episodes = model_of(kind), masked(random_tasks(TASKS))
    guide = llama.Guide(model, WAY, FEATURES, weight=0.5, step_size=0.3)
    q: Any = guide.training_posterior(episodes)
    fisher = fisher_by_hand(model, q.mean, episodes.query_x, episodes.query_mask)
    expected = 0.5 * 0.5 * torch.logdet(fisher + torch.eye(fisher.shape[-1]))
    torch.testing.assert_close(q.log_density, expected)


@planted
@pytest.mark.parametrize("name", ["maml", "laplace", "llama", "sib"])
def test_a_guide_trains_and_evaluates(kind: type, name: str) -> None:
    model, episodes = model_of(kind), masked(random_tasks(TASKS))
    if kind is NumbersOrdinal and name == "sib":
        pytest.skip("a synthetic-gradient network takes outputs with an axis of classes")
    guide: Any = {
        "maml": lambda: maml.Guide(model, WAY, FEATURES),
        "laplace": lambda: laplace.Guide(model),
        "llama": lambda: llama.Guide(model, WAY, FEATURES),
        "sib": lambda: sib.Guide(model, WAY, FEATURES + 1, synthetic_gradient="equivariant", inner_kl=1.0),
    }[name]()
    learner = learner_of(model, guide)
    learner(episodes)["loss"].backward()
    for parameter in guide.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    with torch.no_grad():
        terms = Elbo(kl="analytic").terms(model, guide, episodes)
    assert terms.loss.isfinite()


def test_sib_savi_takes_the_entropy_of_the_predictions_of_the_model() -> None:
    outputs = torch.randn(2, 3, WAY)
    probs = class_probabilities(model_of(Tempered), outputs)
    torch.testing.assert_close(probs, (outputs / 4).softmax(-1))


def test_closed_forms_of_a_regression_need_its_likelihood() -> None:
    model = Heteroscedastic(Gaussian(num_weights=3), num_targets=2, num_features=3)
    with pytest.raises(
        UsageError,
        match="expected the likelihood of model=linear_regression for closed forms",
    ):
        model.exact_posterior(random_regressions())


def test_a_bounded_loss_is_claimed_for_the_known_likelihood_alone() -> None:
    """The range of the cross-entropy of a cosine head, which sigma of the information bound is half of."""
    learner: Any = Pair("sib").learner()
    episodes = random_tasks()
    assert learner.model.loss_range(episodes) is not None
    assert Tempered(learner.model.head, learner.model.prior_over_weights).loss_range(episodes) is None
