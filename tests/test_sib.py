"""guides/sib.py is the published algorithm, and its extensions agree with their definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn import functional

from pyro_metabayes import Episodes, MetaLearner, Observed, UsageError
from pyro_metabayes.inference.gradient_networks import EquivariantNet, MarginalNet, OrderedNet, PooledLinear
from pyro_metabayes.inference.synthetic_gradient import synthetic_gradient
from pyro_metabayes.inference.task_norm import TaskNorm, point_shares
from tests.commands import ran, results_of
from tests.pairs import FEATURES, WAY, Pair, random_tasks

STEPS = {"num_steps": 3, "step_size": 0.1}
DELTA = Pair("sib", "flat", settings={**STEPS, "posterior": "delta"})


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


# ---------------------------------------------------------------- TaskNorm


def test_task_norm_is_batch_norm_in_training_mode_for_one_task() -> None:
    ours, theirs = TaskNorm(4), nn.BatchNorm1d(4, track_running_stats=False)
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(norm.bias, generator=torch.Generator().manual_seed(2))
    x = torch.randn(1, 9, 4)
    everything = torch.ones(1, 9, dtype=torch.bool)
    torch.testing.assert_close(ours(x, point_shares(everything))[0], theirs(x[0]), rtol=1e-12, atol=1e-12)


def test_task_norm_is_of_one_task_and_of_unmasked_points() -> None:
    norm, x = TaskNorm(4), torch.randn(2, 3, 9, 4)  # two samples, three tasks
    mask = torch.rand(3, 9) < 0.7
    mask[:, 0] = True
    got = norm(x, point_shares(mask))
    for sample in range(2):
        for task in range(3):
            kept = mask[task]
            expected = functional.batch_norm(x[sample, task][kept], None, None, training=True)
            torch.testing.assert_close(got[sample, task][kept], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs", [3, 8])
def test_a_pooled_map_is_one_of_each_class_beside_the_mean(outputs: int) -> None:
    """Fewer outputs than inputs and more: two orders of the same sums."""
    layer, x = PooledLinear(5, outputs), torch.randn(2, 7, 4, 5)
    beside = torch.cat((x, x.mean(-2, keepdim=True).expand_as(x)), dim=-1)
    torch.testing.assert_close(layer(x), nn.functional.linear(beside, layer.weight, layer.bias))


def test_sets_of_channels_are_normalised_one_by_one() -> None:
    norm, x = TaskNorm(4), torch.randn(3, 9, 2, 4)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    shares, term = point_shares(torch.rand(3, 9) < 0.7), torch.randn(3, 1, 8)
    expected = torch.stack([norm(x[:, :, c], shares) for c in range(2)], 2).flatten(2) + term
    torch.testing.assert_close(norm(x.flatten(2), shares, term), expected)


@pytest.mark.parametrize("network_class", [OrderedNet, EquivariantNet, MarginalNet])
def test_xi_is_the_same_in_training_and_evaluation(network_class: type[nn.Module]) -> None:
    network = network_class(WAY)
    assert not list(network.buffers())
    logits, mask = torch.randn(2, 5, WAY), torch.ones(2, 5, dtype=torch.bool)
    assert torch.equal(network.train()(logits, mask), network.eval()(logits, mask))


def test_the_published_network_has_2245_parameters_and_the_guide_2887() -> None:
    """k=5, d=640, counted in the official code: xi, v of length d, and the head's scale and bias."""
    assert sum(value.numel() for value in OrderedNet(5).parameters()) == 2245
    learner = DELTA.learner(way=5, features=640)
    assert sum(value.numel() for value in learner.parameters()) == 2887


def test_the_equivariant_network_commutes_with_class_order_and_the_published_one_does_not() -> None:
    logits, mask, order = torch.randn(2, 5, WAY), torch.ones(2, 5, dtype=torch.bool), torch.tensor([2, 0, 1])
    for network, commutes in ((EquivariantNet(8), True), (MarginalNet(8), True), (OrderedNet(WAY), False)):
        gap = (network(logits[..., order], mask) - network(logits, mask)[..., order]).abs().max()
        assert (gap < 1e-12) == commutes


def test_the_published_normalisation_hides_the_marginal_and_ours_brings_it_back() -> None:
    """Two tasks whose logits of a class differ by a constant, which is what attracting more queries does to them."""
    logits, mask = torch.randn(1, 6, WAY).abs() + 1, torch.ones(1, 6, dtype=torch.bool)
    shifted = logits + torch.tensor([2.0, 0.0, 0.0])
    for network, hidden in ((OrderedNet(WAY), True), (MarginalNet(), False)):
        with torch.no_grad():
            for weight in (network.inputs.weight, network.hidden.weight):
                weight.abs_()  # no ReLU cuts anything off, so normalisation takes all of the constant out
            for bias in (network.inputs.bias, network.hidden.bias):
                bias.fill_(20.0)
        gap = (network(logits, mask) - network(shifted, mask)).abs().max()
        assert (gap < 1e-9) == hidden


def test_normalising_over_the_batch_is_batch_norm_and_lets_tasks_see_each_other() -> None:
    """The ablation `over_batch` does what it is there to show: the released code with more than one task per step."""
    ours, x = TaskNorm(4, over_batch=True), torch.randn(3, 9, 4)
    everything = torch.ones(3, 9, dtype=torch.bool)
    expected = functional.batch_norm(x.flatten(0, 1), None, None, training=True).view_as(x)
    torch.testing.assert_close(ours(x, point_shares(everything, over_batch=True)), expected, rtol=1e-12, atol=1e-12)
    observed = random_tasks().observed()
    for mixed in (True, False):
        settings = {**STEPS, "posterior": "delta", "over_batch": mixed}
        guide = Pair("sib", "flat", settings=settings).learner().guide
        together = guide.posterior(observed).mean[:1]
        alone = guide.posterior(observed.tasks(slice(0, 1))).mean
        assert ((together - alone).abs().max() > 1e-6) == mixed


# ---------------------------------------------------------------- the published forward, by hand


def batch_norm(x: Tensor, norm: Any) -> Tensor:
    return functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True)


def published_loss(learner: MetaLearner, episodes: Episodes) -> Tensor:
    """Cross-entropy of the final logits, by a loop over tasks and second-order autograd."""
    guide: Any = learner.guide
    head: Any = learner.model.head
    xi = guide.xi
    total = torch.zeros(())
    for task in range(episodes.num_tasks):
        support, labels = episodes.support_x[task], episodes.support_y[task]
        theta = torch.stack([support[labels == c].mean(0) for c in range(WAY)]) * guide.start.scale

        def logits_of(theta: Tensor, x: Tensor = episodes.query_x[task]) -> Tensor:
            cosine = x @ (theta / theta.norm(dim=1, keepdim=True)).T
            return head.scale * (head.bias + cosine)

        for _ in range(guide.num_steps):
            logits = logits_of(theta)
            hidden = batch_norm(functional.linear(logits, xi.inputs.weight, xi.inputs.bias).relu(), xi.norms[0])
            hidden = batch_norm(functional.linear(hidden, xi.hidden.weight, xi.hidden.bias).relu(), xi.norms[1])
            synthetic = functional.linear(hidden, xi.outputs.weight, xi.outputs.bias)
            (gradient,) = torch.autograd.grad(logits, theta, synthetic, create_graph=True)
            theta = theta - guide.log_step_size.exp() * gradient
        total = total + functional.cross_entropy(logits_of(theta), episodes.query_y[task], reduction="sum")
    return total / episodes.num_tasks


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_the_delta_guide_is_the_published_forward(num_steps: int) -> None:
    """Loss and every meta-gradient to 1e-10: T tasks at once are the official code's one at a time."""
    settings = {"posterior": "delta", "num_steps": num_steps, "step_size": 0.1, "learn_step_size": True}
    learner, episodes = Pair("sib", "flat", settings=settings).learner(), random_tasks(query=5)
    results = []
    for loss in (learner(episodes)["loss"], published_loss(learner, episodes)):
        used = {n: p for n, p in learner.named_parameters() if num_steps or not n.startswith(("guide.xi", "guide.log"))}
        gradients = torch.autograd.grad(loss, list(used.values()), allow_unused=True)
        results.append((loss.detach(), dict(zip(used, gradients, strict=True))))
    (value, got), (expected, wanted) = results
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("xi", ["ordered", "equivariant"])
def test_one_query_point_is_enough(xi: str) -> None:
    """The official class raises for it: batch norm has no variance of one point."""
    settings = {**STEPS, "posterior": "delta", "synthetic_gradient": xi}
    learner, episodes = Pair("sib", "flat", settings=settings).learner(), random_tasks()
    one = replace(
        episodes,
        query_x=episodes.query_x[:, :1],
        query_y=episodes.query_y[:, :1],
        query_mask=episodes.query_mask[:, :1],
    )
    loss = learner(one)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)


def test_no_query_point_leaves_the_start() -> None:
    learner, observed = DELTA.learner(), random_tasks().observed()
    none = replace(observed, query_mask=torch.zeros_like(observed.query_mask))
    guide: Any = learner.guide
    torch.testing.assert_close(guide.posterior(none).mean, guide.start(guide.model, none), rtol=0, atol=0)


# ---------------------------------------------------------------- one inner step, written out


def start_and_step(pair: Pair, observed: Observed) -> tuple[MetaLearner, Tensor, Tensor]:
    """theta^0, and the direction (theta^0 - theta^1) / eta of one inner step."""
    learner = pair.learner()
    guide: Any = learner.guide
    theta = guide.start(guide.model, observed)
    return learner, theta, (theta - guide.posterior(observed).mean) / guide.log_step_size.exp()


def one_step(prior: str, head: str = "cosine", **settings: Any) -> Pair:
    return Pair("sib", prior, head, settings={"num_steps": 1, "step_size": 0.1, **settings})


@pytest.mark.parametrize("posterior", ["normal", "amortized", "delta"])
def test_the_kl_gradient_by_hand_for_a_gaussian_prior(posterior: str) -> None:
    """d KL(N(theta, sigma^2), N(m, s^2)) / d theta = (theta - m) / s^2 = -d log p / d theta."""
    observed = random_tasks().observed()
    _, _, without = start_and_step(one_step("gaussian", posterior=posterior), observed)
    learner, theta, direction = start_and_step(one_step("gaussian", posterior=posterior, inner_kl=0.5), observed)
    prior: Any = learner.model.prior_over_weights
    expected = without + 0.5 * (theta - prior.loc) / (2 * prior.log_scale).exp()
    torch.testing.assert_close(direction, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("posterior", ["normal", "delta"])
def test_a_flat_prior_adds_nothing_to_a_step(posterior: str) -> None:
    observed = random_tasks().observed()
    _, _, without = start_and_step(one_step("flat", posterior=posterior), observed)
    _, _, direction = start_and_step(one_step("flat", posterior=posterior, inner_kl=1.0), observed)
    torch.testing.assert_close(direction, without, rtol=0, atol=0)


def test_the_kl_gradient_of_a_point_and_a_mixture_is_that_of_its_density() -> None:
    observed = random_tasks().observed()
    _, _, without = start_and_step(one_step("mixture", posterior="delta"), observed)
    learner, theta, direction = start_and_step(one_step("mixture", posterior="delta", inner_kl=1.0), observed)
    prior: Any = learner.model.prior_over_weights
    leaf = theta.detach().requires_grad_()
    log_density = torch.zeros(())
    for task in range(observed.num_tasks):
        for c in range(WAY):
            components = torch.stack(
                [
                    torch.distributions.Normal(prior.loc[j], prior.log_scale[j].exp()).log_prob(leaf[task, c]).sum()
                    for j in range(len(prior.logits))
                ]
            )
            log_density = log_density + (prior.logits.log_softmax(0) + components).logsumexp(0)
    (gradient,) = torch.autograd.grad(-log_density, leaf)
    torch.testing.assert_close(direction, without + gradient, rtol=1e-8, atol=1e-8)


def test_the_mean_is_the_sum_over_the_number_of_queries() -> None:
    observed = random_tasks().observed()
    observed.query_mask = torch.rand(observed.query_mask.shape) < 0.7
    directions = [start_and_step(one_step("flat", reduction=name), observed)[2] for name in ("sum", "mean")]
    count = observed.query_mask.sum(-1).view(-1, 1, 1)
    torch.testing.assert_close(directions[0] / count, directions[1], rtol=1e-9, atol=1e-12)


def test_inner_samples_average_the_gradient_over_the_posterior() -> None:
    """E_eps of the step, against a loop over the same draws."""
    observed, draws = random_tasks().observed(), 3
    pair = one_step("flat", posterior="normal", inner_samples=draws, scale=0.3)
    learner = pair.learner()
    guide: Any = learner.guide
    theta, scale = guide.start(guide.model, observed), guide.scale.log_scale.exp()
    torch.manual_seed(6)
    direction = (theta - guide.posterior(observed).mean) / guide.log_step_size.exp()
    torch.manual_seed(6)
    noise = torch.randn(draws, *theta.shape)
    total = torch.zeros_like(theta)
    for one in noise:
        w = theta + scale * one
        cotangent = guide.xi(learner.model.outputs(w, observed.query_x), observed.query_mask)
        total = total + learner.model.outputs_and_pullback(w, observed.query_x)[1](cotangent)
    torch.testing.assert_close(direction, total / draws, rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------- families and settings


def test_the_amortized_scale_starts_as_the_normal_one() -> None:
    observed = random_tasks().observed()
    scales = []
    for posterior in ("normal", "amortized"):
        pair = Pair("sib", settings={**STEPS, "posterior": posterior, "scale": 0.07})
        learner = MetaLearner.from_specification(pair.specification())
        scales.append(learner.guide.posterior(observed).stddev)
    torch.testing.assert_close(scales[0], torch.full((3, WAY, FEATURES), 0.07))
    torch.testing.assert_close(scales[1], scales[0])


def test_the_amortized_scale_learns_to_depend_on_the_task() -> None:
    pair = Pair("sib", settings={**STEPS, "posterior": "amortized"})
    stddev = pair.learner().guide.posterior(random_tasks().observed()).stddev
    assert (stddev[0] - stddev[1]).abs().max() > 1e-6


@pytest.mark.parametrize("learn", [True, False])
def test_learn_step_size_moves_eta(learn: bool) -> None:
    pair = Pair("sib", "flat", settings={**STEPS, "posterior": "delta", "learn_step_size": learn})
    learner = pair.learner()
    guide: Any = learner.guide
    before = guide.log_step_size.exp().item()
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=0.01)
    learner(random_tasks())["loss"].backward()
    optimizer.step()
    after = guide.log_step_size.exp().item()
    assert after > 0 and (after != before) == learn
    assert ("guide.log_step_size" in learner.state_dict()) == learn, "a fixed eta is a setting"
    assert ("guide.log_step_size" in dict(learner.named_parameters())) == learn


@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_more_steps_go_on_from_fewer(head: str) -> None:
    """theta^3 from theta^0 is theta^1 three times over: one rule for every step."""
    observed = random_tasks().observed()
    learner = Pair("sib", "flat", head, settings={**STEPS, "posterior": "delta"}).learner()
    guide: Any = learner.guide
    expected = guide.posterior(observed).mean
    theta = guide.start(guide.model, observed)
    for _ in range(3):
        theta = theta - guide.log_step_size.exp() * synthetic_gradient(guide.model, guide.xi, theta, observed)
    torch.testing.assert_close(expected, theta)


def test_steps_towards_labels_would_lower_the_loss() -> None:
    """With the true d loss / d logits as cotangent one small step is gradient descent: the sign is right."""
    episodes = random_tasks()
    learner = DELTA.learner()
    guide: Any = learner.guide
    labels = functional.one_hot(episodes.query_y, WAY).double()
    theta = guide.start(guide.model, episodes.observed())

    def loss(theta: Tensor) -> float:
        logits = learner.model.outputs(theta, episodes.query_x)
        return functional.cross_entropy(logits.flatten(0, 1), episodes.query_y.flatten()).item()

    logits, pullback = learner.model.outputs_and_pullback(theta, episodes.query_x)
    assert loss(theta - 1e-3 * pullback(logits.softmax(-1) - labels)) < loss(theta)


def test_the_posterior_of_a_conditional_prior_centred_there_has_no_kl() -> None:
    """KL(q, p) of equal parts is 0: the analytic KL sees sigma and theta and nothing else."""
    pair = Pair("sib", settings={**STEPS, "num_steps": 0})
    learner, observed = pair.learner(), random_tasks().observed()
    q = learner.guide.posterior(observed)
    torch.testing.assert_close(kl_divergence(q, q), torch.zeros(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"posterior": "gaussian"},
            r"guide\.posterior to be one of normal, amortized, fixed, delta, got 'gaussian'",
        ),
        ({"initialisation": "random"}, r"guide\.initialisation to be one of support, global, got 'random'"),
        (
            {"synthetic_gradient": "mlp"},
            r"guide\.synthetic_gradient to be one of ordered, equivariant, marginal_aware, got 'mlp'",
        ),
        ({"reduction": "max"}, r"guide\.reduction to be one of sum, mean, got 'max'"),
        ({"num_steps": -1}, r"guide\.num_steps.*>= 0"),
        ({"step_size": 0.0}, r"guide\.step_size > 0, got 0"),
        ({"scale": -1.0}, r"scale > 0"),
        ({"inner_kl": -1.0}, r"inner_kl.*>= 0"),
        ({"inner_samples": -2}, r"inner_samples >= 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pair("sib", settings=settings).learner()


# ---------------------------------------------------------------- unbalanced queries, measured


@pytest.mark.slow
def test_the_marginal_aware_network_wins_back_what_unbalanced_queries_cost(tmp_path: Path) -> None:
    """docs/ablations.md: more than half of the loss at both marginals, at no more than a point when balanced."""
    torch.set_default_dtype(torch.float32)
    size = ("data=gaussian_features", "guide=sib", "train.steps=500", "eval.tasks=400", "eval.samples=5")
    aware = ("guide.synthetic_gradient=marginal_aware", "task.query_concentration=1", "task.query_balanced=0.5")
    accuracy: dict[tuple[str, str], float] = {}
    for name, settings in (("published", ()), ("aware", aware)):
        ran("run", *size, *settings, f"hydra.run.dir={tmp_path / name}")
        for counts in ("[15,15,15,15,15]", "[35,15,10,10,5]", "[55,5,5,5,5]"):
            ran("evaluate", str(tmp_path / name), f"task.query_counts={counts}")
            folder = tmp_path / name / "evaluations" / f"task.query_counts={counts}"
            accuracy[name, counts] = results_of(folder)["accuracy"]["mean"]
    balanced = accuracy["published", "[15,15,15,15,15]"]
    assert accuracy["aware", "[15,15,15,15,15]"] > balanced - 0.01
    for counts in ("[35,15,10,10,5]", "[55,5,5,5,5]"):
        lost = balanced - accuracy["published", counts]
        assert lost > 0.05 and accuracy["aware", counts] - accuracy["published", counts] > 0.5 * lost
