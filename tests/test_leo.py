"""Are models/leo.py and guides/leo.py the published algorithm, with its losses in our units?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pyro.distributions import Delta, Normal
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes import Episodes, MetaLearner, UsageError
from pyro_metabayes.inference.networks import half_square, positive, relu_network
from pyro_metabayes.models.leo import correlation_penalty
from pyro_metabayes.models.parts.generated import LinearClassifier, NeuralRegression
from tests.pairs import CONF, FEATURES, WAY, Pair, random_regressions, random_tasks

SMALL = {"num_latents": 4, "num_steps": 3, "step_size": 0.5, "finetune_steps": 2, "finetune_step_size": 0.1}
OF_CLASSES = Pair("leo", "none", "none", model="leo", model_settings={**SMALL, "copies": 2})
OF_NUMBERS = Pair(
    *("leo", "none", "none"),
    model="leo",
    settings={"num_hidden": 3},
    model_settings={**SMALL, "num_hidden": 5, "width": 6, "noise": 0.5, "step_size": 0.02, "finetune_step_size": 0.01},
    numbers=True,
)
both = pytest.mark.parametrize("pair", [OF_CLASSES, OF_NUMBERS], ids=["classes", "numbers"])


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def with_(pair: Pair, **model_settings: Any) -> Pair:
    return replace(pair, model_settings=pair.model_settings | model_settings)


def parts_of(learner: MetaLearner) -> tuple[Any, Any]:
    return learner.model, learner.guide


def configured(guide: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(CONF / f"guide/{guide}.yaml"))


def fixed_noise(model: Any, z: Tensor) -> list[Tensor]:
    """The decoder's noise of every step, replayed in every call to adapt."""
    shape = *z.shape[:-1], model.predictor.num_weights
    noise = [torch.randn(shape) for _ in range(model.num_steps + 1)]
    replayed: Iterator[Tensor] = iter(())

    def next_noise(z: Tensor, observed: Any) -> Tensor:
        nonlocal replayed
        following = next(replayed, None)
        if following is None:
            replayed = iter(noise)
            following = next(replayed)
        return following

    model._noise = next_noise
    return noise


def by_hand(model: Any, z: Tensor, noise: list[Tensor], episodes: Episodes, task: int, second: bool = True) -> Tensor:
    """w of one task after all steps, by autograd on a loss written out with torch alone."""
    mask = episodes.support_mask[task]
    x, y = episodes.support_x[task][mask], episodes.support_y[task][mask]

    def decoded(z: Tensor, eps: Tensor) -> Tensor:
        mean, raw = model.decoder(z).chunk(2, -1)
        return mean + (functional.softplus(raw + math.log(math.expm1(model.predictor.scale))) + 1e-6) * eps

    def loss(w: Tensor) -> Tensor:
        if episodes.num_classes:
            logits = torch.stack([(x @ w[:, copy].T) for copy in range(w.shape[1])]).mean(0)
            return functional.cross_entropy(logits, y, reduction="sum")
        return 0.5 * (network_by_hand(w, x) - y).square().sum()

    for step in range(model.num_steps):
        (gradient,) = torch.autograd.grad(loss(decoded(z, noise[step][task])), z, create_graph=second)
        z = z - model.step_size * gradient
    w = decoded(z, noise[-1][task])
    for _ in range(model.finetune_steps):
        (gradient,) = torch.autograd.grad(loss(w), w, create_graph=second)
        w = w - model.finetune_step_size * gradient
    return w


def network_by_hand(w: Tensor, x: Tensor) -> Tensor:
    """The network 2-6-6-2 with torch's layers."""
    layers = [nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 2)]
    hidden = x
    for number, layer in enumerate(layers):
        size = layer.weight.numel()
        weight, w = w[:size].view(layer.in_features, layer.out_features).T, w[size:]
        bias, w = w[: layer.out_features], w[layer.out_features :]
        hidden = functional.linear(hidden.relu() if number else hidden, weight, bias)
    return hidden


# ---------------------------------------------------------------- the model


@both
def test_the_inner_loops_are_a_by_hand_loop_one_task_at_a_time(pair: Pair) -> None:
    """In value, and in the gradient to decoder, rates and z: every step is differentiated through."""
    (model, _), episodes = parts_of(pair.learner()), pair.tasks()
    z = (0.3 * torch.randn(3, *model.event_shape(episodes))).requires_grad_()
    noise = fixed_noise(model, z)
    _, w = model.adapt(z, episodes)
    expected = torch.stack([by_hand(model, z[task], noise, episodes, task) for task in range(3)])
    torch.testing.assert_close(w, expected, rtol=1e-10, atol=1e-10)
    assert (w - model.decode(z, noise[0])).abs().max() > 1e-2, "nothing has moved"
    weights = torch.randn_like(w)
    of = [*model.decoder.parameters(), model.step_size, model.finetune_step_size, z]
    got, want = (torch.autograd.grad((value * weights).sum(), of) for value in (w, expected))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)
    first_order = torch.stack([by_hand(model, z[task], noise, episodes, task, second=False) for task in range(3)])
    cut = torch.autograd.grad((first_order * weights).sum(), of)
    assert any((a - b).abs().max() > 1e-3 * a.abs().max() for a, b in zip(got, cut, strict=True))


@both
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_inner_loops_need_no_outer_gradient(pair: Pair, mode: Any) -> None:
    (model, _), episodes = parts_of(pair.learner()), pair.tasks()
    z = 0.3 * torch.randn(2, 3, *model.event_shape(episodes))
    expected = model.adapt(z, episodes.observed())
    with mode():
        got = model.adapt(z, episodes.observed())
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@both
def test_samples_do_not_see_each_other(pair: Pair) -> None:
    (model, _), observed = parts_of(pair.learner()), pair.tasks().observed()
    z = 0.3 * torch.randn(4, 3, *model.event_shape(observed))
    together = model.adapt(z, observed)[1]
    torch.testing.assert_close(together, torch.stack([model.adapt(one, observed)[1] for one in z]))


def test_the_steps_descend_on_the_sum_over_support_points() -> None:
    """Twice the points, each twice as often: twice the gradient."""
    (model, _), episodes = parts_of(with_(OF_CLASSES, num_steps=1, finetune_steps=0).learner()), random_tasks()
    z = torch.randn(3, *model.event_shape(episodes))
    twice = {name: getattr(episodes, name).repeat_interleave(2, 1) for name in ("support_x", "support_y")}
    doubled = replace(episodes.observed(), **twice, support_mask=torch.ones(3, 2 * 2 * WAY, dtype=torch.bool))
    once, again = (model.adapt(z, data)[0] - z for data in (episodes.observed(), doubled))
    torch.testing.assert_close(again, 2 * once)


def test_inner_gradients_are_bounded_where_asked() -> None:
    (model, _), episodes = parts_of(with_(OF_NUMBERS, inner_clip=0.01).learner()), random_regressions(features=2)
    z = torch.randn(3, *model.event_shape(episodes))
    moved = (model.adapt(z, episodes.observed())[0] - z).abs()
    assert (moved <= 3 * 0.01 * model.step_size.abs() + 1e-12).all() and moved.max() > 0


def test_the_orthogonality_penalty_is_on_the_latent_dimensions() -> None:
    """Columns of torch's [outputs, Z]: 0 if they are orthogonal, whatever their lengths; 2 / Z^2 for one equal pair."""
    columns, _ = torch.linalg.qr(torch.randn(10, 4))
    assert correlation_penalty(columns * torch.tensor([1.0, 2.0, 3.0, 0.1])) < 1e-20
    columns[:, 3] = 5 * columns[:, 0]
    assert correlation_penalty(columns).item() == pytest.approx(2 / 4**2)
    learner = with_(OF_CLASSES, orthogonality=0.7).learner()
    (model, _), episodes = parts_of(learner), random_tasks()
    matrix = model.decoder[0].weight  # [2 D, Z], as nn.Linear(Z, 2 D) has it
    assert matrix.shape == (2 * FEATURES, 4)
    correlation = torch.stack(
        [torch.stack([functional.cosine_similarity(a, b, 0) for b in matrix.T]) for a in matrix.T]
    )
    expected = 0.7 * (correlation - torch.eye(4)).square().mean()
    torch.testing.assert_close(model.regulariser(episodes)["orthogonality"], expected.expand(3))


def test_the_copies_of_a_class_vote_by_the_mean_of_their_logits() -> None:
    predictor, w, x = (
        LinearClassifier(FEATURES, WAY, 3),
        torch.randn(2, 4, WAY, 3, FEATURES),
        torch.randn(4, 7, FEATURES),
    )
    logits, pullback = predictor.outputs_and_pullback(w, x)
    torch.testing.assert_close(logits, torch.einsum("ltckd,tnd->ltnck", w, x).mean(-1))
    cotangent = torch.randn_like(logits)
    _, general = torch.func.vjp(lambda w: predictor.outputs(w, x), w)[:2]
    torch.testing.assert_close(pullback(cotangent), general(cotangent)[0])


def test_the_generated_network_has_1761_weights_and_starts_as_torch_does() -> None:
    predictor = NeuralRegression(1, 40, 1, 0.3)
    assert predictor.num_weights == 1761
    first, bias, second, *_ = predictor.initial().split(predictor.parts)
    assert first.abs().max() <= 1 and bias.abs().max() <= 1 and first.std() == pytest.approx(3**-0.5, rel=0.3)
    assert second.std().item() == pytest.approx((3 * 40) ** -0.5, rel=0.1)


def test_the_residual_is_the_gradient_of_the_inner_loss() -> None:
    logits, y = torch.randn(2, 5, WAY, requires_grad=True), torch.randint(WAY, (2, 5))
    predictor = LinearClassifier(FEATURES, WAY)
    (gradient,) = torch.autograd.grad(-predictor.likelihood(logits).log_prob(y).sum(), logits)
    torch.testing.assert_close(predictor.residual(logits, y), gradient)
    means, numbers = torch.randn(2, 5, 1, requires_grad=True), torch.randn(2, 5, 1)
    network = NeuralRegression(1, 4, 1, 0.3)
    (gradient,) = torch.autograd.grad(-network.likelihood(means).log_prob(numbers).sum(), means)
    torch.testing.assert_close(network.residual(means, numbers), 0.3**2 * gradient)


# ---------------------------------------------------------------- the guide


@both
def test_the_encoder_is_equation_3(pair: Pair) -> None:
    """Pairs one by one: mean over the points of a class (or all), and over all points; masked ones are not there."""
    (_, guide), episodes = parts_of(pair.learner()), pair.tasks()
    mask = torch.ones(3, episodes.support_x.shape[1], dtype=torch.bool)
    mask[1, 0] = False
    q = guide.training_posterior(replace(episodes, support_mask=mask))
    for task in range(3):
        here = mask[task].nonzero().flatten()
        x, y = episodes.support_x[task], episodes.support_y[task]
        codes = guide.encoder(x if episodes.num_classes else torch.cat((x, y), -1))
        for name in range(max(episodes.num_classes, 1)):
            of_class = [i for i in here if not episodes.num_classes or y[i] == name]
            pairs = [guide.relation(torch.cat((codes[i], codes[j]))) for i in of_class for j in here]
            mean, raw = torch.stack(pairs).mean(0).chunk(2)
            index = (task, name) if episodes.num_classes else (task,)
            torch.testing.assert_close(q.mean[index], mean.expand_as(q.mean[index]))
            sd = positive(raw, guide.scale)
            torch.testing.assert_close(q.stddev[index], sd.expand_as(q.stddev[index]))


def test_scales_start_where_they_are_told_and_are_positive() -> None:
    assert positive(torch.zeros(()), 0.07).item() == pytest.approx(0.07, abs=2e-6)
    assert positive(torch.tensor(-1e3), 0.07).item() == pytest.approx(1e-6)
    assert LinearClassifier(640, 5).scale == pytest.approx(0.0557, abs=1e-4)


def test_networks_have_no_bias_where_labels_are_classes() -> None:
    """And the sizes of the released code: 640-64, 128-128-128-128, 64-1280."""
    shapes = {"input_shape": [640], "num_classes": 5}
    specification = replace(OF_CLASSES, model_settings={}).specification() | shapes
    learner = MetaLearner.from_specification(specification)
    got = {name: tuple(value.shape) for name, value in learner.named_parameters()}
    assert got == {
        "model.decoder.0.weight": (1280, 64),
        "model.step_size": (64,),
        "model.finetune_step_size": (640,),
        "guide.encoder.0.weight": (64, 640),
        **{f"guide.relation.{number}.weight": (128, 128) for number in (0, 2, 4)},
    }


def test_the_networks_of_the_regression_are_those_of_the_paper() -> None:
    settings = configured("leo_regression")
    shapes = {"input_shape": [1], "num_classes": 1, "num_targets": 1}
    parts = {"guide": settings["guide"], "model": {"_target_": "models.leo.Model", **settings["model"]}}
    learner = MetaLearner.from_specification(OF_NUMBERS.specification() | shapes | parts)
    sizes = {
        name: [layer.out_features for layer in network if isinstance(layer, nn.Linear)]
        for name, network in (
            ("encoder", learner.guide.encoder),
            ("relation", learner.guide.relation),
            ("decoder", learner.model.decoder),
        )
    }
    assert sizes == {"encoder": [16, 16, 16], "relation": [32, 32, 32], "decoder": [32, 32, 2 * 1761]}


@both
def test_predictions_take_the_mean_unless_told_to_sample(pair: Pair) -> None:
    observed = pair.tasks().observed()
    for sample in (False, True):
        learner = with_(pair, sample_at_test=sample).learner()
        q = learner.guide.posterior(observed)
        assert isinstance(q, Delta) != sample
        first, second = (learner.posterior_predictive(observed, 2)[1] for _ in range(2))
        y = pair.tasks().query_y
        assert torch.equal(first.log_prob(y), second.log_prob(y)) != sample


# ---------------------------------------------------------------- losses


def test_the_loss_is_the_released_one_in_nats_a_task() -> None:
    """mean CE + beta mean(log q - log p) + penalties of the mean, times the number of queries; one draw of z."""
    beta, episodes = 0.6, random_tasks(2)
    queries = episodes.query_y.shape[1]
    pair = with_(OF_CLASSES, orthogonality=queries * 0.3, l2=queries * 0.01)
    learner = replace(pair, settings={"encoder_penalty": queries * 0.2}).learner()
    (model, guide), q = parts_of(learner), learner.guide.training_posterior(episodes)
    Fixed.value = z = q.sample()
    guide.training_posterior = lambda episodes: Fixed(q.mean, q.stddev).to_event(3)
    noise = fixed_noise(model, z)
    kl_weight = beta * queries / z[0].numel()  # our KL is a sum over the entries of z
    got = learner(episodes, kl_weight=kl_weight)
    released = torch.stack([released_loss(model, q, z, noise, episodes, task, beta) for task in range(2)]).mean()
    penalties = (
        0.3 * correlation_penalty(model.decoder[0].weight)
        + 0.01 * sum(p.square().sum() for p in learner.parameters() if p.dim() > 1) / 2
        + 0.2 * (model.adapt(z, episodes)[0] - z).square().mean()
    )
    torch.testing.assert_close(got["loss"], queries * (released + penalties))
    # What is logged as a bound knows of no penalty.
    torch.testing.assert_close(-got["log_likelihood"] + kl_weight * got["kl"], queries * released)


def released_loss(
    model: Any, q: Any, z: Tensor, noise: list[Tensor], episodes: Episodes, task: int, beta: float
) -> Tensor:
    """Mean cross-entropy of the queries + beta mean(log q(z) - log N(z; 0, 1)), for one task."""
    w = by_hand(model, z[task].clone().requires_grad_(), noise, episodes, task)
    cross_entropy = functional.cross_entropy(episodes.query_x[task] @ w.mean(1).T, episodes.query_y[task])
    standard = (z[task] - q.mean[task]) / q.stddev[task]
    return cross_entropy + beta * (-standard.square() / 2 - q.stddev[task].log() + z[task].square() / 2).mean()


class Fixed(Normal):
    """A normal distribution with a given draw."""

    value: Tensor

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.value


def test_the_encoder_penalty_takes_the_adapted_latent_as_a_constant() -> None:
    pair = replace(OF_CLASSES, settings={"encoder_penalty": 0.4})
    learner, episodes = pair.learner(), random_tasks()
    model, guide = parts_of(learner)
    q = guide.training_posterior(episodes)
    Fixed.value = q.rsample()
    z = Fixed.value
    guide.training_posterior = lambda episodes: Fixed(q.mean, q.stddev).to_event(3)
    fixed_noise(model, z)
    penalty = guide.regulariser(episodes)["encoder_penalty"].sum()
    last = model.adapt(z, episodes)[0].detach()
    expected = 0.4 * (last - z).square().mean((1, 2, 3)).sum()
    torch.testing.assert_close(penalty, expected)
    parameters = list(learner.parameters())
    got = torch.autograd.grad(penalty, parameters, allow_unused=True, retain_graph=True)
    want = torch.autograd.grad(expected, parameters, allow_unused=True)
    for (name, _), one, other in zip(learner.named_parameters(), got, want, strict=True):
        assert (one is None) == name.startswith("model."), f"{name}: only the encoder is moved"
        if one is not None and other is not None:
            torch.testing.assert_close(one, other)


def test_l2_counts_matrices_and_neither_rates_nor_biases() -> None:
    learner = with_(OF_NUMBERS, l2=2.0).learner()
    episodes = OF_NUMBERS.tasks()
    terms = {**learner.model.regulariser(episodes), **learner.guide.regulariser(episodes)}
    assert set(terms) == {"orthogonality", "decoder_l2", "encoder_l2"}
    matrices = [p for name, p in learner.named_parameters() if name.endswith("weight")]
    expected = sum(p.square().sum() for p in matrices)
    torch.testing.assert_close(terms["decoder_l2"] + terms["encoder_l2"], expected.expand(3))
    network = relu_network([2, 3, 1])
    assert half_square(network).item() == pytest.approx(
        sum(network[i].weight.square().sum().item() for i in (0, 2)) / 2
    )


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_is_of_training_and_anew_each_time(rate: float) -> None:
    learner = with_(OF_CLASSES, dropout=rate).learner()
    (model, guide), episodes = parts_of(learner), random_tasks(8, features=FEATURES)
    observed = episodes.observed()
    assert torch.equal(model.dropped(observed.query_x, observed), observed.query_x)
    torch.testing.assert_close(guide.posterior(observed).mean, guide.posterior(episodes).mean)
    one, other = (model.dropped(episodes.query_x, episodes) for _ in range(2))
    assert torch.equal(one, other) == (rate == 0)
    kept = one != 0
    torch.testing.assert_close(one[kept], episodes.query_x[kept] / (1 - rate))
    assert kept.double().mean().item() == pytest.approx(1 - rate, abs=0.1)
    means = [guide.training_posterior(episodes).mean for _ in range(2)]
    assert torch.equal(*means) == (rate == 0)


TUNED = {  # README of the released code: beta, orthogonality, l2, dropout, encoder penalty, outer rate, shots
    "mini_1shot": (0.756143, 0.188103, 3.623413e-10, 0.307651, 5.756821e-6, 2.739071e-4, 1),
    "mini_5shot": (0.466387, 1.523998e-3, 8.540338e-9, 0.300299, 2.661608e-7, 4.102361e-4, 5),
    "tiered_1shot": (2.034189e-3, 5.451078e-3, 4.148858e-10, 0.475126, 8.302962e-5, 8.659053e-4, 1),
    "tiered_5shot": (1.622811, 2.481216e-2, 1.690399e-10, 0.415158, 2.672450e-5, 6.110314e-4, 5),
}


@pytest.mark.parametrize("name", TUNED)
def test_the_tuned_settings_are_the_released_ones_in_our_units(name: str) -> None:
    beta, orthogonality, l2, dropout, penalty, rate, shot = TUNED[name]
    settings = configured(f"leo_{name}")
    model, train = settings["model"], settings["train"]
    got = [
        *(train["kl_weight"] * 5 * shot * model["num_latents"] / 75, model["orthogonality"] / 75),
        *(model["l2"] / 75, model["dropout"], settings["guide"]["encoder_penalty"] / 75),
        train["learning_rate"],
    ]
    assert got == pytest.approx([beta, orthogonality, l2, dropout, penalty, rate], rel=1e-6)
    assert model["copies"] == settings["task"]["shot"] == shot
    assert train["clip_value"] == train["clip_each"] == 75 * 0.1


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("model_settings", "settings", "message"),
    [
        ({"num_latents": 0}, {}, "model.num_latents, copies, width >= 1"),
        ({"num_steps": -1}, {}, "num_steps, finetune_steps >= 0"),
        ({"step_size": 0.0}, {}, "model.step_size, finetune_step_size, noise > 0"),
        ({"inner_clip": -1.0}, {}, "inner_clip, orthogonality, l2 >= 0"),
        ({"dropout": 1.0}, {}, r"expected 0 <= model.dropout < 1, got 1.0"),
        ({}, {"scale": 0.0}, r"guide.num_hidden, encoder_penalty >= 0 and scale > 0"),
    ],
)
def test_wrong_settings_are_named(model_settings: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(with_(OF_CLASSES, **model_settings), settings=settings).learner()


def test_leo_needs_its_model() -> None:
    with pytest.raises(UsageError, match="expected model=leo for guide=leo, got"):
        Pair("leo").learner()


@pytest.mark.parametrize("guide", ["proto", "mean_field"])
def test_other_guides_are_told_that_the_model_is_not_theirs(guide: str) -> None:
    with pytest.raises(UsageError):
        replace(OF_CLASSES, guide=guide).learner()(random_tasks())
