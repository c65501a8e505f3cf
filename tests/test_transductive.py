"""Do the transductive guides predict as the algorithms of their papers, and are projected predictions balanced?"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pyro_metabayes import Episodes, MetaLearner
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.sources.gaussian_features import GaussianFeatures
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.errors import UsageError
from pyro_metabayes.models.backbones import identity
from pyro_metabayes.transductive.sinkhorn import class_term
from tests import transcriptions
from tests.commands import call, on_features, ran
from tests.pairs import HEADS, Pair, random_tasks

NUM_TASKS = 24
AGREEMENT = 0.99  # of the predicted classes of all queries

Algorithm = Callable[..., np.ndarray[Any, Any]]
CASES: dict[str, tuple[Pair, float, Algorithm]] = {
    "soft_kmeans": (
        Pair("soft_kmeans", "flat", "linear"),
        10.0,
        partial(transcriptions.soft_kmeans, scale=10.0, num_steps=10, shares=False),
    ),
    "soft_kmeans with shares": (
        Pair("soft_kmeans", "flat", "linear", settings={"balance": "estimated", "num_steps": 5}),
        10.0,
        partial(transcriptions.soft_kmeans, scale=10.0, num_steps=5, shares=True),
    ),
    "pt_map": (Pair("pt_map", "flat", "linear"), 10.0, partial(transcriptions.pt_map, scale=10.0)),
    "bd_cspn": (Pair("bd_cspn", "flat", "cosine_offset"), 10.0, transcriptions.bd_cspn),
    "bd_cspn, linear head": (Pair("bd_cspn", "flat", "linear"), 5.0, transcriptions.bd_cspn),
    "laplacian_shot": (
        Pair("laplacian_shot", "flat", "linear", model="laplacian_shot", model_settings={"smoothness": 0.7}),
        4.0,
        partial(transcriptions.laplacian_shot, scale=4.0, smoothness=0.7),
    ),
    "proto, known balance": (
        Pair("proto", "flat", "linear", settings={"balance": "known"}),
        10.0,
        partial(transcriptions.balanced_prototypes, scale=10.0),
    ),
}


def untrained(pair: Pair, episodes: Episodes, scale: float) -> MetaLearner:
    """The untrained learner of a pair, with a head of this scale."""
    specification = pair.specification(way=episodes.num_classes, features=episodes.query_x.shape[-1])
    specification["head"] = {"_target_": HEADS[pair.head], "scale": scale}
    return MetaLearner.from_specification(specification)


@torch.no_grad()
def probabilities(learner: MetaLearner, episodes: Episodes) -> Tensor:
    """p(y_i = c | x_i, w) [T, Q, C] at a point estimate."""
    _, likelihood = learner.posterior_predictive(episodes.observed(), 1)
    return likelihood.probs[0]  # type: ignore[attr-defined]


def agreement(learner: MetaLearner, algorithm: Algorithm, episodes: Episodes) -> float:
    """The fraction of queries for which the learner and the algorithm predict the same class."""
    mine = probabilities(learner, episodes).argmax(-1).numpy()
    same = []
    for t in range(episodes.num_tasks):
        support, queries = episodes.support_x[t].double().numpy(), episodes.query_x[t].double().numpy()
        scores = algorithm(support, episodes.support_y[t].numpy(), queries, episodes.num_classes)
        same.append(scores.argmax(1) == mine[t])
    return float(np.mean(same))


def gaussian_tasks(shot: int) -> Episodes:
    source = GaussianFeatures(num_features=64, separation=0.5)
    episodes = source.sampler("test", TaskShape(5, shot, 15))(torch.Generator().manual_seed(shot))
    return episodes.tasks(slice(0, NUM_TASKS))


@pytest.fixture(scope="module")
def photographs() -> Callable[[Path], Bank]:
    """The test classes of the CIFAR-FS split, features of unit length; read once."""
    banks: dict[Path, Bank] = {}

    def load(folder: Path) -> Bank:
        if folder not in banks:
            arrays = np.load(folder / "cifar100_features/cifar100_lite0_pca256_int8.npz")
            meta = json.loads((folder / "cifar100/cifar100_meta.json").read_text())
            classes = np.array([meta["fine_label_names"].index(name) for name in meta["cifar_fs"]["test"]])
            rows = np.isin(arrays["y"], classes)
            features = arrays["q"][rows].astype(np.float32) * arrays["scale"]
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            banks[folder] = Bank.from_arrays(features, arrays["y"][rows], {"test": classes})
        return banks[folder]

    return load


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("case", CASES)
def test_predictions_are_those_of_the_paper(case: str, shot: int) -> None:
    pair, scale, algorithm = CASES[case]
    episodes = gaussian_tasks(shot)
    assert agreement(untrained(pair, episodes, scale), algorithm, episodes) >= AGREEMENT


@pytest.mark.parametrize("case", CASES)
def test_predictions_on_photographs_are_those_of_the_paper(
    case: str, photographs: Callable[[Path], Bank], metabayes_data: Path
) -> None:
    pair, scale, algorithm = CASES[case]
    sampler = BankSampler(photographs(metabayes_data)).sampler("test", TaskShape(5, 1, 15))
    episodes = sampler(torch.Generator().manual_seed(0)).tasks(slice(0, NUM_TASKS))
    assert agreement(untrained(pair, episodes, scale), algorithm, episodes) >= AGREEMENT


def test_agreement_tells_algorithms_apart() -> None:
    """The tasks are such that another method predicts other classes."""
    episodes, names = gaussian_tasks(1), ("soft_kmeans", "pt_map", "bd_cspn", "laplacian_shot", "proto, known balance")
    for name in names:
        pair, scale, _ = CASES[name]
        learner = untrained(pair, episodes, scale)
        others = [agreement(learner, CASES[other][2], episodes) for other in names if other != name]
        assert max(others) < AGREEMENT, (name, others)


# ---------------------------------------------------------------- Sinkhorn's projection


@pytest.mark.parametrize("shares", [None, torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[[0.6, 0.2, 0.2]]] * 4)])
def test_the_class_term_gives_the_shares(shares: Tensor | None) -> None:
    logits, mask = 3 * torch.randn(2, 4, 30, 3), torch.rand(4, 30) < 0.7
    term = class_term(logits, mask, shares)
    probs = (logits + term).softmax(-1)
    mean = (probs * mask.unsqueeze(-1)).sum(-2) / mask.sum(-1, keepdim=True)
    expected = torch.full((3,), 1 / 3) if shares is None else shares.squeeze(-2) if shares.dim() > 1 else shares
    torch.testing.assert_close(mean, expected.expand_as(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(term.mean(-1), torch.zeros(2, 4, 1))


def test_the_gradient_of_the_class_term_is_that_of_the_solution() -> None:
    logits = torch.randn(2, 9, 3, dtype=torch.float64).requires_grad_()
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    mask = torch.rand(2, 9) < 0.8
    difference = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)  # the class term is defined up to a constant

    def gap(at: Tensor) -> Tensor:
        return class_term(at, mask, shares, num_iterations=200) @ difference

    assert torch.autograd.gradcheck(gap, (logits,), atol=2e-3)  # RIDGE


def test_tasks_without_queries_have_no_class_term() -> None:
    logits = torch.randn(2, 5, 3).requires_grad_()
    mask = torch.tensor([[True] * 5, [False] * 5])
    term = class_term(logits, mask)
    term.square().sum().backward()
    assert (term[1] == 0).all() and term[0].abs().max() > 0
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and (logits.grad[1] == 0).all()
    assert (class_term(torch.zeros(2, 0, 3), torch.ones(2, 0, dtype=torch.bool)) == 0).all()


KNOWN = {"balance": "known"}
STEPS = {**KNOWN, "num_steps": 2, "step_size": 0.1, "posterior": "delta"}
BALANCED = [
    Pair("proto", "flat", "linear", settings=KNOWN),
    Pair("proto", "flat", "cosine_offset", settings=KNOWN),
    *(
        Pair("sib", "flat", "cosine_offset", settings={**STEPS, "synthetic_gradient": xi})
        for xi in ("ordered", "equivariant", "marginal_aware")
    ),
    Pair("soft_kmeans", "flat", "cosine_offset", settings=KNOWN),
    Pair("pt_map", "flat", "linear", settings=KNOWN),
    Pair("bd_cspn", "flat", "linear", settings=KNOWN),
]


@pytest.mark.parametrize("pair", BALANCED, ids=str)
def test_predictions_with_a_known_balance_are_balanced(pair: Pair) -> None:
    episodes = random_tasks(num_tasks=4)
    learner = pair.learner()
    marginal = probabilities(learner, episodes).mean(1)
    torch.testing.assert_close(marginal, torch.full_like(marginal, 1 / 3), atol=1e-4, rtol=0)
    settings = {**pair.settings, "balance": "unknown"}
    unknown = probabilities(Pair(pair.guide, pair.prior, pair.head, settings=settings).learner(), episodes).mean(1)
    assert (unknown - 1 / 3).abs().max() > 0.01


@pytest.mark.parametrize("guide", ["proto", "sib", "soft_kmeans", "pt_map", "bd_cspn"])
def test_a_head_without_class_terms_is_refused(guide: str) -> None:
    with pytest.raises(UsageError, match=r"a head with a term per class for guide.*head=cosine_offset or head=linear"):
        Pair(guide, "flat", "cosine", settings=KNOWN).learner()


def test_base_classes_are_refused() -> None:
    for guide, settings in (("proto", KNOWN), ("soft_kmeans", {})):
        with pytest.raises(UsageError, match=r"a model without base classes.*model=few_shot_classifier"):
            Pair(guide, "flat", "linear", model="lwof", settings=settings).learner()


@pytest.mark.parametrize(
    ("guide", "settings", "message"),
    [
        ("soft_kmeans", {"balance": "uniform"}, "guide.balance to be one of unknown, known, estimated"),
        ("proto", {"balance": "estimated"}, "guide.balance to be one of unknown, known, got"),
        ("soft_kmeans", {"num_steps": -1}, "guide.num_steps >= 0, got -1"),
        ("pt_map", {"sharpness": 0.0}, "guide.sharpness > 0, got 0"),
        ("pt_map", {"step_size": 0.0}, "guide.step_size > 0, got 0"),
        ("bd_cspn", {"most_confident": -1}, "sharpness > 0, got most_confident=-1"),
        ("laplacian_shot", {}, "model=laplacian_shot for guide=laplacian_shot"),
    ],
)
def test_wrong_settings_are_named(guide: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pair(guide, "flat", "linear", settings=settings).learner()


# ---------------------------------------------------------------- the graph of the queries


def test_neighbours_are_the_nearest_other_queries() -> None:
    model = Pair("mean_field", head="linear", model="laplacian_shot").learner().model
    episodes = random_tasks()
    episodes.query_mask = torch.rand(episodes.query_mask.shape) < 0.7
    among = model._neighbours(episodes.query_x, episodes)  # type: ignore[operator]
    for t in range(episodes.num_tasks):
        there = episodes.query_mask[t]
        for i, point in enumerate(episodes.query_x[t]):
            distance = (episodes.query_x[t] - point).square().sum(-1)
            allowed = [j for j in range(len(there)) if j != i and there[j]]
            nearest = sorted(allowed, key=lambda j: float(distance[j]))[:3]
            assert among[t, i].nonzero().squeeze(-1).tolist() == sorted(nearest)


# ---------------------------------------------------------------- features and runs


def test_the_features_are_powers_of_the_inputs_less_their_mean() -> None:
    x = torch.randn(50, 6)
    backbone = identity.Backbone([6], power=0.5, centre=True)  # type: ignore[arg-type]
    plain = normalize(x.sign() * x.abs().sqrt(), dim=-1)
    torch.testing.assert_close(backbone(x), plain)
    backbone.centre_on(x.split(20))
    torch.testing.assert_close(backbone(x), normalize(plain - plain.mean(0), dim=-1))
    torch.testing.assert_close(backbone(7 * x), backbone(x))
    assert "mean" not in identity.Backbone([6]).state_dict()  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"backbone\.power > 0, got 0"):
        identity.Backbone([6], power=0.0)  # type: ignore[arg-type]


@pytest.mark.usefixtures("empty_folder")
def test_an_untrained_learner_is_evaluated_and_loaded(features: Path) -> None:
    settings = [*on_features(features), "guide=pt_map", "backbone.centre=true"]
    ran("run", *settings, "train.steps=0", "hydra.run.dir=run")
    results = json.loads(Path("run/results.json").read_text())
    assert results["steps"] == 0 and results["accuracy"]["mean"] > 0.4 and not Path("run/curves.png").exists()
    learner = MetaLearner.load("run")
    assert learner.model.head.scale == 10  # type: ignore[union-attr]
    assert isinstance(learner.backbone.mean, Tensor) and learner.backbone.mean.abs().max() > 0
    ran("evaluate", "run", "guide.num_steps=0")
    ran("compare", "run")
    ran("run", "resume=run", "train.steps=2")
    assert json.loads(Path("run/results.json").read_text())["steps"] == 2


@pytest.mark.usefixtures("empty_folder")
def test_features_of_a_simulator_are_not_transformed() -> None:
    outcome = call("run", "data=gaussian_features", "guide=pt_map", "backbone.power=0.5", "hydra.run.dir=run")
    assert "expected a data set of features for backbone.power" in outcome.error
