"""maml and related guides, compared with closed forms and explicit loops of the published algorithms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Gamma, Normal, kl_divergence

from pyro_metabayes import Episodes, MetaLearner, UsageError
from pyro_metabayes.inference.descent import descend, loss_gradient, output_gradient
from pyro_metabayes.models.neural_regression import Network
from tests.pairs import Pair, random_regressions, random_tasks

STEPS = {"num_steps": 3, "step_size": 0.1}
MAML = Pair("maml", "flat", model="neural_regression", settings=STEPS)
PLATIPUS = Pair("platipus", model="platipus", numbers=True)


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


# ---------------------------------------------------------------- the network


def test_the_network_is_torchs() -> None:
    head = Network(2, 3, hidden=[5, 4])
    w, x = head.initial_weights(3, 2), torch.randn(1, 7, 2)
    layers: list[nn.Module] = []
    start = 0
    for inputs, outputs in ((2, 5), (5, 4), (4, 3)):
        matrix = w[0, start : start + (inputs + 1) * outputs].view(inputs + 1, outputs)
        layer = nn.Linear(inputs, outputs)
        layer.load_state_dict({"weight": matrix[:-1].mT, "bias": matrix[-1]})
        layers += [layer, nn.ReLU()]
        start += (inputs + 1) * outputs
    torch.testing.assert_close(head.outputs(w.unsqueeze(0), x), nn.Sequential(*layers[:-1])(x))


def test_mamls_network_has_1761_weights_of_torchs_size() -> None:
    head = Network(1, 1)
    assert head.num_weights(1) == 1761
    hidden = head.initial_weights(1, 1)[0, 80 : 80 + 1640]
    assert hidden.abs().max() <= 40**-0.5 and hidden.std().item() == pytest.approx((3 * 40) ** -0.5, rel=0.05)


@pytest.mark.parametrize("leading", [(), (4,)])
def test_the_networks_pullback_is_its_vjp(leading: tuple[int, ...]) -> None:
    """In value, and in the gradient of a gradient, which second-order MAML takes."""
    head = Network(2, 3, hidden=[5, 4])
    w = torch.randn(*leading, 2, 1, head.num_weights(2), requires_grad=True)
    x, cotangent = torch.randn(2, 6, 2), torch.randn(*leading, 2, 6, 3, requires_grad=True)
    outputs, pullback = head.outputs_and_pullback(w, x)
    (expected,) = torch.autograd.grad(outputs, w, cotangent, create_graph=True)
    got = pullback(cotangent)
    torch.testing.assert_close(got, expected)
    second = [torch.autograd.grad(its.square().sum(), (w, cotangent), retain_graph=True) for its in (got, expected)]
    torch.testing.assert_close(*second)


# ---------------------------------------------------------------- descent


@pytest.mark.parametrize("pair", [MAML, Pair("maml", "flat", "linear"), Pair("maml", "flat", "cosine")], ids=str)
def test_the_gradient_is_that_of_the_loss_of_the_points_that_are_there(pair: Pair) -> None:
    model: Any = pair.learner().model
    episodes = pair.tasks()
    w = torch.randn(episodes.num_tasks, *model.event_shape(episodes), requires_grad=True)
    mask = torch.rand(episodes.support_mask.shape) < 0.5
    likelihood = model.likelihood(w, episodes.support_x, episodes)
    loss = -(likelihood.log_prob(episodes.support_y) * mask).sum()
    got = loss_gradient(model, w, episodes.support_x, episodes.support_y, mask)
    torch.testing.assert_close(got, torch.autograd.grad(loss, w)[0])


def test_a_family_without_a_closed_form_is_differentiated() -> None:
    class Laplacian(nn.Module):
        canonical = False

        def likelihood_of(self, outputs: Tensor) -> Any:
            return torch.distributions.Independent(torch.distributions.Laplace(outputs, 0.5), 1)

    outputs, y = torch.randn(2, 3, 1), torch.randn(2, 3, 1)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    expected = (outputs - y).sign() / 0.5 * mask.unsqueeze(-1)
    model: Any = Laplacian()
    torch.testing.assert_close(output_gradient(model, outputs, y, mask), expected)


def test_descent_on_a_quadratic() -> None:
    start = torch.tensor([[4.0], [-2.0]])
    torch.testing.assert_close(descend(start, lambda w: 2 * w, 0.1, 5), start * 0.8**5)
    assert descend(start, lambda w: 2 * w, 0.1, 0) is start


def test_descent_in_a_linear_model_is_the_map_estimate() -> None:
    """K steps at rate a from theta: the MAP under N(theta, Q), Q = O L^-1 ((I - a L)^-K - I) O^T, H = O L O^T.

    (Santos 1996; Grant et al. 2018, section 3.)
    """
    pair = Pair("maml", "flat", model="linear_regression", settings=STEPS)
    learner, episodes = pair.learner(), random_regressions(support=8, whole=True)
    guide: Any = learner.guide
    noise, rate = 0.7, guide.log_step_size.exp() * 2 * 0.7**2 / 8
    with torch.no_grad():
        phi = guide.posterior(episodes.observed()).mean
    for x, y, w in zip(episodes.support_x, episodes.support_y, phi, strict=True):
        hessian = x.mT @ x / noise**2
        eigenvalues, basis = torch.linalg.eigh(hessian)
        covariance = basis @ torch.diag(((1 - rate * eigenvalues) ** -3 - 1) / eigenvalues) @ basis.mT
        precision = torch.linalg.inv(covariance)
        at = torch.linalg.solve(hessian + precision, x.mT @ y / noise**2 + precision @ guide.start.point.mT)
        assert (at.mT - w).abs().max() < 1e-10


# ---------------------------------------------------------------- maml


def by_hand(learner: MetaLearner, episodes: Episodes, num_steps: int) -> Tensor:
    """MAML's loss by a loop over tasks and autograd. The step size is for the mean squared error."""
    guide: Any = learner.guide
    model: Any = learner.model
    total = torch.zeros(())
    for t in range(episodes.num_tasks):
        w, here = guide.start.point.unsqueeze(0), slice(t, t + 1)
        kept = episodes.support_mask[t]
        x, y = episodes.support_x[here, kept], episodes.support_y[here, kept]
        for _ in range(num_steps):
            loss = (model.outputs(w, x) - y).square().mean()
            w = w - guide.log_step_size.exp() * torch.autograd.grad(loss, w, create_graph=True)[0]
        kept = episodes.query_mask[t]
        likelihood = model.likelihood(w, episodes.query_x[here, kept], episodes)
        total = total - likelihood.log_prob(episodes.query_y[here, kept]).sum()
    return total / episodes.num_tasks


def meta_gradient(learner: MetaLearner, loss: Tensor) -> Tensor:
    guide: Any = learner.guide
    return torch.autograd.grad(loss, guide.start.point)[0]


def test_mamls_meta_gradient_is_that_of_the_loop_by_hand_and_not_first_order() -> None:
    learner, episodes = MAML.learner(), MAML.tasks()
    ours, reference = learner(episodes)["loss"], by_hand(learner, episodes, 3)
    torch.testing.assert_close(ours, reference)
    gradient = meta_gradient(learner, reference)
    torch.testing.assert_close(meta_gradient(learner, ours), gradient, rtol=1e-6, atol=1e-9)
    guide: Any = learner.guide
    guide.first_order = True
    gap = (meta_gradient(learner, learner(episodes)["loss"]) - gradient).norm() / gradient.norm()
    assert gap > 0.05


def test_the_first_order_meta_gradient_is_the_gradient_at_the_end() -> None:
    """d loss(phi) / d phi, summed over tasks: d phi / d theta is taken for the identity."""
    learner, episodes = MAML.learner(), MAML.tasks()
    guide: Any = learner.guide
    model: Any = learner.model
    guide.first_order = True
    phi = guide.posterior(episodes.observed()).mean.detach()
    at_the_end = loss_gradient(model, phi, episodes.query_x, episodes.query_y, episodes.query_mask)
    torch.testing.assert_close(meta_gradient(learner, learner(episodes)["loss"]), at_the_end.mean(0))


def test_a_gaussian_prior_makes_a_proximal_term_of_the_initialisation() -> None:
    settings = {**STEPS, "initialisation": "prior"}
    learner = replace(MAML, prior="gaussian", settings=settings).learner()
    episodes = MAML.tasks()
    prior = learner.model.prior(episodes)
    phi = learner.guide.posterior(episodes.observed()).mean
    gap = (
        learner(episodes)["loss"]
        + learner.model.likelihood(phi, episodes.query_x, episodes)
        .mask(episodes.query_mask)
        .log_prob(episodes.query_y)
        .sum()
        / episodes.num_tasks
    )
    torch.testing.assert_close(gap, -prior.log_prob(phi).mean())


def test_learned_rates_and_noise_get_gradients() -> None:
    learner = replace(MAML, settings={**STEPS, "learn_step_size": True}).learner()
    specification = learner.specification | {"model": {**learner.specification["model"], "learn_noise": True}}
    noisy = MetaLearner.from_specification(specification)
    noisy(MAML.tasks())["loss"].backward()
    gradients = {name: value.grad for name, value in noisy.named_parameters()}
    for name in ("model.log_noise", "guide.log_step_size"):
        assert gradients[name] is not None and gradients[name].abs() > 0


def test_inner_steps_lower_the_loss_of_the_support_set() -> None:
    """Of a classifier on frozen features, too, from each initialisation."""
    for initialisation in ("global", "support"):
        settings = {"num_steps": 10, "step_size": 0.05, "initialisation": initialisation}
        learner, episodes = Pair("maml", "flat", settings=settings).learner(), random_tasks()
        guide: Any = learner.guide

        def loss(w: Tensor, learner: MetaLearner = learner, episodes: Episodes = episodes) -> Tensor:
            likelihood = learner.model.likelihood(w, episodes.support_x, episodes)
            return -likelihood.log_prob(episodes.support_y).sum(-1)

        before, after = loss(guide.start(learner.model, episodes)), loss(guide.posterior(episodes).mean)
        assert (after < before).all()


@pytest.mark.parametrize("name", ["maml", "llama"])
def test_a_step_of_the_default_size_is_the_papers_and_moves_the_logits(name: str) -> None:
    learner, episodes = Pair(name, "flat").learner(), random_tasks()
    guide: Any = learner.guide
    assert guide.log_step_size.exp().item() == pytest.approx(0.4)

    def log_prob(w: Tensor) -> Tensor:
        return learner.model.likelihood(w, episodes.support_x, episodes).log_prob(episodes.support_y).mean()

    start, adapted = guide.start(learner.model, episodes), guide.posterior(episodes.observed()).mean
    assert log_prob(adapted) - log_prob(start) > 0.1, "nats per support point"


def test_the_default_step_size_of_a_regression_is_that_of_sinusoids() -> None:
    guide: Any = replace(MAML, settings={}).learner().guide
    assert guide.log_step_size.exp().item() == pytest.approx(0.01)


# ---------------------------------------------------------------- abml


def test_abmls_step_is_bayes_by_backprop_from_the_prior() -> None:
    """With the same noise, autograd on E_q[-log p(support)] + inner_kl KL(q, prior) in (mu, log sigma).

    The next mu is where mu - a (slope of the points at mu) - a inner_kl (next mu - mu_0) / sigma_0^2 puts it.
    """
    settings = {"num_steps": 2, "step_size": 0.1, "inner_samples": 3, "inner_kl": 0.5}
    pair = Pair("abml", model="neural_regression", settings=settings)
    learner, episodes = pair.learner(), pair.tasks()
    guide: Any = learner.guide
    torch.manual_seed(3)
    got = guide.posterior(episodes.observed())
    torch.manual_seed(3)
    prior: Any = learner.model.prior(episodes).base_dist
    loc, log_scale = prior.mean.detach().requires_grad_(), prior.stddev.log().detach().requires_grad_()
    counts = episodes.support_mask.sum(-1).view(-1, 1, 1)
    for _ in range(2):
        w = loc + log_scale.exp() * torch.randn(3, *loc.shape)
        log_likelihood = learner.model.likelihood(w, episodes.support_x, episodes).log_prob(episodes.support_y)
        kl = kl_divergence(Normal(loc, log_scale.exp()), prior).sum()
        nll = -(log_likelihood * episodes.support_mask).sum() / 3
        rate = guide.log_step_size.exp().detach() * 2 * 0.7**2 / counts
        (of_loc,) = torch.autograd.grad(nll, loc, retain_graph=True)
        (of_log_scale,) = torch.autograd.grad(nll + 0.5 * kl, log_scale)
        pull = rate * 0.5 / prior.variance
        loc, log_scale = (loc - rate * of_loc + pull * prior.mean) / (1 + pull), log_scale - rate * of_log_scale
    torch.testing.assert_close(got.mean, loc)
    torch.testing.assert_close(got.stddev, log_scale.exp())


@pytest.mark.parametrize("name", ["laplace", "abml"])
def test_a_narrow_prior_holds_descent_back_and_does_not_blow_it_up(name: str) -> None:
    pair = Pair(name, model="neural_regression", settings={"num_steps": 20, "step_size": 0.1})
    learner, episodes = pair.learner(), pair.tasks()
    prior: Any = learner.model.prior_over_weights
    with torch.no_grad():
        prior.log_scale.fill_(math.log(1e-4))
    q = learner.guide.posterior(episodes.observed())
    assert (q.mean - prior.loc).abs().max() < 1e-3


def test_abmls_outer_loss_is_the_elbo_of_support_and_query() -> None:
    pair = Pair("abml", model="neural_regression", observe="all", settings={"num_steps": 0})
    learner, episodes = pair.learner(), pair.tasks()
    torch.manual_seed(3)
    loss = learner(episodes)["loss"]
    torch.manual_seed(3)
    w = learner.guide.posterior(episodes.observed()).rsample()  # at K = 0 the prior itself: no KL
    pooled = episodes.pooled()
    log_likelihood = learner.model.likelihood(w, pooled.support_x, pooled).log_prob(pooled.support_y)
    torch.testing.assert_close(loss, -(log_likelihood * pooled.support_mask).sum(-1).mean())


def test_abmls_hyper_prior_is_a_regulariser() -> None:
    learner = Pair("abml", settings={"hyper_weight": 0.1, "shape": 2.0, "rate": 0.5}).learner()
    prior: Any = learner.model.prior_over_weights
    log_prob = Normal(0.0, 1.0).log_prob(prior.loc) + Gamma(2.0, 0.5).log_prob((-2 * prior.log_scale).exp())
    got = learner.guide.regulariser(random_tasks())["hyper_prior"]
    torch.testing.assert_close(got, -0.1 * log_prob.sum().expand(3))


# ---------------------------------------------------------------- platipus


def test_platipus_bounds_the_likelihood_of_the_query_given_the_support() -> None:
    """KL(q(theta | query), p(theta | support)), with means one step from mu by either set; w is before adaptation."""
    learner, episodes = PLATIPUS.learner(), PLATIPUS.tasks()
    model: Any = learner.model
    guide: Any = learner.guide
    mu = model.inner.prior_over_weights.loc.expand(episodes.num_tasks, 1, -1)

    def moved(w: Tensor, log_rate: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        gradient = loss_gradient(model.inner, w, x, y, mask)
        return w - log_rate.exp() * 2 * 0.7**2 / mask.sum(-1).view(-1, 1, 1) * gradient

    support = episodes.support_x, episodes.support_y, episodes.support_mask
    query = episodes.query_x, episodes.query_y, episodes.query_mask
    p = Normal(moved(mu, model.log_prior_step_size, *support), model.inner.prior_over_weights.log_scale.exp())
    q = Normal(moved(mu, guide.log_step_size, *query), guide.log_scale.exp())
    torch.manual_seed(3)
    loss = learner(episodes)["loss"]
    torch.manual_seed(3)
    phi = moved(guide.training_posterior(episodes).rsample(), model.log_step_size, *support)
    log_likelihood = model.inner.likelihood(phi, episodes.query_x, episodes).log_prob(episodes.query_y)
    kl = torch.distributions.kl_divergence(q, p).sum((1, 2))
    if learner.specification["objective"].get("kl", "sampled") == "sampled":
        torch.manual_seed(3)
        w = guide.training_posterior(episodes).rsample()
        kl = (q.log_prob(w) - p.log_prob(w)).sum((1, 2))
    torch.testing.assert_close(loss, (kl - (log_likelihood * episodes.query_mask).sum(-1)).mean())


def test_platipus_predicts_with_its_prior() -> None:
    learner, episodes = PLATIPUS.learner(), PLATIPUS.tasks()
    q, p = learner.guide.posterior(episodes.observed()), learner.model.prior(episodes)
    torch.testing.assert_close(q.mean, p.mean)
    torch.testing.assert_close(q.variance, p.variance)


def test_platipus_needs_its_model() -> None:
    with pytest.raises(UsageError, match="expected model=platipus for guide=platipus"):
        Pair("platipus").learner()


# ---------------------------------------------------------------- sib's oracle


def test_sibs_oracle_sees_labels_in_training_only() -> None:
    settings = {"num_steps": 3, "step_size": 0.05, "true_gradient": True}
    learner, episodes = Pair("sib", settings=settings).learner(), random_tasks()
    other = replace(episodes, query_y=(episodes.query_y + 1) % episodes.num_classes)
    guide = learner.guide
    torch.testing.assert_close(guide.posterior(episodes).mean, guide.posterior(other).mean)
    assert not torch.allclose(guide.training_posterior(episodes).mean, guide.training_posterior(other).mean)

    def nll(w: Tensor) -> Tensor:
        return -learner.model.likelihood(w, episodes.query_x, episodes).log_prob(episodes.query_y).sum(-1)

    start: Any = guide
    assert (nll(guide.training_posterior(episodes).mean) < nll(start.start(start.model, episodes))).all()


def test_sibs_oracle_descends_on_the_true_loss() -> None:
    settings = {"num_steps": 1, "step_size": 0.05, "true_gradient": True, "posterior": "delta"}
    learner, episodes = Pair("sib", "flat", settings=settings).learner(), random_tasks()
    guide: Any = learner.guide
    start = guide.start(guide.model, episodes)
    gradient = loss_gradient(learner.model, start, episodes.query_x, episodes.query_y, episodes.query_mask)
    expected = start - guide.log_step_size.exp() * gradient
    torch.testing.assert_close(guide.training_posterior(episodes).mean, expected)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair("maml", "flat", settings={"num_steps": -1}), "expected guide.num_steps >= 0, got -1"),
        (Pair("maml", "flat", settings={"initialisation": "zero"}), "expected guide.initialisation to be one of"),
        (Pair("llama", "flat", settings={"precision": 0.0}), "expected guide.weight >= 0 and precision > 0"),
        (Pair("abml", settings={"inner_samples": 0}), "inner_samples >= 1"),
        (Pair("platipus", model="platipus", settings={"scale": -1.0}), "expected guide.step_size > 0 and scale > 0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(pair: Pair, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pair.learner()


@pytest.mark.parametrize("name", ["laplace", "abml"])
def test_a_prior_that_is_no_gaussian_is_refused(name: str) -> None:
    learner = Pair(name, "mixture", "linear").learner()
    with pytest.raises(UsageError, match=f"expected a diagonal Gaussian prior for guide={name}, got MixtureSameFamily"):
        learner(random_tasks())


def test_maml_from_the_prior_needs_one_with_a_mean() -> None:
    learner = Pair("maml", "flat", settings={"initialisation": "prior"}).learner()
    with pytest.raises(UsageError, match=r"prior with a mean.*prior=gaussian"):
        learner(random_tasks())


def test_the_unit_of_the_loss_makes_the_rate_that_of_the_squared_error() -> None:
    """The noise of the model changes the loss, not where descent goes."""
    ends = []
    for noise in (0.1, 1.0):
        specification = MAML.specification()
        specification |= {"model": {**specification["model"], "noise": noise}}
        torch.manual_seed(0)
        learner = MetaLearner.from_specification(specification)
        ends.append(learner.guide.posterior(MAML.tasks().observed()).mean)
    torch.testing.assert_close(*ends)
    assert math.isfinite(ends[0].sum().item())
