"""Do the transductive guides after SIB predict as their papers' algorithms, written here for one task at a time?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from pyro_metabayes import Episodes, MetaLearner, UsageError
from pyro_metabayes.data.sources.gaussian_features import GaussianFeatures
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.guides import tim
from pyro_metabayes.inference.descent import adam
from pyro_metabayes.models.heads import Linear
from pyro_metabayes.transductive.propagation import propagation
from pyro_metabayes.transductive.reproduction import rows_of_scores
from tests.pairs import Pair, random_tasks

WAY, QUERY, TASKS = 5, 15, 4
AGREEMENT = 0.99
TIM_STEPS = {"num_steps": 200, "step_size": 1e-3}
TIM = {"temperature": 15.0, "alpha": 1.0, "support_weight": 1.0, "marginal_weight": 10.0, "conditional_weight": 1.0}


def tasks(shot: int) -> Episodes:
    """Tasks of synthetic features of unit length, harder than the defaults, so that methods differ."""
    source = GaussianFeatures(num_features=256, separation=0.35)
    draw = source.sampler("test", TaskShape(way=WAY, shot=shot, query=QUERY))
    return draw(torch.Generator().manual_seed(1)).tasks(slice(0, TASKS))


def learner_of(guide: str, settings: dict[str, Any] | None = None) -> MetaLearner:
    """An untrained learner."""
    pair = Pair(guide, "flat", "linear", settings=settings or {})
    return MetaLearner.from_specification(pair.specification(way=WAY, features=256))


def predicted(guide: str, settings: dict[str, Any], episodes: Episodes) -> Tensor:
    """Classes [T, Q] that an untrained guide predicts."""
    with torch.no_grad():
        _, likelihood = learner_of(guide, settings).posterior_predictive(episodes.observed(), 1)
    return likelihood.probs.mean(0).argmax(-1)


Task = tuple[np.ndarray, np.ndarray, np.ndarray]  # support x [S, D], its labels [S], query x [Q, D]


def plain(algorithm: Callable[[Task], np.ndarray], episodes: Episodes) -> Tensor:
    """Classes [T, Q] of an algorithm for one task."""
    parts = zip(episodes.support_x.numpy(), episodes.support_y.numpy(), episodes.query_x.numpy(), strict=True)
    return torch.stack([torch.as_tensor(algorithm(task)) for task in parts])


def means_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x[y == c].mean(0) for c in range(WAY)])


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def squared(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """|x_i - m_c|^2 [N, C]."""
    return ((x[:, None] - means[None]) ** 2).sum(-1)


# ---------------------------------------------------------------- transcriptions


def entropy(p: Tensor, alpha: float) -> Tensor:
    """Shannon entropy, or Tsallis entropy (eq. 5 of alpha-TIM)."""
    return -(p * p.log()).sum(-1) if alpha == 1 else (1 - p.pow(alpha).sum(-1)) / (alpha - 1)


def tim_loss(settings: dict[str, Any], m: Tensor, sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
    """Eq. 3 of TIM; with alpha, eq. 9 of alpha-TIM."""
    logits = [-settings["temperature"] / 2 * (x.unsqueeze(1) - m).square().sum(-1) for x in (sx, qx)]
    p, alpha = logits[1].softmax(-1), settings["alpha"]
    information = settings["marginal_weight"] * entropy(p.mean(0), alpha)
    information = information - settings["conditional_weight"] * entropy(p, alpha).mean()
    return settings["support_weight"] * cross_entropy(logits[0], sy) - information


def tim_of(settings: dict[str, Any], task: Task) -> np.ndarray:
    """TIM-GD (section 3.2), by torch's Adam and automatic differentiation."""
    sx, sy, qx = map(torch.as_tensor, task)
    m = torch.as_tensor(means_of(*task[:2])).requires_grad_()
    optimiser = torch.optim.Adam([m], lr=settings["step_size"])
    for _ in range(settings["num_steps"]):
        optimiser.zero_grad()
        tim_loss(settings, m, sx, sy, qx).backward()
        optimiser.step()
    return squared(task[2], m.detach().numpy()).argmin(-1)


def paddle_of(task: Task, num_steps: int, tau: float, ranged: bool) -> np.ndarray:
    """Algorithm 1 of PADDLE with lambda = |Q|, on features scaled as in the released code, or by sqrt(tau)."""
    sx, sy, qx = task
    scale = 1 / np.ptp(qx, axis=0) if ranged else np.sqrt(tau)
    sx, qx = sx * scale, qx * scale
    w, v, y = means_of(sx, sy), np.zeros(WAY), np.eye(WAY)[sy]
    for _ in range(num_steps + 1):
        u = softmax(-0.5 * squared(qx, w) + len(qx) * v / len(qx))
        v = np.log(u.sum(0) / len(qx) + 1e-6) + 1
        w = (u.T @ qx + y.T @ sx) / (u.sum(0) + y.sum(0))[:, None]
    return u.argmax(-1)


def unem_of(task: Task, tau: float, balance: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """The Gaussian model of UNEM, with one layer per temperature."""
    sx, sy, qx = task
    sx, qx = np.sqrt(tau) * sx, np.sqrt(tau) * qx
    w, v, y = means_of(sx, sy), np.zeros(WAY), np.eye(WAY)[sy]
    for k in range(len(temperature)):
        u = softmax((-0.5 * squared(qx, w) + (balance[k - 1] * v if k else 0)) / temperature[k])
        v = np.log(u.sum(0) / len(qx) + 1e-6) + 1
        w = (u.T @ qx + y.T @ sx) / (u.sum(0) + y.sum(0))[:, None]
    return u.argmax(-1)


def propagated(x: np.ndarray, labels: np.ndarray, k: int = 15, alpha: float = 0.8) -> np.ndarray:
    """Eq. 2 to 5 of iLPC: the graph of nearest neighbours, and the scores Z [N, C]."""
    cosine = (x @ x.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(x, axis=1))
    np.fill_diagonal(cosine, -np.inf)
    graph = np.zeros_like(cosine)
    for i in range(len(x)):
        near = np.argsort(-cosine[i])[:k]
        graph[i, near] = np.maximum(cosine[i, near], 0) ** 3
    graph = graph + graph.T
    root = 1 / np.sqrt(graph.sum(1))
    return np.linalg.solve(np.eye(len(x)) - alpha * root[:, None] * graph * root, labels)


def balanced(scores: np.ndarray, counts: np.ndarray, power: float = 3.0) -> np.ndarray:
    """Sinkhorn-Knopp: rows of sum 1, columns of sum `counts`."""
    p = np.maximum(scores, 0)
    p = np.maximum(p / p.sum(1, keepdims=True), 1e-6) ** power
    for _ in range(1000):
        p = p * counts / p.sum(0)
        p = p / p.sum(1, keepdims=True)
    return p


def cleaning_losses(x: np.ndarray, y: np.ndarray, start: np.ndarray, num_steps: int) -> np.ndarray:
    """O2U-Net's statistic: mean loss of each point while a linear classifier is trained."""
    layer = torch.nn.Linear(x.shape[1], WAY)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(start / np.linalg.norm(start, axis=1, keepdims=True)))
        layer.bias.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    total = np.zeros(len(x))
    for _ in range(num_steps):
        losses = cross_entropy(layer(torch.as_tensor(x)), torch.as_tensor(y), reduction="none")
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
        total += losses.detach().numpy()
    return total / num_steps


def ilpc_of(task: Task, num_steps: int) -> np.ndarray:
    """Algorithm 1 of iLPC, with three queries of each class per round."""
    sx, sy, qx = task
    x = np.concatenate((sx, qx))
    y = np.concatenate((sy, np.full(len(qx), -1)))
    counts = np.full(WAY, len(qx) / WAY)
    while (y < 0).any():
        labels = np.where(y[:, None] >= 0, np.eye(WAY)[y], 0.0)
        open_ = np.flatnonzero(y < 0)
        guess = y.copy()
        guess[open_] = balanced(propagated(x, labels)[open_], np.maximum(counts, 1e-6)).argmax(1)
        losses = cleaning_losses(x, guess, means_of(x[y >= 0], y[y >= 0]), num_steps)
        found = [i for c in range(WAY) for i in sorted(open_[guess[open_] == c], key=losses.__getitem__)[:3]]
        if len(found) < WAY:
            return guess[len(sx) :]
        y[found] = guess[found]
        counts = counts - np.bincount(y[found], minlength=WAY)
    return y[len(sx) :]


# ---------------------------------------------------------------- fidelity


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize(
    "settings",
    [TIM, {**TIM, "marginal_weight": 1.0}, {**TIM, "marginal_weight": 1.0, "alpha": 2.0}],
    ids=["tim", "tim_dirichlet", "alpha_tim"],
)
def test_tim_predicts_as_its_algorithm(settings: dict[str, Any], shot: int) -> None:
    episodes, settings = tasks(shot), {**settings, **TIM_STEPS}
    check_agreement(
        predicted("tim", settings, episodes), plain(lambda task: tim_of(settings, task), episodes), episodes
    )


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize(("scaling", "tau"), [("none", 60.0), ("range", 1.0)])
def test_paddle_predicts_as_its_algorithm(scaling: str, tau: float, shot: int) -> None:
    episodes, settings = tasks(shot), {"num_steps": 10, "scaling": scaling, "temperature": tau}
    expected = plain(lambda task: paddle_of(task, 10, tau, scaling == "range"), episodes)
    check_agreement(predicted("paddle", settings, episodes), expected, episodes)


@pytest.mark.parametrize("shot", [1, 5])
def test_unem_predicts_as_its_algorithm(shot: int) -> None:
    """With other hyper-parameters in every layer."""
    episodes, learner = tasks(shot), learner_of("unem", {"num_layers": 6, "temperature": 40.0})
    with torch.no_grad():
        learner.guide.balance.copy_(torch.linspace(-1, 2, 5))
        learner.guide.entropy.copy_(torch.linspace(1, -1, 6))
        _, likelihood = learner.posterior_predictive(episodes.observed(), 1)
    balance, temperature = (
        torch.nn.functional.softplus(torch.linspace(*ends)).numpy() for ends in ((-1, 2, 5), (1, -1, 6))
    )
    expected = plain(lambda task: unem_of(task, 40.0, balance, 1 + temperature), episodes)
    check_agreement(likelihood.probs.mean(0).argmax(-1), expected, episodes)


@pytest.mark.parametrize("shot", [1, 5])
def test_ilpc_predicts_as_its_algorithm(shot: int) -> None:
    episodes = tasks(shot)
    expected = plain(lambda task: ilpc_of(task, 100), episodes)
    check_agreement(predicted("ilpc", {"cleaning_steps": 100}, episodes), expected, episodes)


def check_agreement(got: Tensor, expected: Tensor, episodes: Episodes) -> None:
    """Check that predictions agree, and differ from those of the class means."""
    assert (got == expected).float().mean() >= AGREEMENT
    inductive = torch.cdist(
        episodes.query_x,
        torch.as_tensor(
            np.stack(
                [means_of(x, y) for x, y in zip(episodes.support_x.numpy(), episodes.support_y.numpy(), strict=True)]
            )
        ),
    ).argmin(-1)
    assert (got == inductive).float().mean() < 0.99


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("alpha", [1.0, 2.0, 7.0])
def test_the_gradient_of_tim_is_that_of_its_loss(alpha: float) -> None:
    torch.set_default_dtype(torch.float64)
    episodes, settings = random_tasks(1), {**TIM, "alpha": alpha}
    sx, sy, qx = episodes.support_x[0], episodes.support_y[0], episodes.query_x[0]
    m = torch.randn(1, 3, sx.shape[1]).requires_grad_()
    (expected,) = torch.autograd.grad(tim_loss(settings, m[0], sx, sy, qx), m)
    guide = Pair("tim", "flat", "linear", settings=settings).learner().guide
    assert isinstance(guide, tim.Guide)
    labels = torch.nn.functional.one_hot(episodes.support_y, 3)
    observed = episodes.observed()
    got = 15.0 * (guide._of_support(m, observed, labels) + guide._of_queries(m, observed))
    torch.testing.assert_close(got, expected)


def test_adam_is_torchs() -> None:
    torch.set_default_dtype(torch.float64)
    start, aim = torch.randn(3, 4), torch.randn(3, 4)
    parameter = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameter], lr=0.1)
    for _ in range(30):
        optimiser.zero_grad()
        (parameter - aim).pow(4).sum().backward()
        optimiser.step()
    torch.testing.assert_close(adam(start, lambda theta: 4 * (theta - aim) ** 3, 0.1, 30), parameter.detach())


def test_a_linear_classifier_reproduces_scores_of_few_points() -> None:
    torch.set_default_dtype(torch.float64)
    x, scores = normalize(torch.randn(2, 9, 12), dim=-1), torch.rand(2, 9, 3)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, 4] = False
    head = Linear(1.0)
    got = head.outputs(rows_of_scores(head, x, scores, mask), x)
    torch.testing.assert_close(got[mask], scores[mask], atol=5e-3, rtol=0)


def test_propagation_is_that_of_the_paper() -> None:
    torch.set_default_dtype(torch.float64)
    x, labels = torch.randn(2, 20, 6), torch.rand(20, 3)
    got = propagation(x, torch.ones(2, 20, dtype=torch.bool), 5, 3.0, 0.8) @ labels
    expected = np.stack([propagated(task.numpy(), labels.numpy(), k=5) for task in x])
    torch.testing.assert_close(got, torch.as_tensor(expected))


def test_unem_learns_its_hyper_parameters() -> None:
    """A few steps on the query labels lower the loss on other tasks."""
    source = GaussianFeatures(num_features=256, separation=0.35)
    train, test = (source.sampler(split, TaskShape(way=WAY, shot=1, query=QUERY)) for split in ("train", "test"))
    learner, held_out = learner_of("unem"), test(torch.Generator().manual_seed(1))
    before = learner(held_out)["loss"].item()
    optimiser = torch.optim.Adam(learner.guide.parameters(), lr=0.3)
    for seed in range(15):
        optimiser.zero_grad()
        learner(train(torch.Generator().manual_seed(seed)))["loss"].backward()
        optimiser.step()
    assert learner(held_out)["loss"].item() < 0.9 * before


@pytest.mark.parametrize("guide", ["tim", "paddle", "unem", "ilpc"])
def test_another_head_is_refused_in_one_line(guide: str) -> None:
    with pytest.raises(UsageError, match=f"expected head=linear for guide={guide}, got head=cosine; set head=linear"):
        Pair(guide, "flat", "cosine").learner()


@pytest.mark.parametrize(
    ("guide", "settings"),
    [
        ("tim", {"alpha": 0.0}),
        ("tim", {"num_steps": 0}),
        ("paddle", {"class_weight": -1.0}),
        ("paddle", {"scaling": "power"}),
        ("unem", {"num_layers": 1}),
        ("ilpc", {"per_class": 0}),
        ("ilpc", {"propagation_decay": 1.0}),
    ],
)
def test_settings_out_of_range_are_refused(guide: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"expected .*guide\."):
        Pair(guide, "flat", "linear", settings=settings).learner()
