"""Moments, divergences and families of posteriors and priors without closed forms."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import (
    Categorical,
    Delta,
    Independent,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TorchDistribution,
    TransformedDistribution,
    ZeroInflatedPoisson,
)
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.transforms import AffineTransform, Planar, Radial, conditional_affine_coupling
from torch import Size, Tensor
from torch.distributions import constraints, kl_divergence
from torch.distributions.transforms import ReshapeTransform, Transform

import pyro_metabayes
from pyro_metabayes import Episodes, MetaLearner, Observed, UsageError
from pyro_metabayes.diagnostics.arviz import to_arviz
from pyro_metabayes.diagnostics.best_in_family import best_in_family, elbo_of
from pyro_metabayes.diagnostics.collapse import against_truth, collapse_metrics, posterior_spread
from pyro_metabayes.diagnostics.gaps import gaps_of
from pyro_metabayes.diagnostics.gold import NutsSettings, Target, gold_posterior
from pyro_metabayes.diagnostics.information import information
from pyro_metabayes.diagnostics.predictive import predictive_draws
from pyro_metabayes.distributions.joint import Joint
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.exact.conjugate import log_evidence_of_rows
from pyro_metabayes.inference.divergences import check_gaussian, closed_form_kl, has_density, innermost, log_density
from pyro_metabayes.inference.initialisation import PriorMean
from pyro_metabayes.likelihoods import draws
from pyro_metabayes.models import few_shot_classifier, linear_regression
from pyro_metabayes.models.backbones import identity
from pyro_metabayes.models.heads import Linear
from pyro_metabayes.models.priors import Gaussian
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.prediction.moments import mean_of, moments_of
from pyro_metabayes.prior import Prior
from pyro_metabayes.seeding import noise_of
from pyro_metabayes.training.step_metrics import measure, metric_means, step_metrics
from tests.pairs import FEATURES, WAY, random_regressions, random_tasks, stream_of

TASKS, WEIGHTS = 3, FEATURES + 1
SHAPE = (TASKS, WAY, WEIGHTS)
Make = Callable[[int, Size], TorchDistribution]


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


# ---------------------------------------------------------------- distributions, of T tasks and event [C, W]


def loc_and_scale(num_tasks: int, event: Size) -> tuple[Tensor, Tensor]:
    """Different values for each weight and task. The values of a task do not depend on the number of tasks."""
    steps = torch.arange(float(num_tasks * event.numel())).view(num_tasks, *event)
    return 0.5 * steps.sin(), 0.3 + 0.2 * steps.cos().square()


def normal(num_tasks: int, event: Size) -> TorchDistribution:
    return Normal(*loc_and_scale(num_tasks, event)).to_event(2)


def affine(num_tasks: int, event: Size) -> TorchDistribution:
    """`normal`, written as a transformed standard normal."""
    loc, scale = loc_and_scale(num_tasks, event)
    standard = Normal(torch.zeros(num_tasks, *event), 1.0).to_event(2)
    return TransformedDistribution(standard, [AffineTransform(loc, scale, event_dim=2)])


def low_rank(num_tasks: int, event: Size) -> TorchDistribution:
    loc, scale = loc_and_scale(num_tasks, event)
    return LowRankMultivariateNormal(loc, torch.stack((scale, loc), -1), scale.square()).to_event(1)


def full(num_tasks: int, event: Size) -> TorchDistribution:
    """`low_rank`, written with its covariance."""
    q: Any = innermost(low_rank(num_tasks, event))
    return MultivariateNormal(q.loc, q.covariance_matrix).to_event(1)


def student(num_tasks: int, event: Size) -> TorchDistribution:
    return StudentT(5.0, *loc_and_scale(num_tasks, event)).to_event(2)


def mixture(num_tasks: int, event: Size) -> TorchDistribution:
    loc, scale = loc_and_scale(num_tasks, event)
    components = Normal(torch.stack((loc, -loc - 1), -2), scale.unsqueeze(-2)).to_event(1)
    return Independent(MixtureSameFamily(Categorical(torch.ones(num_tasks, event[0], 2)), components), 1)


class Coupling:
    """A conditional coupling flow over the flattened weights, with the same module in every call."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.layer = conditional_affine_coupling(WAY * WEIGHTS, 2, hidden_dims=[8])

    def __call__(self, num_tasks: int, event: Size) -> TorchDistribution:
        size = event.numel()
        context = torch.arange(2.0 * num_tasks).view(num_tasks, 2).sin()
        base = Normal(torch.zeros(num_tasks, size), 0.5).to_event(1)
        return TransformedDistribution(base, [self.layer.condition(context), ReshapeTransform(Size((size,)), event)])


CLOSED: dict[str, Make] = {"normal": normal, "low_rank": low_rank, "full": full}  # KL to a normal, mean and variance
MADE: dict[str, Make] = {"affine": affine, "student": student, "mixture": mixture}


def made(name: str) -> Make:
    return Coupling() if name == "coupling" else {**CLOSED, **MADE}[name]


every = pytest.mark.parametrize("name", [*CLOSED, *MADE, "coupling"])
flows = pytest.mark.parametrize("name", ["affine", "coupling"])


class Placed(pyro_metabayes.Guide):
    """A guide that returns a given q, whatever is observed."""

    def __init__(self, model: pyro_metabayes.Model, make: Make) -> None:
        super().__init__(model)
        self.make = make

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self.make(observed.num_tasks, self.model.event_shape(observed))


class PlacedPrior(Prior):
    """A prior that returns a given distribution."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.make = make

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        return self.make(observed.num_tasks, event_shape)


def learner_with(make: Make, prior: Prior | None = None) -> MetaLearner:
    model = few_shot_classifier.Model(Linear(), prior or Gaussian(num_weights=WEIGHTS, scale=0.7))
    return MetaLearner(identity.Backbone(input_shape=[FEATURES], normalise=False), model, Placed(model, make), Elbo())


def evaluated(learner: MetaLearner, episodes: Episodes, samples: int = 5) -> dict[str, Any]:
    return evaluate(learner, stream_of(episodes), EvalSettings(TASKS, samples), seed=0, progress=False).metrics


# ---------------------------------------------------------------- what is unwrapped


def test_wrappers_of_the_same_density_are_unwrapped_and_no_others() -> None:
    base = Normal(torch.zeros(2, 3), 1.0)
    for wrapped in (base.to_event(1), base.mask(False), base.mask(torch.ones(2, 3).bool()).to_event(2)):
        assert innermost(wrapped) is base
    assert innermost(ExpandedDistribution(base, Size((4, 2, 3)))) is base
    inflated = ZeroInflatedPoisson(torch.ones(2), gate=torch.full((2,), 0.5))
    for other in (affine(2, Size((1, 3))), LogNormal(0.0, torch.ones(2)), inflated):
        assert innermost(other) is other
    assert has_density(affine(2, Size((1, 3))))
    assert not has_density(TransformedDistribution(Delta(torch.zeros(2)), [AffineTransform(0.0, 2.0)]))


def test_a_transformed_normal_is_no_gaussian_prior() -> None:
    with pytest.raises(UsageError, match="diagonal Gaussian prior for guide=laplace, got TransformedDistribution"):
        check_gaussian(affine(TASKS, Size((WAY, WEIGHTS))), "guide=laplace")


def test_the_mean_of_a_prior_as_initialisation_has_a_closed_form() -> None:
    learner = learner_with(normal, PlacedPrior(affine))
    with pytest.raises(UsageError, match=r"expected a prior with a mean in closed form for .*initialisation=prior"):
        PriorMean()(learner.model, random_tasks(TASKS))


# ---------------------------------------------------------------- flows without an inverse


class OneWay(Transform):
    """The transform y = 2 x without its inverse."""

    domain = codomain = constraints.real
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return 2 * x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(x, math.log(2))


def flow_of(transform: Any) -> Make:
    def make(num_tasks: int, event: Size) -> TorchDistribution:
        standard = Normal(torch.zeros(num_tasks, *event), 1.0)
        return TransformedDistribution(standard, [transform]).to_event(2 - transform.codomain.event_dim)

    return make


one_way = pytest.mark.parametrize(
    "made_from",
    [lambda: Planar(WEIGHTS), lambda: Radial(WEIGHTS), lambda: OneWay(cache_size=1)],
    ids=["planar", "radial", "own"],
)
NO_INVERSE = r"^expected a distribution whose density .* use a flow with an inverse \(affine, coupling, spline\)$"


@one_way
def test_the_density_of_other_values_is_refused_in_one_line(made_from: Callable[[], Any]) -> None:
    q = flow_of(made_from())(TASKS, Size(SHAPE[1:]))
    w = q.sample()
    assert log_density(q, w).shape == (TASKS,)
    with pytest.raises(UsageError, match=NO_INVERSE):
        log_density(q, w.clone())
    with pytest.raises(KeyError, match="z"):
        log_density(Joint({"a": normal(TASKS, Size(SHAPE[1:])), "b": lambda z: z["z"]}), w)


@one_way
@pytest.mark.parametrize("validated", [True, False])
def test_such_a_prior_is_refused_by_the_objective(made_from: Callable[[], Any], validated: bool) -> None:
    """A posterior is not: the objective needs its density at its own draws only."""
    make, episodes = flow_of(made_from()), random_tasks(TASKS)
    with pyro.validation_enabled(validated):
        learner_with(make)(episodes)["loss"].backward()
        with pytest.raises(UsageError, match=NO_INVERSE):
            learner_with(normal, PlacedPrior(make))(episodes)


# ---------------------------------------------------------------- moments


def test_closed_forms_are_used_where_they_exist() -> None:
    for name in (*CLOSED, "student", "mixture"):
        q = made(name)(TASKS, Size(SHAPE[1:]))
        moments = moments_of(q)
        assert moments.error is None
        assert torch.equal(moments.mean, q.mean) and torch.equal(moments.variance, q.variance)
        assert torch.equal(mean_of(q), q.mean)


def test_sampled_moments_are_those_of_the_distribution_within_their_error() -> None:
    exact, q = normal(TASKS, Size(SHAPE[1:])), affine(TASKS, Size(SHAPE[1:]))
    state = torch.get_rng_state()
    moments = moments_of(q, 4000)
    assert torch.equal(torch.get_rng_state(), state), "later draws would move"
    assert moments.error is not None and moments.error.shape == (TASKS,)
    gap = (moments.variance - exact.variance).flatten(1).mean(1)
    assert (gap.abs() < 5 * moments.error).all()
    assert ((moments.mean - exact.mean).abs() < 5 * exact.stddev / 4000**0.5).all()


def test_the_error_is_the_spread_of_the_estimates() -> None:
    """Of 300 estimates of the mean variance; the sd of the sd of 300 normal values is 4%."""
    q = affine(TASKS, Size(SHAPE[1:]))
    estimates = []
    for seed in range(300):
        torch.manual_seed(seed)
        moments = moments_of(q)
        assert moments.error is not None
        estimates.append(torch.stack((moments.variance.flatten(1).mean(1), moments.error)))
    values, errors = torch.stack(estimates).unbind(1)
    assert ((errors.mean(0) / values.std(0) - 1).abs() < 0.2).all()


# ---------------------------------------------------------------- the KL in the bound


@pytest.mark.parametrize("name", ["low_rank", "full"])
def test_the_kl_of_a_gaussian_to_independent_normals_is_in_closed_form(name: str) -> None:
    """torch has it between two normals with covariances."""
    event = Size(SHAPE[1:])
    q, p = made(name)(TASKS, event), Normal(torch.full(SHAPE, 0.3), 0.7)
    expected = kl_divergence(full(TASKS, event), MultivariateNormal(p.mean, torch.diag_embed(p.variance)).to_event(1))
    kl = closed_form_kl(q, p.to_event(2))
    assert kl is not None
    torch.testing.assert_close(kl, expected)


@pytest.mark.parametrize("name", ["low_rank", "full"])
def test_an_analytic_bound_has_this_kl(name: str) -> None:
    learner, episodes = learner_with(made(name)), random_tasks(TASKS)
    terms = Elbo(kl="analytic").terms(learner.model, learner.guide, episodes)
    kl = closed_form_kl(learner.guide.posterior(episodes.observed()), learner.model.prior(episodes))
    assert kl is not None and terms.kl is not None
    assert terms.kl.item() == pytest.approx(kl.sum().item(), rel=1e-12)
    assert terms.loss.item() == pytest.approx((kl.sum() - terms.log_likelihood).item(), rel=1e-12)


@every
def test_elbo_and_kl_add_up_to_the_log_likelihood(name: str) -> None:
    learner, episodes = learner_with(made(name)), random_tasks(TASKS)
    if not (q := learner.guide.posterior(episodes.observed())).has_rsample:
        return
    with noise_of(3):
        spread = posterior_spread(learner, episodes, q)
    with noise_of(3):
        terms = Elbo().terms(learner.model, learner.guide, episodes)
    total = (spread["elbo"] + spread["kl"]).mean() * TASKS
    assert total.item() == pytest.approx(terms.log_likelihood.item(), rel=1e-10)


# ---------------------------------------------------------------- evaluation, logged steps, results


@every
def test_every_family_is_evaluated(name: str) -> None:
    """Numbers or nulls, all finite; an error exactly where something is sampled."""
    learner, episodes = learner_with(made(name)), random_tasks(TASKS)
    metrics = evaluated(learner, episodes)
    q = learner.guide.posterior(episodes.observed())
    for key in ("elbo", "kl", "posterior_sd", "nll", "prior_sd"):
        assert math.isfinite(metrics[key]), key
    assert (metrics["kl_monte_carlo_error"] is None) == (name in CLOSED)
    assert (metrics["posterior_sd_monte_carlo_error"] is None) == (name not in ("affine", "coupling"))
    assert metrics["prior_sd_monte_carlo_error"] is None
    assert (metrics["active_dimensions"] is None) == (name != "normal")
    with torch.no_grad():
        w = q.sample(Size((20_000,)))
        kl = (q.log_prob(w) - learner.model.prior(episodes).log_prob(w)).mean()
        sd = w.var(0).mean().sqrt()
    assert metrics["kl"] == pytest.approx(kl.item(), abs=5 * (metrics["kl_monte_carlo_error"] or 0.05))
    assert metrics["posterior_sd"] == pytest.approx(sd.item(), rel=0.05)


@every
def test_every_family_is_logged(name: str) -> None:
    """A line of metrics.jsonl has the same numbers and errors as an evaluation."""
    line = metric_means(*measure(learner_with(made(name)), random_tasks(TASKS), seed=0))
    assert line["kl"] > 0 and (line["kl_monte_carlo_error"] is None) == (name in CLOSED)
    assert all(math.isfinite(value) for value in line.values() if value is not None)


@every
def test_the_logged_kl_is_that_of_its_error(name: str) -> None:
    """Without a closed form the KL of the loss is that of one draw per task; its error is not known."""
    learner, episodes = learner_with(made(name)), random_tasks(TASKS)
    terms = {"loss": 5.0, "log_likelihood": -2.0, "kl": 1234.0}
    line = step_metrics(learner, lambda: episodes, terms, seed=0)
    measured = metric_means(*measure(learner, episodes, seed=0))
    assert line["kl"] == (1234.0 if name in CLOSED else measured["kl"])
    assert line["kl_monte_carlo_error"] == measured["kl_monte_carlo_error"]
    assert line["elbo"] == line["log_likelihood"] - line["kl"] and line["log_likelihood"] == -2.0


@pytest.fixture
def independent_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the general sampler for normal distributions too, so that draws of both can be compared."""
    monkeypatch.setattr(draws, "_own", lambda model, capability: False)


@pytest.mark.usefixtures("independent_draws")
def test_a_flow_that_is_a_normal_has_its_numbers() -> None:
    episodes = random_tasks(TASKS)
    exact, got = (evaluated(learner_with(make), episodes) for make in (normal, affine))
    assert got["kl"] == pytest.approx(exact["kl"], abs=5 * got["kl_monte_carlo_error"])
    assert got["posterior_sd"] == pytest.approx(exact["posterior_sd"], abs=5 * got["posterior_sd_monte_carlo_error"])
    assert got["elbo"] == pytest.approx(exact["elbo"], abs=5 * got["kl_monte_carlo_error"])  # of the same draws of w
    assert got["nll"] == pytest.approx(exact["nll"])


@pytest.mark.usefixtures("independent_draws")
def test_a_flow_as_prior_has_its_numbers() -> None:
    episodes = random_tasks(TASKS)
    learners = [learner_with(low_rank, PlacedPrior(make)) for make in (normal, affine)]
    with noise_of(0):
        exact = collapse_metrics(learners[0], episodes, 5)
    with noise_of(0):
        got = collapse_metrics(learners[1], episodes, 5)
    assert exact["prior_sd_monte_carlo_error"] is None
    for name in ("prior_sd", "kl"):
        assert got[name] == pytest.approx(exact[name], abs=5 * got[f"{name}_monte_carlo_error"])
    assert got["logit_sd"] == pytest.approx(exact["logit_sd"])


def test_a_posterior_without_rsample_is_evaluated_and_not_trained() -> None:
    learner, episodes = learner_with(mixture), random_tasks(TASKS)
    assert math.isfinite(evaluated(learner, episodes)["elbo"])
    with pytest.raises(UsageError, match="expected a reparametrised distribution at site 'w', got MixtureSameFamily"):
        learner(episodes)


def test_a_fit_that_is_not_gaussian_is_compared_by_quantiles() -> None:
    truth = normal(TASKS, Size(SHAPE[1:]))
    exact, got = against_truth(truth, truth), against_truth(affine(TASKS, Size(SHAPE[1:])), truth)
    assert exact.keys() - got.keys() == {"kl_from_truth", "kl_to_truth"}
    assert (got["coverage90_of_truth"] - 0.9).abs().max() < 0.02
    wide = against_truth(StudentT(3.0, truth.mean, truth.stddev).to_event(2), truth)  # 2.353 sd on either side
    assert (wide["coverage90_of_truth"] - math.erf(2.3534 / 2**0.5)).abs().max() < 0.02


# ---------------------------------------------------------------- information, predictive draws


@every
def test_information_of_every_family(name: str) -> None:
    learner, episodes = learner_with(made(name)), random_tasks(TASKS)
    result = information(learner, [episodes], 200)
    assert result is not None
    errors = result["monte_carlo_error"]
    assert errors.keys() == {"prior", "second_set"} and (errors["prior"] is None) == (name in CLOSED)
    q, prior = learner.guide.posterior(episodes.observed()), learner.model.prior(episodes)
    if name == "affine":
        expected = closed_form_kl(normal(TASKS, q.event_shape), prior)
        assert expected is not None
        assert result["prior"] == pytest.approx(expected.mean().item(), abs=5 * errors["prior"])
    independent = ("refitted_prior", "other_tasks", "below")
    assert all((result[key] is None) == (name != "normal") for key in independent), "only of independent normals"


@pytest.mark.skipif(importlib.util.find_spec("arviz") is None, reason="ArviZ is not installed")
@every
def test_arviz_holds_draws_of_every_family(name: str) -> None:
    learner, episodes = learner_with(made(name)), random_tasks(TASKS)
    found = to_arviz(predictive_draws(learner, episodes, 2000))
    w = torch.as_tensor(found.posterior["w"].values[0])
    moments = moments_of(learner.guide.posterior(episodes.observed()), 4000)
    assert w.shape == (2000, *SHAPE)
    assert ((w.mean(0) - moments.mean).abs() < 8 * moments.variance.sqrt() / 2000**0.5).all()


# ---------------------------------------------------------------- gold


class AffineGuide(Placed):
    """A guide that says what its family is: an affine map of a standard normal for each task."""

    def family_of(self, q: TorchDistribution) -> tuple[list[Tensor], Callable[..., TorchDistribution]]:
        (transform,) = q.transforms  # type: ignore[attr-defined]

        def build(loc: Tensor, log_scale: Tensor) -> TorchDistribution:
            return TransformedDistribution(
                Normal(torch.zeros_like(loc), 1.0).to_event(2), [AffineTransform(loc, log_scale.exp(), event_dim=2)]
            )

        return [transform.loc, transform.scale.log()], build


def regression(prior: Prior) -> tuple[Any, Episodes]:
    model = linear_regression.Model(prior, num_targets=1, num_features=2, noise=0.5)
    return model, random_regressions(TASKS, features=2, targets=1)


@pytest.mark.parametrize("name", ["affine", "coupling", "mixture", "student"])
def test_a_family_that_gold_does_not_know_is_refused(name: str) -> None:
    learner, episodes = learner_with(made(name)), random_tasks(TASKS)
    q = learner.guide.posterior(episodes.observed())
    with pytest.raises(UsageError, match=r"^expected a Gaussian posterior, or a guide with the method family_of"):
        best_in_family(Target(learner.model, episodes, "all"), q, steps=2, guide=learner.guide)


def test_a_guide_gives_its_own_family() -> None:
    """That of factorised normals in other words: the same best ELBO, and gaps from sampled moments."""
    model, episodes = regression(Gaussian(num_weights=2, scale=1.0))
    target, event = Target(model, episodes, "all"), model.event_shape(episodes)
    guide = AffineGuide(model, affine)
    q = guide.posterior(episodes.observed())
    best = best_in_family(target, q, steps=200, rate=0.1, guide=guide)
    gold = gold_posterior(target, NutsSettings(10, 20, 1, TASKS, max_tree_depth=4))
    expected = best_in_family(target, normal(TASKS, event), steps=200, rate=0.1)
    with torch.no_grad():
        gap = elbo_of(target, best, 5000) - elbo_of(target, expected, 5000)
        gaps = gaps_of(target, q, best, gold, 500)
    assert gap.abs().max() < 0.3
    assert all(value.isfinite().all() for value in vars(gaps).values())


def test_the_best_of_low_rank_normals() -> None:
    """It is no worse than the q it starts from, and of the same rank."""
    model, episodes = regression(Gaussian(num_weights=2, scale=1.0))
    target, q = Target(model, episodes, "all"), low_rank(TASKS, model.event_shape(episodes))
    best: Any = innermost(found := best_in_family(target, q, steps=200, rate=0.1))
    assert isinstance(best, LowRankMultivariateNormal) and best.cov_factor.shape[-1] == 2
    with torch.no_grad():
        evidence = log_evidence_of_rows(target.prior, *episodes.labelled("all"), model.noise)
        assert (elbo_of(target, q, 2000) < evidence - 1).all()
        assert (evidence - elbo_of(target, found, 5000)).abs().max() < 0.2


def test_gold_draws_under_a_flow_as_prior_are_those_of_its_density() -> None:
    """Units are sampled, for each part of the tasks anew: the draws must not mix them up."""
    (model, episodes), (exact, _) = (
        regression(PlacedPrior(lambda num_tasks, event, make=make: make(1, event).expand((num_tasks,))))  # type: ignore[misc]
        for make in (affine, normal)
    )
    gold = gold_posterior(Target(model, episodes, "support"), NutsSettings(40, 80, 1, together=1, max_tree_depth=3))
    posterior = exact.exact_posterior(episodes.observed())
    error = posterior.variance.sqrt() / gold.least_ess.clamp(min=20).sqrt().view(-1, 1, 1)
    assert ((gold.w.mean(0) - posterior.mean).abs() < 5 * error).all()


def test_a_prior_without_variances_has_no_gold_posterior() -> None:
    heavy = PlacedPrior(lambda num_tasks, event: StudentT(1.5, torch.zeros(num_tasks, *event), 1.0).to_event(2))
    model, episodes = regression(heavy)
    with pytest.raises(UsageError, match="expected a prior with finite variances for NUTS"):
        Target(model, episodes, "all")
