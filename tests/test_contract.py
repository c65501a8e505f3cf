"""Every guide, prior and head obeys the protocol. The files are found in their folders, so new files are tested too.

Each requirement is a function `check_...`. The second half of the file tests these functions on faulty guides. Checks
of shapes, sites, labels, gradients and transduction run for all pairs. Slower checks run for pairs that cover all parts
and settings, and every guide with every model (`tests/covering.py`). Checks of sample axes leave out the settings.
Checks of scores cover the parts alone. With `-m slow` all checks run for all pairs.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Categorical, Delta, MixtureSameFamily, Normal, TorchDistribution
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.distributions import ComposeTransform, TransformedDistribution

import pyro_metabayes
from pyro_metabayes import Episodes, MetaLearner, Observed, class_means, guides, models
from pyro_metabayes.distributions.joint import Joint, latent_with, sites_of
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.inference.divergences import has_density, innermost
from pyro_metabayes.models.heads import Head
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.objectives.importance_weighted import ImportanceWeighted
from pyro_metabayes.objectives.monte_carlo import MonteCarlo
from pyro_metabayes.prior import Prior
from pyro_metabayes.seeding import noise_of_process
from tests.covering import covering_first
from tests.pairs import (
    FEATURES,
    FOLLOWING,
    HEADS,
    MODELS,
    NETWORK,
    OBJECTIVES,
    OF_NESTED_GROUPS,
    PRIORS,
    WAY,
    Pair,
    are_levels,
    every_pair,
    random_tasks,
    stream_of,
    tasks_like,
)

PAIRS = every_pair()
SITES = {"query": {"query_y"}, "support": {"support_y"}, "all": {"query_y", "support_y"}}  # observed, by model.observe
TOLERANCE = 1e-9  # of sums of a few dozen float64 numbers in another order, through two inner steps
every = pytest.mark.parametrize("pair", PAIRS, ids=str)
covered = pytest.mark.parametrize("pair", covering_first(PAIRS), ids=str)
# What depends on the parts, but on no setting of them: axes of samples.
combined = pytest.mark.parametrize("pair", covering_first(PAIRS, settings=False), ids=str)


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


# ---------------------------------------------------------------- what is compared


def moments(distribution: TorchDistribution) -> dict[str, Tensor]:
    """Numbers that identify a posterior: mean, and variance if it has a density; for a flow, values at two points."""
    inner = innermost(distribution)
    if isinstance(inner, TransformedDistribution):
        points = [torch.full(inner.base_dist.batch_shape + inner.base_dist.event_shape, at) for at in (-1.0, 0.5)]
        return {f"flow{i}": ComposeTransform(inner.transforms)(point) for i, point in enumerate(points)}
    if isinstance(innermost(distribution), Delta):
        return {"mean": distribution.mean}
    if isinstance(distribution, Joint):  # each site given the means of the earlier ones
        of_sites: dict[str, dict[str, Tensor]] = {}

        def mean_of(name: str, site: TorchDistribution) -> Tensor:
            of_sites[name] = moments(site)
            return site.mean

        distribution.visit(mean_of)
        return {f"{moment} of {name}": value for name, site in of_sites.items() for moment, value in site.items()}
    return {"mean": distribution.mean, "variance": distribution.variance}


def posterior_of(guide: pyro_metabayes.Guide, observed: Observed) -> dict[str, Tensor]:
    """Moments of `posterior`, with its own noise (if any) from a fixed seed."""
    torch.manual_seed(7)
    return {name: value.detach() for name, value in moments(guide.posterior(observed)).items()}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        gap = (got[name] - value).abs().max().item()
        assert gap <= TOLERANCE * (1 + value.abs().max().item()), f"{what}: {name} differs by {gap}"


def shuffled(x: Tensor, order: Tensor) -> Tensor:
    """x [T, N, ...] with the points of task t in the order [T, N]."""
    return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x))


def predicted(likelihood: TorchDistribution) -> Tensor:
    """Numbers that identify a prediction [L, T, Q, C or Y]: probabilities or means."""
    inner: Any = innermost(likelihood)
    return inner.probs if isinstance(inner, Categorical) else inner.mean


def relabelled(episodes: Episodes) -> Tensor:
    """Other query labels: another class, or a number with added noise."""
    if episodes.num_classes:
        return (episodes.query_y + 1) % episodes.num_classes
    return episodes.query_y + torch.randn_like(episodes.query_y)


def padded(episodes: Episodes, how_many: int = 2) -> Episodes:
    """The same tasks with additional masked points that have arbitrary values."""

    def widen(x: Tensor, garbage: Tensor) -> Tensor:
        return torch.cat((garbage[:, :1], x, garbage[:, 1:]), dim=1)

    def rubbish(x: Tensor) -> Tensor:
        shape = (x.shape[0], how_many, *x.shape[2:])
        return torch.randint(2, shape).to(x.dtype) if are_levels(x) else 30 * torch.randn(shape)

    off = torch.zeros(episodes.num_tasks, how_many, dtype=torch.bool)
    support = {name: widen(x, rubbish(x)) for name in ("support_x", "support_y") for x in [getattr(episodes, name)]}
    mask = {f"{part}_mask": widen(getattr(episodes, f"{part}_mask"), off) for part in ("support", "query")}
    return replace(episodes.change_queries(lambda x: widen(x, rubbish(x))), **support, **mask)


# ---------------------------------------------------------------- the promises


def check_shapes(model: pyro_metabayes.Model, guide: pyro_metabayes.Guide, episodes: Episodes) -> None:
    observed, num_tasks = episodes.observed(), episodes.num_tasks
    event = model.event_shape(observed)
    for q in (guide.posterior(observed), guide.training_posterior(episodes), model.prior(observed)):
        assert q.batch_shape == (num_tasks,), f"expected batch [T], got {tuple(q.batch_shape)}"
        assert q.event_shape == event, f"expected event {tuple(event)}, got {tuple(q.event_shape)}"
    w = guide.posterior(observed).sample()
    batch, label = episodes.query_y.shape[:2], episodes.query_y.shape[2:]
    likelihood = model.likelihood(w, episodes.query_x, observed)
    assert likelihood.batch_shape == batch and likelihood.event_shape == label
    samples = guide.posterior(observed).sample((2, 3))
    likelihood = model.likelihood(samples, episodes.query_x, observed)
    assert likelihood.batch_shape == (2, 3, *batch) and likelihood.event_shape == label


def check_same_sites(model: pyro_metabayes.Model, guide: Callable[..., Any], episodes: Episodes) -> None:
    sites = SITES[model.observe]
    for data, observed_names in ((episodes, sites), (episodes.observed(), sites - {"query_y"})):
        guide_trace = poutine.trace(guide).get_trace(data)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(data)
        latent = {name for name in guide_trace.stochastic_nodes if name != "task"}
        observed = set(model_trace.observation_nodes)
        assert observed == observed_names
        expected = set(sites_of(model.prior(data)))
        assert {name for name in model_trace.stochastic_nodes if name != "task"} - {"query_y"} == latent == expected
        for site in latent:
            torch.testing.assert_close(model_trace.nodes[site]["value"], guide_trace.nodes[site]["value"])


def check_no_label_leak(guide: pyro_metabayes.Guide, episodes: Episodes) -> None:
    """Check that `posterior` depends neither on passed query labels nor on labels that were seen in training."""
    expected = posterior_of(guide, episodes.observed())
    for smuggled in (episodes, replace(episodes, query_y=relabelled(episodes))):
        assert_same(posterior_of(guide, smuggled), expected, "query labels move the posterior")
        guide.training_posterior(smuggled)
        assert_same(posterior_of(guide, episodes.observed()), expected, "the posterior remembers query labels")


def check_tasks_apart(guide: pyro_metabayes.Guide, episodes: Episodes, noisy: bool = False) -> None:
    observed = episodes.observed()
    expected = posterior_of(guide, observed)
    other = tasks_like(observed, seed=9)
    changed = replace(observed)
    for name in ("support_x", "support_y", "query_x"):
        value = getattr(observed, name).clone()
        value[1] = getattr(other, name)[1, : value.shape[1]]
        setattr(changed, name, value)
    of_task_1 = [t == 1 for t in range(episodes.num_tasks)]
    changed.auxiliary = {
        name: torch.stack([row.flip(-1) if it else row for row, it in zip(value, of_task_1, strict=True)])
        for name, value in observed.auxiliary.items()
    }
    got = posterior_of(guide, changed)
    for task in [t for t in range(episodes.num_tasks) if t != 1]:
        kept = {name: value[task] for name, value in expected.items()}
        assert_same({name: value[task] for name, value in got.items()}, kept, f"task 1 moves task {task}")
    if not noisy:  # a batch draws the noise of all its tasks at once
        singles = [posterior_of(guide, observed.tasks(slice(t, t + 1))) for t in range(episodes.num_tasks)]
        joined = {name: torch.cat([single[name] for single in singles]) for name in expected}
        assert_same(joined, expected, "a batch is not its tasks one by one")


def check_masks(learner: MetaLearner, episodes: Episodes) -> None:
    """Check that masked points change neither the posterior nor a term of the loss."""
    more = padded(episodes)
    expected = posterior_of(learner.guide, episodes.observed())
    assert_same(posterior_of(learner.guide, more.observed()), expected, "masked points move the posterior")
    for kl_weight in (1.0, 0.1):
        terms = []
        for data in (episodes, more):
            torch.manual_seed(5)
            terms.append({name: value.detach() for name, value in learner(data, kl_weight=kl_weight).items()})
        assert_same(terms[1], terms[0], "masked points move the loss")


def check_masked_scores(learner: MetaLearner, episodes: Episodes) -> None:
    """Check that masked points change no score of an evaluation."""
    results = [
        evaluate(
            learner, stream_of(data), EvalSettings(episodes.num_tasks, 4, number_samples=4), seed=3, progress=False
        )
        for data in (episodes, padded(episodes))
    ]
    figures, of_padded = (_plain(result.metrics) for result in results)
    assert of_padded == pytest.approx(figures, rel=1e-6, nan_ok=False), "masked points move the scores"


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """The metrics as a flat mapping, without times and null values."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        flat |= (
            {f"{name} {inner}": it for inner, it in _plain(value).items()} if isinstance(value, dict) else {name: value}
        )
    return {name: value for name, value in flat.items() if value is not None and name != "seconds"}


def check_point_order(learner: MetaLearner, episodes: Episodes) -> None:
    """Check that the posterior does not depend on the order of points, and that predictions follow the queries."""
    observed = episodes.observed()
    expected = posterior_of(learner.guide, observed)
    support = torch.rand(observed.support_mask.shape).argsort(-1)
    query = torch.rand(observed.query_mask.shape).argsort(-1)
    names = ("support_x", "support_y", "support_mask")
    one = replace(observed, **{name: shuffled(getattr(observed, name), support) for name in names})
    assert_same(posterior_of(learner.guide, one), expected, "the order of the support set matters")
    two = observed.change_queries(lambda x: shuffled(x, query))
    assert_same(posterior_of(learner.guide, two), expected, "the order of the query set matters")
    probabilities = []
    for data in (observed, two):
        torch.manual_seed(5)
        _, likelihood = learner.posterior_predictive(data, 3)
        probabilities.append(predicted(likelihood).mean(0).detach())
    assert_same({"p": probabilities[1]}, {"p": shuffled(probabilities[0], query)}, "predictions do not follow")


def check_class_order(guide: pyro_metabayes.Guide, episodes: Episodes) -> None:
    """Check that renaming classes, or outputs of a regression, renames the rows of w and has no other effect."""
    observed = episodes.observed()
    new_name = torch.randperm(observed.num_classes or observed.support_y.shape[-1]).roll(1)
    if observed.num_classes:
        renamed = replace(observed, support_y=new_name[observed.support_y])
    else:  # output k goes by the name new_name[k]
        renamed = replace(observed, support_y=observed.support_y[..., new_name.argsort()])
    expected = posterior_of(guide, observed)
    moved = posterior_of(guide, renamed)
    got = {name: value[:, new_name] if value.dim() > 1 else value for name, value in moved.items()}
    assert_same(got, expected, "the names of the classes matter")


def check_transductive(guide: pyro_metabayes.Guide, observed: Observed) -> None:
    """Check that `transductive` is true if, and only if, query inputs change the posterior."""
    expected = posterior_of(guide, observed)
    elsewhere = replace(observed, query_x=observed.query_x.flip(-1))
    fewer = observed.change_queries(lambda x: x[:, 1:])
    moved = False  # by either: where all inputs are the same number, only how many there are can move anything
    for changed in (elsewhere, fewer):
        got = posterior_of(guide, changed)
        moved |= any(bool((got[name] - expected[name]).abs().max() > 1e-12) for name in expected)
    assert moved == guide.transductive, f"transductive={guide.transductive}, yet query inputs move it: {moved}"


def check_without_gradients(guide: pyro_metabayes.Guide, observed: Observed) -> None:
    """Check that no_grad and inference_mode do not change the posterior."""
    expected = posterior_of(guide, observed)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = posterior_of(guide, observed)
        assert_same(got, expected, mode.__name__)


def check_gradients(learner: MetaLearner, episodes: Episodes, without: Callable[[str], bool]) -> None:
    """Check that each parameter that requires a gradient gets a finite one other than 0, except those of `without`."""
    torch.manual_seed(5)
    learner(episodes)["loss"].backward()
    for name, parameter in learner.named_parameters():
        gradient = parameter.grad
        if without(name) or not parameter.requires_grad:
            assert gradient is None or gradient.abs().max() < 1e-10, f"{name} is no exception any more"
            continue
        assert gradient is not None, f"{name} gets no gradient"
        assert torch.isfinite(gradient).all(), f"{name} gets a gradient that is not finite"
        assert gradient.abs().max() > 0, f"{name} gets a gradient of 0"


def check_predictive(learner: MetaLearner, observed: Observed) -> None:
    """Check the shapes of pyro.infer.Predictive and of posterior_predictive, both vectorised and without gradients."""
    num_tasks, num_queries = observed.query_x.shape[:2]
    event = learner.model.event_shape(observed)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            drawn = Predictive(learner.model, guide=learner.guide, num_samples=5, parallel=True)(observed)
            _, likelihood = learner.posterior_predictive(observed, 5)
        w = latent_with(learner.model.prior(observed), drawn)
        assert w.shape == (5, num_tasks, *event)
        assert ("query_y" in drawn) == (learner.model.observe != "support")
        if "query_y" in drawn:
            assert drawn["query_y"].shape == (5, num_tasks, num_queries, *likelihood.event_shape)
        assert torch.isfinite(w).all() and torch.isfinite(predicted(likelihood)).all()


def check_noise_by_task(learner: MetaLearner, episodes: Episodes, num_processes: int = 2) -> None:
    """Check that the noise of a task does not depend on the number of processes."""
    size = episodes.num_tasks // num_processes
    parts = [(replace(episodes), 0, 1)]
    parts += [(episodes.tasks(slice(r * size, r * size + size)), r, num_processes) for r in range(num_processes)]
    terms, states = [], []
    for data, rank, processes in parts:
        torch.manual_seed(5)
        with noise_of_process(rank, processes):
            terms.append({name: value.detach() for name, value in learner(data).items()})
        states.append(torch.get_rng_state())
    means = {name: torch.stack([part[name] for part in terms[1:]]).mean() for name in terms[0]}
    assert_same(means, terms[0], "the noise of a task depends on the number of processes")
    assert all(torch.equal(state, states[0]) for state in states), "random states of processes drift apart"


# ---------------------------------------------------------------- every guide keeps them


@every
def test_shapes_sites_labels_and_transduction(pair: Pair) -> None:
    """In one test, since to build the learner takes as long as one of them."""
    learner, episodes = pair.learner(), pair.tasks()
    check_shapes(learner.model, learner.guide, episodes)
    check_same_sites(learner.model, learner.guide, episodes)
    check_no_label_leak(learner.guide, episodes)
    check_transductive(learner.guide, episodes.observed())


@covered
def test_neither_other_tasks_nor_the_order_of_points_nor_the_mode_of_gradients_matters(pair: Pair) -> None:
    learner, episodes = pair.learner(), pair.tasks()
    check_tasks_apart(learner.guide, episodes, pair.noisy)
    check_point_order(learner, episodes)
    check_without_gradients(learner.guide, episodes.observed())


@covered
def test_masked_points_change_nothing(pair: Pair) -> None:
    check_masks(pair.learner(particles=2), pair.tasks())


@pytest.mark.parametrize("pair", covering_first(PAIRS, (), settings=False), ids=str)
def test_masked_points_change_no_score(pair: Pair) -> None:
    check_masked_scores(pair.learner(particles=2), pair.tasks())


@covered
def test_a_guide_for_any_number_of_classes_does_not_see_their_names(pair: Pair) -> None:
    """num_classes None is that claim; a guide without it refuses other tasks in one line."""
    guide = pair.learner().guide
    if pair.regression:
        if guide.num_classes is None and not pair.noisy:
            check_class_order(guide, pair.tasks())
        return  # the number of outputs is the model's
    if guide.num_classes is not None:
        with pytest.raises(pyro_metabayes.UsageError, match=r"tasks of 3 classes.*got 4.*task\.way=4"):
            guide.posterior(random_tasks(way=WAY + 1).observed())
        return
    for way in (WAY, WAY + 1):
        if not pair.noisy:  # the noise of a step has an order of classes
            check_class_order(guide, random_tasks(way=way))
        check_shapes(guide.model, guide, random_tasks(way=way))


def without_gradient(pair: Pair) -> Callable[[str], bool]:
    """A function that says whether the loss of a pair does not depend on the parameter of a name."""
    with_network = ("sib", "sib_ablation", "sib_rotation", "sib_savi")
    has_steps = pair.guide in with_network and pair.settings.get("num_steps", 3) > 0
    rotates = bool(pair.settings.get("rotation_step_size"))

    def exception(name: str) -> bool:
        if name in ("model.head.bias", "model.inner.head.bias"):  # the softmax does not see it, networks do
            return not has_steps and not rotates
        if name.startswith("guide.xi."):
            return not has_steps
        if pair.guide.startswith("amortized") and name == "model.head.scale":
            return True  # these guides determine the temperature themselves
        if pair.guide == "logistic_regression" and name.endswith(".loc"):
            return True  # shared by all classes: neither the softmax nor the distance to it depends on it
        # The KL is not part of this objective, and the guide does not use the prior.
        uses_prior = pair.guide in ("mc", "logistic_regression")
        return (
            pair.objective.startswith(("monte_carlo", "mean_score"))
            and not uses_prior
            and name.startswith("model.prior")
        )

    return exception


@every
def test_finite_gradients_reach_every_parameter(pair: Pair) -> None:
    check_gradients(pair.learner(particles=2), pair.tasks(), without_gradient(pair))


@covered
def test_noise_does_not_depend_on_the_number_of_processes(pair: Pair) -> None:
    """With as many tasks per process as particles, classes, and features or hidden units.

    The exception are several particles of sites that depend on each other (`Particles`).
    """
    tasks = pair.tasks(2 * WAY)
    joint = isinstance(pair.learner().model.prior(tasks), Joint)
    check_noise_by_task(pair.learner(particles=1 if joint else WAY), tasks)


@combined
def test_predictive_works_in_one_go_and_without_gradients(pair: Pair) -> None:
    learner, observed = pair.learner(), pair.tasks().observed()
    if pair.prior == "flat":  # Predictive first runs the model by itself, and there is nothing to draw from
        with pytest.raises(UsageError, match=r"got a flat prior; use learner\.posterior_predictive"):
            check_predictive(learner, observed)
        return
    check_predictive(learner, observed)


@combined
def test_more_particles_change_the_variance_only(pair: Pair) -> None:
    """One particle is the mean over seeds of what many particles give at once."""
    episodes = pair.tasks(num_tasks=2)
    terms = [pair.learner(particles=particles)(episodes) for particles in (1, 4)]
    assert terms[0].keys() == terms[1].keys()
    for name, value in terms[1].items():
        assert value.shape == () and torch.isfinite(value), name


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("head", HEADS)
def test_priors_serve_samples_and_densities(prior: str, head: str) -> None:
    """A prior with a density can be drawn from and scored; the flat one says that it has none."""
    model, observed = Pair("mean_field", prior, head).learner().model, random_tasks().observed()
    p = model.prior(observed)
    assert has_density(p) == (prior != "flat")
    if has_density(p):
        w = p.sample((4,))
        assert w.shape == (4, observed.num_tasks, WAY, model.head.num_weights(FEATURES))
        assert p.log_prob(w).shape == (4, observed.num_tasks) and torch.isfinite(p.log_prob(w)).all()


@pytest.mark.parametrize("pair", [Pair("savi", "conditional"), Pair("exact", model="gaussian_mean")], ids=str)
@pytest.mark.parametrize(("name", "expected"), SITES.items())
def test_observe_names_the_sites(name: str, expected: set[str], pair: Pair) -> None:
    learner, episodes = pair.learner(), pair.tasks()
    learner.model.observe = name
    trace = poutine.trace(learner.model).get_trace(episodes)
    assert set(trace.observation_nodes) == expected
    trace.compute_log_prob()
    for site in expected:
        assert trace.nodes[site]["log_prob"].shape == (episodes.num_tasks,)


@pytest.mark.parametrize(
    "pair",
    [
        Pair("sib", settings={"initialisation": "global"}),
        Pair("mean_field"),
        Pair("savi", "count_aware"),
        Pair("savi", "conditional"),
        Pair("savi", "conditional", settings={"shared": False}, model="linear_regression"),
        Pair("savi", "count_aware", model="gaussian_mean"),
        Pair("exact", model="linear_regression", observe="all"),
        Pair("exact", model="gaussian_mean"),
        Pair("exact", "full_gaussian", model="hierarchical_regression"),
        Pair("savi", "full_covariance", model="hierarchical_regression"),
        Pair("sib", settings={"initialisation": "global"}, model="linear_regression"),
        *(Pair("laplace", model=name, settings={"num_steps": 2}) for name in ("generalised_regression", "ordinal")),
        Pair("maml", "flat", model="robust_regression", settings={"num_steps": 2}),
    ],
    ids=str,
)
def test_tasks_without_support_are_tasks(pair: Pair) -> None:
    learner, episodes = pair.learner(), pair.tasks()
    nothing = replace(
        episodes,
        support_x=episodes.support_x[:, :0],
        support_y=episodes.support_y[:, :0],
        support_mask=episodes.support_mask[:, :0],
    )
    check_shapes(learner.model, learner.guide, nothing)
    assert torch.isfinite(learner(nothing)["loss"])


def subclasses_in_models(base: type) -> set[str]:
    """Names of the subclasses of a class, in any file of models, as a YAML writes them."""
    found = set()
    for module in pkgutil.walk_packages(models.__path__, f"{models.__name__}."):
        values = vars(importlib.import_module(module.name)).values()
        found |= {value for value in values if inspect.isclass(value) and issubclass(value, base) and value is not base}
    return {f"{value.__module__}.{value.__name__}".removeprefix("pyro_metabayes.") for value in found}


def test_every_file_is_tried() -> None:
    names = {module.name for module in pkgutil.iter_modules(guides.__path__)}
    assert names == {pair.guide for pair in PAIRS}
    priors = {spec["_target_"] for spec in (*PRIORS.values(), *FOLLOWING.values())}
    priors |= {"models.lwof.BaseClasses"}  # of its model alone, which is tried
    priors |= {spec["_target_"] for spec in OF_NESTED_GROUPS.values()}
    assert subclasses_in_models(Prior) == priors
    assert subclasses_in_models(Head) == {*HEADS.values(), NETWORK["_target_"]}
    assert {pair.model for pair in PAIRS} == MODELS
    objectives = {module.name for module in pkgutil.iter_modules(pyro_metabayes.objectives.__path__)}
    assert objectives - {"objective"} == {spec["_target_"].split(".")[2] for spec in OBJECTIVES.values()}


# ---------------------------------------------------------------- planted faults are caught


class Honest(pyro_metabayes.Guide):
    """N(class mean, 1), which obeys the protocol."""

    def posterior(self, observed: Observed) -> TorchDistribution:
        return Normal(self.mean(observed), 1.0).to_event(2)

    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed)


class ReadsLabels(Honest):
    def mean(self, observed: Observed) -> Tensor:
        labels = getattr(observed, "query_y", torch.zeros(1))
        return class_means(observed) + labels.sum(-1).view(-1, 1, 1)


class RemembersLabels(Honest):
    seen = 0

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        self.seen = int((episodes.query_y[:, 0]).sum()) + 1
        return super().training_posterior(episodes)

    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed) + self.seen


class MixesTasks(Honest):
    def __init__(self, model: pyro_metabayes.Model) -> None:
        super().__init__(model)
        self.norm = nn.BatchNorm1d(FEATURES, track_running_stats=False)

    def mean(self, observed: Observed) -> Tensor:
        means = class_means(observed)
        return self.norm(means.flatten(0, 1)).view_as(means)


class IgnoresSupportMask(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return class_means(replace(observed, support_mask=torch.ones_like(observed.support_mask)))


class HonestlyTransductive(Honest):
    transductive = True

    def mean(self, observed: Observed) -> Tensor:
        weight = observed.query_mask.unsqueeze(-1).double()
        return class_means(observed) + (weight * observed.query_x).sum(1, keepdim=True)


class BoastfullyTransductive(Honest):
    transductive = True


class IgnoresQueryMask(Honest):
    transductive = True

    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed) + observed.query_x.sum(1, keepdim=True)


class SecretlyTransductive(IgnoresQueryMask):
    transductive = False


class FirstSupportPoint(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed) + observed.support_x[:, :1]


class FirstQueryPoint(Honest):
    transductive = True

    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed) + observed.query_x[:, :1]


class NamesClasses(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed) * torch.arange(1.0, observed.num_classes + 1).unsqueeze(-1)


class UnnamedTasks(Honest):
    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed) + torch.randn_like(class_means(observed))


class WrongShape(Honest):
    def posterior(self, observed: Observed) -> TorchDistribution:
        return Normal(self.mean(observed), 1.0).to_event(1)


class OtherSite(Honest):
    def forward(self, data: Observed, kl_weight: float = 1.0) -> None:
        with pyro.plate("task", data.num_tasks, dim=-1):
            pyro.sample("weights", self.posterior(data))


class CutsGraph(Honest):
    def __init__(self, model: pyro_metabayes.Model) -> None:
        super().__init__(model)
        self.forgotten = nn.Parameter(torch.ones(()))

    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed) + self.forgotten.detach()


class Explodes(CutsGraph):
    def mean(self, observed: Observed) -> Tensor:
        return class_means(observed) + (self.forgotten - 1).clamp(min=0).sqrt()


def planted(guide: type[pyro_metabayes.Guide], head: str = "cosine") -> MetaLearner:
    honest = Pair("proto", "gaussian", head).learner()
    return MetaLearner(honest.backbone, honest.model, guide(honest.model), Elbo(), honest.specification)


CHECKS: dict[str, Callable[[MetaLearner, Episodes], None]] = {
    "noise": lambda learner, data: check_noise_by_task(learner, data, num_processes=data.num_tasks),
    "shapes": lambda learner, data: check_shapes(learner.model, learner.guide, data),
    "sites": lambda learner, data: check_same_sites(learner.model, learner.guide, data),
    "labels": lambda learner, data: check_no_label_leak(learner.guide, data),
    "tasks": lambda learner, data: check_tasks_apart(learner.guide, data),
    "masks": check_masks,
    "masked scores": check_masked_scores,
    "points": check_point_order,
    "classes": lambda learner, data: check_class_order(learner.guide, data),
    "transductive": lambda learner, data: check_transductive(learner.guide, data.observed()),
    "predictive": lambda learner, data: check_predictive(learner, data.observed()),
    "gradients": lambda learner, data: check_gradients(learner, data, lambda name: name == "model.head.bias"),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("guide", [Honest, HonestlyTransductive])
def test_an_honest_guide_passes(guide: type[pyro_metabayes.Guide], check: str) -> None:
    CHECKS[check](planted(guide), random_tasks())


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        (WrongShape, "shapes", "expected batch"),
        (UnnamedTasks, "noise", "depends on the number of processes"),
        (OtherSite, "sites", "weights"),
        (ReadsLabels, "labels", "query labels move the posterior"),
        (RemembersLabels, "labels", "remembers query labels"),
        (MixesTasks, "tasks", "task 1 moves task"),
        (IgnoresSupportMask, "masks", "masked points move the posterior"),
        (IgnoresQueryMask, "masks", "masked points move the posterior"),
        (FirstSupportPoint, "points", "order of the support set"),
        (FirstQueryPoint, "points", "order of the query set"),
        (NamesClasses, "classes", "names of the classes"),
        (SecretlyTransductive, "transductive", "transductive=False, yet query inputs move it: True"),
        (BoastfullyTransductive, "transductive", "transductive=True, yet query inputs move it: False"),
        (CutsGraph, "gradients", "forgotten gets no gradient"),
        (Explodes, "gradients", "not finite"),
    ],
)
def test_a_planted_fault_is_caught(fault: type[pyro_metabayes.Guide], check: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](planted(fault), random_tasks())


class HonestOfNumbers(pyro_metabayes.Guide):
    """N(sum of the support labels of an output, 1) for each weight: a guide for regressions that obeys the protocol."""

    def posterior(self, observed: Observed) -> TorchDistribution:
        shape = observed.num_tasks, *self.model.event_shape(observed)
        return Normal(self.mean(observed).unsqueeze(-1).expand(shape), 1.0).to_event(2)

    def mean(self, observed: Observed) -> Tensor:
        """The sums of the support labels [T, Y]."""
        return (observed.support_y * observed.support_mask.unsqueeze(-1)).sum(1)


class ReadsNumbers(HonestOfNumbers):
    def mean(self, observed: Observed) -> Tensor:
        return super().mean(observed) + getattr(observed, "query_y", torch.zeros(1, 1, 1)).sum(1)


class IgnoresMaskOfNumbers(HonestOfNumbers):
    def mean(self, observed: Observed) -> Tensor:
        return observed.support_y.sum(1)


class FirstNumber(HonestOfNumbers):
    def mean(self, observed: Observed) -> Tensor:
        return super().mean(observed) + observed.support_y[:, 0]


class NamesOutputs(HonestOfNumbers):
    def mean(self, observed: Observed) -> Tensor:
        return super().mean(observed) * torch.arange(1.0, observed.support_y.shape[-1] + 1)


def planted_in_a_regression(guide: type[pyro_metabayes.Guide]) -> tuple[MetaLearner, Episodes]:
    pair = Pair("mean_field", model="linear_regression")
    honest = pair.learner()
    learner = MetaLearner(honest.backbone, honest.model, guide(honest.model), Elbo(), honest.specification)
    return learner, pair.tasks()


@pytest.mark.parametrize("check", CHECKS)
def test_an_honest_guide_passes_in_a_regression(check: str) -> None:
    CHECKS[check](*planted_in_a_regression(HonestOfNumbers))


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        (ReadsNumbers, "labels", "query labels move the posterior"),
        (IgnoresMaskOfNumbers, "masks", "masked points move the posterior"),
        (FirstNumber, "points", "order of the support set"),
        (NamesOutputs, "classes", "names of the classes"),
    ],
)
def test_a_planted_fault_is_caught_in_a_regression(fault: type[pyro_metabayes.Guide], check: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](*planted_in_a_regression(fault))


class Unmasked(pyro_metabayes.Model):
    """The few-shot classifier with a missing mask, or the mask of the wrong set."""

    def __init__(self, inner: pyro_metabayes.Model, wrong: str) -> None:
        super().__init__()
        self.inner, self.wrong = inner, wrong

    def event_shape(self, observed: Observed) -> torch.Size:
        return self.inner.event_shape(observed)

    def prior(self, observed: Observed) -> TorchDistribution:
        return self.inner.prior(observed)

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        return self.inner.likelihood(w, x, observed)

    def forward(self, data: Observed, kl_weight: float = 1.0) -> None:
        mask = torch.ones_like(data.query_mask) if self.wrong == "lost" else data.query_mask.roll(1, 1)
        super().forward(replace(data, query_mask=mask), kl_weight)


@pytest.mark.parametrize("wrong", ["lost", "shifted"])
@pytest.mark.parametrize(
    "objective", [Elbo(), MonteCarlo(2), MonteCarlo(2, joint=True), ImportanceWeighted(2)], ids=lambda o: o.name
)
def test_a_wrong_mask_in_a_model_is_caught(wrong: str, objective: Any) -> None:
    honest = planted(Honest)
    learner = MetaLearner(honest.backbone, honest.model, honest.guide, objective, honest.specification)
    check_masks(learner, random_tasks())
    learner.model = Unmasked(honest.model, wrong)
    with pytest.raises(AssertionError, match="masked points move the loss"):
        check_masks(learner, random_tasks())


def test_mixtures_are_compared_by_their_moments() -> None:
    """`moments` serves every prior that a guide may hand on."""
    model = Pair("mean_field", "mixture").learner().model
    p = model.prior(random_tasks().observed())
    assert isinstance(innermost(p), MixtureSameFamily)
    assert set(moments(p)) == {"mean", "variance"}
