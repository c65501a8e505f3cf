"""Random tasks, and small learners of every guide with every prior, head and model that suits it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pyro.distributions import Normal
from torch import Size, Tensor
from torch.nn.functional import normalize

from pyro_metabayes import Episodes, MetaLearner, Observed, models
from pyro_metabayes.build import arguments_of, build, target_of
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.models.heads import Head

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "experiments/conf"
WAY, FEATURES, TARGETS = 3, 5, 2
BASE = 4  # base classes of the model that has any
SMALL = {"num_hidden": 6, "num_components": 3, "rank": 2}  # sizes of networks and mixtures in tests

FEW = {"num_steps": 12, "cleaning_steps": 12}  # steps of inner loops in tests


def _configured(kind: str) -> dict[str, dict[str, Any]]:
    """Settings of every YAML of a kind, with small sizes, so that a new file is tested too."""
    content = {path.stem: dict(OmegaConf.load(path)) for path in sorted((CONF / kind).glob("*.yaml"))}  # type: ignore[arg-type]
    return {
        name: {"_target_": values["_target_"]} | {key: size for key, size in SMALL.items() if key in values}
        for name, values in content.items()
    }


_PRIORS = _configured("prior")
FOLLOWING = {"guided": _PRIORS.pop("guided")}  # made by a guide, and nothing without it
OF_NESTED_GROUPS = {"nested": _PRIORS.pop("nested")}  # test_nested_groups.py
PRIORS = _PRIORS | {
    "count_aware": _PRIORS["conditional"] | {"count_aware": True},
    "full_covariance": _PRIORS["conditional"] | {"full_covariance": True},
}


def has_rows(head: dict[str, Any]) -> bool:
    """Whether the weights of a head have one row per class, as the few-shot classifier needs."""
    built = build(head, "head", num_features=FEATURES, num_classes=WAY)
    return isinstance(built, Head) and built.event_shape(WAY, FEATURES)[0] == WAY


HEADS = {name: head["_target_"] for name, head in _configured("head").items() if has_rows(head)}
OBJECTIVES = _configured("objective")
OBJECTIVES["monte_carlo_joint"] = OBJECTIVES["monte_carlo"] | {"joint": True}
REGRESSIONS = {"gaussian_mean": 1, "linear_regression": 3}  # conjugate models, with the features of their tasks
NUM_RANDOM = 2  # features whose weights vary by task, of a model with the argument num_weights
LEVELS = 4  # of ordinal labels, numbers 0 to LEVELS - 1
NOISE = {"noise": 0.7, "scale": 0.7, "df": 5.0}  # of a regression, if it has the argument
NETWORK = {"_target_": "models.neural_regression.Network", "hidden": [4, 3]}
EITHER = ("platipus",)  # models of classes or of numbers, as the pair says


def random_tasks(
    num_tasks: int = 3, way: int = WAY, shot: int = 2, query: int = 4, features: int = FEATURES, seed: int = 0
) -> Episodes:
    """Tasks of noisy class centres with points of unit length, in random order."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(torch.get_default_dtype())

    centres = normal(num_tasks, way, features)

    def points(per_class: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(way).repeat_interleave(per_class).expand(num_tasks, -1)
        order = torch.rand(labels.shape, generator=generator).argsort(-1)
        labels = labels.gather(1, order)
        means = centres.gather(1, labels.unsqueeze(-1).expand(-1, -1, features))
        return normalize(means + normal(*means.shape), dim=-1), labels

    (support_x, support_y), (query_x, query_y) = points(shot), points(query)
    return Episodes(support_x=support_x, support_y=support_y, query_x=query_x, query_y=query_y, num_classes=way)


def random_regressions(
    num_tasks: int = 3,
    support: int = 3,
    query: int = 4,
    features: int = 3,
    targets: int = TARGETS,
    seed: int = 0,
    whole: bool = False,
) -> Episodes:
    """Tasks y = w x + noise. Some points are masked (none if `whole`), but never the last point of a set.

    One feature is the constant 1, so that both regression models can have them.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(torch.get_default_dtype())

    num_points = support + query
    x = normal(num_tasks, num_points, features)
    x[..., 0] = 1.0
    y = x @ normal(num_tasks, targets, features).mT + 0.5 * normal(num_tasks, num_points, targets)
    mask = (torch.rand(num_tasks, num_points, generator=generator) < 0.7) | whole
    mask[:, [support - 1, -1]] = True
    points = {name: (values[:, :support], values[:, support:]) for name, values in (("x", x), ("y", y), ("mask", mask))}
    return Episodes(
        **{f"{part}_{name}": both[i] for i, part in enumerate(("support", "query")) for name, both in points.items()}
    )


def with_levels(episodes: Episodes) -> Episodes:
    """The same tasks with ordinal labels: the number of the three cutpoints that lie below the numeric label."""
    cutpoints = torch.tensor([-1.0, 0.0, 1.0]).to(episodes.query_y)
    levels = {
        name: torch.bucketize(getattr(episodes, name).contiguous(), cutpoints) for name in ("support_y", "query_y")
    }
    return replace(episodes, **{name: value.to(cutpoints) for name, value in levels.items()})


def _halved(episodes: Episodes) -> dict[str, Tensor]:
    """Levels 0 to 3 as 0 and 1."""
    return {name: (getattr(episodes, name) > 1).to(episodes.query_x) for name in ("support_y", "query_y")}


def are_levels(labels: Tensor) -> bool:
    """Whether labels are whole numbers: classes or levels."""
    return not labels.is_floating_point() or bool((labels == labels.floor()).all())


def normal_with(noise: Tensor) -> type[Normal]:
    """A normal distribution whose draws are loc + scale * noise, for expectations without random numbers.

    If `noise` has every combination of signs once, the mean of a quadratic function over draws is its expectation. This
    is Gauss-Hermite quadrature with two nodes per dimension.
    """

    class Fixed(Normal):
        def rsample(self, sample_shape: Size = torch.Size()) -> Tensor:  # noqa: B008
            return self.loc + self.scale * noise.expand(self._extended_shape(sample_shape))

    return Fixed


def with_turns(episodes: Episodes, seed: int = 0) -> Episodes:
    """The same tasks, with random points as the rotated views of the queries."""
    generator = torch.Generator().manual_seed(seed)
    shape = *episodes.query_x.shape[:2], 3, *episodes.query_x.shape[2:]
    turned = torch.randn(shape, generator=generator, dtype=torch.float64).to(episodes.query_x)
    return replace(episodes, auxiliary={"turned": normalize(turned, dim=-1)})


def tasks_like(episodes: Observed, seed: int) -> Episodes:
    """Other tasks of the same shape, with classes or numbers as labels."""
    num_tasks, _, features = episodes.query_x.shape
    if episodes.num_classes:
        return random_tasks(num_tasks, episodes.num_classes, features=features, seed=seed)
    numbers = random_regressions(num_tasks, features=features, targets=episodes.support_y.shape[-1], seed=seed)
    if not are_levels(episodes.support_y):
        return numbers
    levels = with_levels(numbers)
    return levels if episodes.support_y.max() > 1 else replace(levels, **_halved(levels))


def stream_of(episodes: Episodes) -> TaskStream:
    """A stream that holds these tasks (at most a block) and no others."""
    return TaskStream(lambda generator: episodes, seed=0, split="test")


def _with_model(module: str) -> bool:
    return hasattr(importlib.import_module(f"pyro_metabayes.models.{module}"), "Model")


MODELS = {module.name for module in pkgutil.iter_modules(models.__path__) if _with_model(module.name)}


@cache
def _signature(model: str) -> Mapping[str, inspect.Parameter]:
    module = importlib.import_module(f"pyro_metabayes.models.{model}")
    return inspect.signature(module.Model.__init__).parameters


def parameters_of(model: str) -> set[str]:
    """Names of the arguments of a model."""
    return set(_signature(model))


GROUPED = {name: 3 for name in sorted(MODELS) if {"prior", "num_targets", "num_weights"} <= parameters_of(name)}


def required_by(model: str) -> set[str]:
    """Names of the arguments without a default."""
    return {name for name, value in _signature(model).items() if value.default is inspect.Parameter.empty}


def _with_scale(head: str) -> dict[str, Any]:
    """A head with a scale of 2, if it has one."""
    spec: dict[str, Any] = {"_target_": head}
    return spec | ({"scale": 2.0} if "scale" in arguments_of(target_of(spec, "head")) else {})


@dataclass(frozen=True)
class Pair:
    """A guide with its settings, and the parts with which it is tested."""

    guide: str = "sib"
    prior: str = "gaussian"
    head: str = "cosine"
    objective: str = "elbo"
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "few_shot_classifier"  # a conjugate regression has no head
    observe: str = "query"  # the labels that the model conditions on
    numbers: bool = False  # labels are numbers, for a model that takes either
    # Of a model that is the method's own and has its own prior and head.
    model_settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        every = {**self.settings, **self.model_settings}
        settings = [value if isinstance(value, str) else f"{name}={value}" for name, value in every.items()]
        parts = f"{self.model}-{self.observe}" if self.regression else self.head
        others = [value for value in (self.model, self.observe) if value not in ("few_shot_classifier", "query")]
        return "-".join([self.guide, self.prior, parts, *others, self.objective, *settings])

    @property
    def regression(self) -> bool:
        return self.numbers or (self.model not in EITHER and {"prior", "num_targets"} <= parameters_of(self.model))

    @property
    def _is_linear(self) -> bool:
        return self.regression and not self.of_network and "prior" in parameters_of(self.model)

    @property
    def of_network(self) -> bool:
        """Whether the latent is one row with all weights of a network."""
        return self.head == "network" or (self.regression and "head" in required_by(self.model))

    def tasks(self, num_tasks: int = 3, seed: int = 0) -> Episodes:
        """Tasks for the learner of this pair, with rotated views of the queries if the guide uses them."""
        tasks = self._plain_tasks(num_tasks, seed)
        return with_turns(tasks, seed) if self.settings.get("rotation_step_size") else tasks

    def _plain_tasks(self, num_tasks: int, seed: int) -> Episodes:
        if self.regression:
            numbers = random_regressions(num_tasks, features=self.features, targets=self.targets, seed=seed)
            return self._in_support(numbers)
        return random_tasks(num_tasks, seed=seed)

    def _in_support(self, numbers: Episodes) -> Episodes:
        """Tasks with labels in the support of the likelihood: real numbers, levels (or counts), or 0 and 1."""
        levels = with_levels(numbers)
        support = _support_of(self)
        for tasks in (numbers, levels, replace(levels, **_halved(levels))):
            if support.check(tasks.support_y).all() and support.check(tasks.query_y).all():
                return tasks
        raise AssertionError(f"no random tasks have labels of the likelihood of {self.model}: {support}")

    @property
    def features(self) -> int:
        return (REGRESSIONS | GROUPED).get(self.model, 3 if self._is_linear else 2)

    @property
    def _ordered(self) -> bool:
        """Whether the labels of the model are levels."""
        return "num_levels" in parameters_of(self.model)

    @property
    def targets(self) -> int:
        # Shared effects tell outputs apart.
        return 1 if self.of_network or self.model in GROUPED or self._ordered else TARGETS

    @property
    def noisy(self) -> bool:
        """Whether `posterior` itself draws random numbers."""
        return bool(self.settings.get("inner_samples")) and self.settings.get("posterior") != "delta"

    def _of_model(self) -> dict[str, Any]:
        takes = parameters_of(self.model) if self.regression else set()
        regression = {name: value for name, value in NOISE.items() if name in takes}
        observe = {} if self.observe == "query" else {"observe": self.observe}
        return regression | observe | self.model_settings

    def specification(self, way: int = WAY, features: int = FEATURES, particles: int = 1) -> dict[str, Any]:
        """The specification of the learner. `way` and `features` are for classifiers only."""
        common = {
            "backbone": {"_target_": "models.backbones.identity.Backbone", "normalise": False},
            "prior": {**PRIORS, **FOLLOWING}.get(self.prior),
            "model": {"_target_": f"models.{self.model}.Model", **self._of_model()},
            "guide": {"_target_": f"guides.{self.guide}.Guide", **self.settings},
            "objective": OBJECTIVES[self.objective],
            "particles": particles,
        }
        if self.regression:
            shape = {"input_shape": [self.features], "num_classes": self.targets, "num_targets": self.targets}
            shape |= {"num_weights": NUM_RANDOM} if self.model in GROUPED else {}
            shape |= {"num_levels": LEVELS} if self._ordered else {}
            return common | shape | {"head": NETWORK if self.of_network else None}
        head = _with_scale(HEADS[self.head]) if self.head in HEADS else None
        head = NETWORK if self.of_network else head
        common |= {"num_base_classes": BASE} if self.model == "lwof" else {}
        return common | {"head": head, "input_shape": [features], "num_classes": way}

    def learner(self, seed: int = 0, **shape: int) -> MetaLearner:
        """The learner, with all parameters moved from their initial values: zeros and ones would hide mistakes.

        The learner is built once. Every call returns a copy, and leaves the random state as the construction does.
        """
        key = repr(self), seed, str(sorted(shape.items())), torch.get_default_dtype()
        if key not in _LEARNERS:
            torch.manual_seed(seed)
            learner = MetaLearner.from_specification(self.specification(**shape))
            with torch.no_grad():
                for parameter in learner.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            _LEARNERS[key] = learner, torch.get_rng_state()
        learner, state = _LEARNERS[key]
        torch.set_rng_state(state)
        return deepcopy(learner)


_LEARNERS: dict[Any, tuple[MetaLearner, Tensor]] = {}  # and the random state after their construction
_SUPPORTS: dict[str, Any] = {}  # by model with its settings


def _support_of(pair: Pair) -> Any:
    """The support of the distribution of one label. The random state of the test does not change."""
    key = f"{pair.model} {pair.model_settings}"
    if key not in _SUPPORTS:
        numbers = random_regressions(features=pair.features, targets=pair.targets).observed()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = MetaLearner.from_specification(pair.specification()).model
            w = torch.zeros(numbers.num_tasks, *model.event_shape(numbers))
            _SUPPORTS[key] = innermost(model.likelihood(w, numbers.query_x, numbers)).support  # type: ignore[attr-defined]
    return _SUPPORTS[key]


def _sib() -> list[Pair]:
    """sib with several families and priors, with and without the inner KL. The other choices alternate."""
    pairs = []
    choices = product(("normal", "amortized", "delta"), ("gaussian", "mixture", "conditional", "flat"), (0.0, 1.0))
    for i, (family, prior, inner_kl) in enumerate(choices):
        settings = {
            "posterior": family,
            "inner_kl": inner_kl,
            "initialisation": ("support", "global")[(i + i // 8) % 2],
            "synthetic_gradient": ("ordered", "equivariant")[i // 2 % 2],
            "inner_samples": 2 * (i // 3 % 2),
            "learn_step_size": bool((i + i // 4) % 2),
            "step_size": 0.1,
            "num_steps": 2,
        }
        pairs.append(Pair("sib", prior, ("cosine", "linear")[i // 5 % 2], settings=settings))
    return pairs


def _balanced() -> list[Pair]:
    """Guides for balanced queries, and guides that estimate the class shares of the queries."""
    known = {"balance": "known"}
    steps = {"num_steps": 2, "step_size": 0.1, "inner_kl": 1.0, "synthetic_gradient": "marginal_aware"}
    pairs = [
        Pair("sib_oracle", head="linear", settings={"num_steps": 2, "step_size": 0.1, **known}),
        *(Pair("proto", "flat", head, settings=known) for head in ("linear", "cosine_offset")),
        Pair("sib", head="cosine_offset", settings={**steps, **known}),
        Pair("sib", "flat", "linear", settings={"posterior": "delta", "num_steps": 0, **known}),
    ]
    pairs += [
        *(Pair("bd_cspn", "flat", head, settings=known) for head in ("linear", "cosine_offset")),
        Pair("bd_cspn", "gaussian", "linear", settings={"most_confident": 2}),
    ]
    for balance in ("known", "estimated"):
        pairs += [Pair("soft_kmeans", "flat", "linear", settings={"num_steps": 2, "balance": balance})]
        pairs += [Pair("pt_map", "flat", "cosine_offset", settings={"learn_step_size": True, "balance": balance})]
    return [*pairs, Pair("soft_kmeans", "gaussian", "cosine", settings={"num_steps": 2})]


def _sib_savi() -> list[Pair]:
    """sib_savi with and without labels and noise between classes, and with objectives of several samples."""
    steps = {"num_steps": 2, "step_size": 0.1, "scale": 0.1}
    between, blind = {**steps, "between": 0.2}, {**steps, "label_precision": 0.0}
    pairs = [
        Pair(head="linear", settings={**between, "posterior": "amortized"}),
        Pair(settings={**steps, "synthetic_gradient": "equivariant", "by_entropy": False}),
        Pair(settings={**between, "by_entropy": False}),
        Pair(settings=blind),
        Pair(objective="importance_weighted", settings=between),
        Pair(objective="monte_carlo_joint", settings={**blind, "between": 0.2}),
    ]
    return [replace(pair, guide="sib_savi", prior="guided") for pair in pairs]


def _unbalanced_sib() -> list[Pair]:
    """sib with the marginal-aware network, and with the mean over queries in place of the sum.

    over_batch mixes tasks, so it violates the protocol by design. It has a separate test.
    """
    aware = {"synthetic_gradient": "marginal_aware", "num_steps": 2, "step_size": 0.1}
    return [
        Pair("sib", "flat", settings={**aware, "posterior": "delta"}),
        Pair("sib_ablation", head="linear", settings={**aware, "reduction": "mean"}),
        Pair("sib_ablation", settings={**aware, "normalisation": "none", "initialisation": "global"}),
        Pair("sib_ablation", "flat", settings={"step_size": 0.1, "posterior": "delta", "reduction": "mean"}),
    ]


def _rotating_sib() -> list[Pair]:
    """sib_rotation: the rotation step before the synthetic ones, with a head that only it trains, and alone."""
    step = {"rotation_step_size": 0.1, "step_size": 0.1, "num_steps": 2}
    return [
        Pair("sib_rotation", settings={**step, "posterior": "amortized", "learn_step_size": True}),
        Pair("sib_rotation", "flat", "linear", settings={**step, "posterior": "delta", "rotation_weight": 0.0}),
        Pair("sib_rotation", "flat", settings={**step, "posterior": "delta", "num_steps": 0}),
    ]


def _with_every_head(pair: Pair) -> list[Pair]:
    return [replace(pair, head=head) for head in HEADS]


FOR_REGRESSIONS = {"guides.exact.Guide", "guides.partial_pooling.Guide"}  # guides of numbers


def _as_configured(path: Path) -> Pair:
    """The pair that the YAML of a guide sets, so that a new guide is tested too."""
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    parts = {"prior": "gaussian", "head": "cosine", "objective": "elbo", "model": "few_shot_classifier"}
    parts |= {name: value for name, value in content.get("model", {}).items() if name == "observe"}
    if content["guide"]["_target_"] in FOR_REGRESSIONS:
        parts["model"] = "linear_regression"
    for default in content.get("defaults", []):
        parts |= {key.rpartition("/")[2]: value for key, value in default.items() if "override" in key}
    parts.pop("backbone", None)  # pairs are tried on features
    parts |= {part: "none" for part in ("prior", "head") if part in content and content[part] is None}
    settings = {name: value for name, value in content["guide"].items() if name != "_target_"}
    settings |= {name: min(settings[name], most) for name, most in FEW.items() if name in settings}
    guide = content["guide"]["_target_"].split(".")[1]
    model = {name: value for name, value in content.get("model", {}).items() if name != "observe"}
    if "dropout" in model:  # its masks have the points in them, masked ones too
        model |= {"dropout": 0.0}
    return Pair(guide, **parts, settings=settings, model_settings=model, numbers="noise" in model)


def _of_regressions() -> list[Pair]:
    """Pairs for regressions. These have no prototypes, so sib starts from a learned constant."""
    start = {"initialisation": "global", "num_steps": 2, "step_size": 0.1}
    pairs = [
        *(Pair("exact", observe=observe) for observe in ("query", "support", "all")),
        *(
            Pair("savi", prior, settings={"shared": shared})
            for prior in ("conditional", "count_aware")
            for shared in (True, False)
        ),
        *(Pair("mc", "count_aware", objective=name) for name in ("monte_carlo", "monte_carlo_joint")),
        Pair("mc", "conditional", objective="monte_carlo"),
        *(Pair("mean_field", prior) for prior in ("gaussian", "mixture", "conditional")),
        Pair("mean_field", objective="importance_weighted"),
        Pair("sib", settings=start),
        Pair("sib_ablation", settings={**start, "normalisation": "none", "posterior": "fixed"}),
        Pair("sib", settings={**start, "inner_kl": 1.0}),
        Pair("sib", "flat", settings={**start, "posterior": "delta", "synthetic_gradient": "equivariant"}),
    ]
    return [replace(pair, model=model) for model in REGRESSIONS for pair in pairs]


def _of_descent() -> list[Pair]:
    """Gradient-based guides with the rows of a head, a network for classes, and a network for numbers."""
    two = {"num_steps": 2, "step_size": 0.1, "learn_step_size": True}
    inner = {**two, "inner_samples": 2}
    points = [
        Pair("maml", "flat", settings=two),
        Pair("maml", "flat", "network", settings=two),
        Pair("maml", settings={**two, "initialisation": "prior"}),
        Pair("maml", "flat", "linear", settings={**two, "initialisation": "support"}),
        Pair("maml", "flat", settings={"num_steps": 2, "step_size": 0.1, "first_order": True}),
        Pair("llama", "flat", "linear", settings={**two, "weight": 0.1}),
        Pair("laplace", head="linear", settings=two),
        Pair("abml", head="linear", observe="all", settings={**inner, "hyper_weight": 0.1}),
        Pair("platipus", model="platipus", head="linear"),
        Pair("platipus", model="platipus", numbers=True),
    ]
    network = [
        Pair("maml", "flat", settings=two),
        Pair("maml", "flat", observe="all", settings={**two, "num_steps": 1}),
        Pair("llama", "flat", settings={**two, "weight": 0.1}),
        Pair("laplace", settings=two),
        Pair("abml", settings=inner),
        Pair("mean_field"),
        Pair("savi", "count_aware"),
    ]
    linear = [Pair("maml", "flat", settings=two), Pair("laplace", settings=two), Pair("abml", settings=inner)]
    points += [replace(pair, model="neural_regression") for pair in network]
    return points + [replace(pair, model="linear_regression") for pair in linear]


def _of_groups() -> list[Pair]:
    """Models with group effects and shared effects. Priors and posteriors have covariances."""
    two = {"num_steps": 2, "step_size": 0.1}
    pairs = [
        *(Pair("exact", "full_gaussian", observe=observe) for observe in ("query", "all")),
        *(Pair("savi", "full_covariance", settings={"shared": shared}) for shared in (True, False)),
        *(
            Pair("partial_pooling", "full_gaussian", observe=observe, settings={"num_hidden": 6})
            for observe in ("query", "all")
        ),
        Pair("partial_pooling", "gaussian", observe="all"),
        Pair("savi", "count_aware"),
        Pair("mean_field", "full_gaussian"),
        Pair("mc", "full_covariance", objective="monte_carlo"),
        Pair("sib", settings={**two, "initialisation": "global"}),
        Pair("laplace", settings=two),
    ]
    return [replace(pair, model="hierarchical_regression") for pair in pairs]


def _of_other_likelihoods() -> list[Pair]:
    """Student-t noise around linear functions and networks, and ordinal labels."""
    two = {"num_steps": 2, "step_size": 0.1}
    both = [
        Pair("mean_field"),
        Pair("savi", "count_aware"),
        Pair("savi", "full_covariance", observe="all"),
        Pair("partial_pooling", "full_gaussian", observe="all", settings={"num_hidden": 6}),
        Pair("maml", "flat", settings={**two, "learn_step_size": True}),
        Pair("mc", "count_aware", objective="monte_carlo"),
        Pair("sib", settings={**two, "initialisation": "global"}),
    ]
    curved = ("ordinal", "generalised_regression")  # likelihoods whose curvature laplace computes
    pairs = [replace(pair, model=model) for model in ("robust_regression", *curved) for pair in both]
    pairs += [Pair("laplace", model=model, settings=two) for model in curved]
    return [*pairs, Pair("maml", "flat", "network", model="robust_regression", settings=two)]


def _of_base_classes() -> list[Pair]:
    """Learning without forgetting: each inner loop with and without the mixture prior, and other guides that fit."""
    steps = {"num_steps": 2, "step_size": 0.1}
    any_number = {**steps, "synthetic_gradient": "equivariant"}
    pairs = [
        *(Pair("sib", settings=steps, model_settings={"inner": inner}) for inner in ("novel", "gated", "pooled")),
        *(
            Pair("sib", settings={**any_number, "inner_kl": 1.0}, model_settings={"inner": inner})
            for inner in ("all", "gated")
        ),
        Pair("sib", "flat", "linear", settings={**steps, "posterior": "delta"}, model_settings={"inner": "pooled"}),
        Pair(
            "sib", settings={**any_number, "inner_samples": 2}, model_settings={"inner": "all", "sample_at_test": True}
        ),
        Pair("mean_field", observe="all", model_settings={"learn_offset": False}),
        Pair("proto", "flat", "linear"),
        Pair("attention", "flat", "linear"),
        Pair("maml", "flat", settings={"num_steps": 2, "step_size": 0.1, "initialisation": "support"}),
    ]
    return [replace(pair, model="lwof") for pair in pairs]


@cache
def every_pair() -> list[Pair]:
    """All guides as their YAML sets them, and known guides with other parts that fit."""
    pairs = [_as_configured(path) for path in sorted((CONF / "guide").glob("*.yaml"))]
    pairs += _sib() + _sib_savi() + _balanced()
    inert = {"num_steps": 0, "step_size": 0.1}
    pairs += [Pair("sib", settings={**inert, "posterior": family}) for family in ("normal", "delta")]
    pairs += [pair for prior in ("conditional", "count_aware") for pair in _with_every_head(Pair("savi", prior))]
    pairs += [Pair("savi", prior, settings={"shared": False}) for prior in ("conditional", "count_aware")]
    pairs += [Pair("savi", prior, "linear") for prior in ("low_rank", "coupling_flow")]
    pairs += [Pair("mc", prior, objective="monte_carlo") for prior in ("low_rank", "coupling_flow")]
    pairs += [Pair("savi", "conditional", objective="importance_weighted")]
    pairs += _unbalanced_sib() + _rotating_sib()
    unnormalised = {"normalisation": "none", "posterior": "fixed", "synthetic_gradient": "equivariant"}
    pairs += [Pair("sib_ablation", settings=unnormalised)]
    pairs += [
        pair
        for prior in ("gaussian", "conditional", "count_aware")
        for pair in _with_every_head(Pair("mc", prior, objective="monte_carlo"))
    ]
    pairs += [Pair("mean_field", prior, head) for prior, head in product(PRIORS, HEADS)]
    pairs += [Pair("proto", prior, head) for prior, head in product(("flat", "gaussian", "conditional"), HEADS)]
    pairs += [Pair("mean_field", objective=name) for name in OBJECTIVES]
    pairs += _of_regressions() + _of_descent() + _of_groups() + _of_base_classes() + _of_other_likelihoods()
    pairs += [Pair("logistic_regression", head="linear", settings={"posterior": "laplace"})]
    pairs += [Pair("mean_field", model=model) for model in sorted(MODELS - {pair.model for pair in pairs})]
    return list({str(pair): pair for pair in pairs}.values())
