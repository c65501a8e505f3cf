"""Learners for features of any origin: task frames, amortized EM, the mixture of tasks, the learners that ship."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn.functional import normalize

from pyro_metabayes import MetaLearner, UsageError
from pyro_metabayes.data.mixture.banks import FeatureRows
from pyro_metabayes.data.mixture.disturbances import mix_points
from pyro_metabayes.data.mixture.shapes import Shape, query_labels, random_shape, support_mask
from pyro_metabayes.data.mixture.simulator import FeatureSimulator
from pyro_metabayes.data.mixture.source import Mixture, skill_of
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.models.backbones import task_frame
from pyro_metabayes.transductive.amortized.leave_one_out import left_out_statistics
from pyro_metabayes.transductive.amortized.state import NUM_RATES, Rates, State
from pyro_metabayes.transductive.amortized.task_geometry import TaskGeometry

GENERATOR = torch.Generator().manual_seed(0)


def frame(points: str = "all") -> task_frame.Backbone:
    """A frame in float64 whose settings depend on the task."""
    torch.manual_seed(1)
    backbone = task_frame.Backbone((None,), points).double()
    torch.nn.init.normal_(backbone.network[-1].weight)
    return backbone


def learner(guide: str = "amortized_em", points: str = "all", **settings: object) -> MetaLearner:
    """An untrained learner in float64 whose networks are not zero."""
    torch.manual_seed(2)
    built = MetaLearner.build(
        {"_target_": "models.backbones.task_frame.Backbone", "points": points},
        {"_target_": f"guides.{guide}.Guide", **settings},
        objective="elbo",
        prior="flat",
        head="linear",
        input_shape=[None],
    ).double()
    with torch.no_grad():
        for value in built.parameters():
            value += 0.2 * torch.randn_like(value)
    return built.eval()


def tasks(way: int = 4, shot: int = 2, query: int = 11, dimension: int = 30, number: int = 3) -> Observed:
    noise = torch.Generator().manual_seed(way + 10 * shot + 100 * query + dimension)
    return Observed(
        support_x=torch.randn(number, way * shot, dimension, generator=noise, dtype=torch.float64),
        support_y=torch.arange(way).repeat_interleave(shot).expand(number, -1),
        query_x=torch.randn(number, query, dimension, generator=noise, dtype=torch.float64),
        num_classes=way,
    )


def logits(model: MetaLearner, data: Observed) -> Tensor:
    with torch.no_grad():
        embedded = model.featured(data)
        return model.model.outputs(model.guide.posterior(embedded).mean, embedded.query_x).log_softmax(-1)


@pytest.mark.parametrize("points", ["all", "support"])
@pytest.mark.parametrize("dimension", [2, 9, 200])
def test_the_frame_has_the_inner_products_of_its_formula(points: str, dimension: int) -> None:
    data = tasks(dimension=dimension)
    embedded = frame(points).embed_tasks(data)
    features = torch.cat((embedded.support_x, embedded.query_x), 1)
    u = normalize(torch.cat((data.support_x, data.query_x), 1), dim=-1)
    number = u.shape[1] if points == "all" else data.support_x.shape[1]
    shrunk = 1.0 if points == "all" else number / (number + math.e)  # log tau is 1 before training
    x = normalize(u - shrunk * u[:, :number].mean(1, keepdim=True), dim=-1)
    reference = x[:, :number]
    gram = reference.mT @ reference
    effective = number**2 / gram.square().sum((1, 2), keepdim=True)
    raw = frame(points).network(
        torch.cat(
            (
                torch.full_like(effective, math.log(number / 100)),
                (effective / 10).log(),
                (2 * effective / number).log(),
            ),
            -1,
        )
    )
    share, ridge = raw[..., :1].sigmoid(), number / effective * raw[..., 1:].exp()
    white = x @ torch.linalg.inv(gram + ridge * torch.eye(dimension, dtype=torch.float64)) @ x.mT
    length = white.diagonal(dim1=-2, dim2=-1).rsqrt()
    expected = (1 - share) * x @ x.mT + share * white * length.unsqueeze(-1) * length.unsqueeze(-2)
    torch.testing.assert_close(features @ features.mT, expected, atol=2 * task_frame.JITTER, rtol=0)


@pytest.mark.parametrize("dimension", [5, 300])
def test_the_inductive_learner_answers_each_query_by_itself(dimension: int) -> None:
    model, data = learner("amortized_means", "support"), tasks(dimension=dimension)
    alone = [logits(model, data.change_queries(lambda x, i=i: x[:, i : i + 1])) for i in range(3)]
    torch.testing.assert_close(logits(model, data)[:, :3], torch.cat(alone, 1), atol=1e-9, rtol=0)
    assert not model.guide.transductive


@pytest.mark.parametrize("guide, points", [("amortized_em", "all"), ("amortized_means", "support")])
@pytest.mark.parametrize("dimension", [3, 40])
def test_scale_order_and_masks_do_not_matter(guide: str, points: str, dimension: int) -> None:
    model, data = learner(guide, points), tasks(dimension=dimension)
    expected = logits(model, data)
    scaled = data.map_tensors(lambda x: 1e6 * x if x.is_floating_point() else x)
    torch.testing.assert_close(logits(model, scaled), expected)
    order = torch.randperm(data.query_x.shape[1], generator=Generator().manual_seed(0))
    torch.testing.assert_close(logits(model, data.change_queries(lambda x: x[:, order])), expected[:, order])
    classes = torch.tensor([2, 0, 3, 1])
    renamed = Observed(support_x=data.support_x, support_y=classes[data.support_y], query_x=data.query_x, num_classes=4)
    torch.testing.assert_close(logits(model, renamed)[..., classes], expected)
    extra = torch.randn(3, 2, dimension, dtype=torch.float64)
    padded = Observed(
        support_x=torch.cat((data.support_x, extra), 1),
        support_y=torch.cat((data.support_y, torch.zeros(3, 2, dtype=torch.long)), 1),
        support_mask=torch.arange(10).expand(3, -1) < 8,
        query_x=torch.cat((data.query_x, extra), 1),
        query_mask=torch.arange(13).expand(3, -1) < 11,
        num_classes=4,
    )
    torch.testing.assert_close(logits(model, padded)[:, :11], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("guide, points", [("amortized_em", "all"), ("amortized_means", "support")])
@pytest.mark.parametrize("dimension", [3, 40])
def test_rows_of_zeros_do_not_move_the_others(guide: str, points: str, dimension: int) -> None:
    """Forty empty rows among the queries. The tolerance is that of the jitter, since the frame has other features."""
    model, data = learner(guide, points), tasks(dimension=dimension)
    more = data.change_queries(lambda x: torch.cat((x, _empty(x)), 1))
    torch.testing.assert_close(logits(model, more)[:, :11], logits(model, data), atol=1e-3, rtol=1e-3)


def _empty(x: Tensor) -> Tensor:
    """Forty rows of zeros that are not masked."""
    return torch.full((3, 40, *x.shape[2:]), x.dtype == torch.bool, dtype=x.dtype)


def test_left_out_points_are_predicted_from_the_others() -> None:
    """Classes of 3, 2 and 1 points and a masked point: statistics by a loop over the points of each task."""
    x = normalize(torch.randn(2, 7, 5, generator=GENERATOR, dtype=torch.float64), dim=-1)
    y, counted = torch.tensor([0, 0, 0, 1, 1, 2, 0]), range(5)
    labels = torch.nn.functional.one_hot(y, 3).double().expand(2, -1, -1).clone()
    labels[:, 6] = 0  # masked
    means = labels.mT @ x / labels.sum(1).unsqueeze(-1)
    found = left_out_statistics(x, labels, means)
    for points, statistics in zip(x, found, strict=True):
        right, fit, margin = [], [], []
        for i in counted:
            others = [[j for j in range(6) if y[j] == c and j != i] for c in range(3)]
            cosines = torch.stack([normalize(points[rows].mean(0), dim=0) @ points[i] for rows in others])
            own, other = cosines[y[i]], max(cosines[c] for c in range(3) if c != y[i])
            right.append(float(own > other))
            fit.append((10 * cosines).log_softmax(0)[y[i]])
            margin.append(own - other)
        skill = (np.mean(right) - 1 / 3) / (2 / 3)
        expected = [skill, 1 + np.mean(fit) / math.log(3), 5 * np.mean(margin), 5 / 6]
        torch.testing.assert_close(statistics, torch.tensor(expected, dtype=torch.float64))
    alone = torch.eye(3, dtype=torch.float64).unsqueeze(0)  # one point per class: nothing to leave out
    assert (left_out_statistics(x[:1, :3], alone, x[:1, :3]) == 0).all()


def test_queries_are_compared_with_class_means_without_them() -> None:
    """Two M-steps with random weights: cosines with the means of the steps without each query in turn."""
    data = tasks(way=3, shot=2, query=7, dimension=6, number=2).map_tensors(
        lambda x: normalize(x, dim=-1) if x.is_floating_point() else x
    )
    points = TaskGeometry.of(data)
    rates = Rates.of(torch.randn(2, NUM_RATES, generator=GENERATOR, dtype=torch.float64))
    weights = torch.rand(2, 2, 7, 3, generator=GENERATOR, dtype=torch.float64)
    state, means = State.initial(points, rates), points.means.unsqueeze(1).expand(-1, 7, -1, -1)  # [T, query, C, D]
    others = 1 - torch.eye(7, dtype=torch.float64).view(1, 7, 7, 1)
    support = (rates.of_support.squeeze(-1) * points.counts.sqrt()).unsqueeze(-1)
    for weight in weights:
        state = state.moved(points, weight)
        total = (support.squeeze(-1) + weight.sum(1)).unsqueeze(-1)
        pulled = torch.einsum("tiqc,tqd->ticd", others * weight.unsqueeze(1), points.x)
        target = ((support * points.means).unsqueeze(1) + pulled) / total.unsqueeze(1)
        means = torch.lerp(means, target, rates.step.unsqueeze(-1))
    expected = torch.einsum("tqcd,tqd->tqc", normalize(means, dim=-1), points.x)
    torch.testing.assert_close(state.left_out, expected)
    assert (state.left_out < state.cosines).float().mean() > 0.9  # a query is nearer to a mean that contains it


def test_the_guide_may_compute_in_less_precision_than_the_features() -> None:
    model, data = learner(), tasks(shot=3)
    expected = logits(model, data)
    model.guide.float()
    found = logits(model, data)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_known_balance_makes_the_mean_prediction_uniform() -> None:
    model = learner(balance="known")
    mean = logits(model, tasks(query=12)).exp().mean(1)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.25), atol=2e-3, rtol=0)
    free = logits(learner(), tasks(query=12)).exp().mean(1)
    assert (free - 0.25).abs().max() > 0.02


def test_no_step_is_the_nearest_class_mean() -> None:
    model, data = learner(num_steps=0), tasks()
    embedded = model.featured(data)
    means = embedded.support_x.unflatten(1, (4, 2)).mean(2)
    nearest = (embedded.query_x @ normalize(means, dim=-1).mT).argmax(-1)
    assert (logits(model, data).argmax(-1) == nearest).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40))
def test_tasks_of_the_mixture_are_tasks(seed: int) -> None:
    bank = FeatureRows("b", torch.randn(400, 24, generator=GENERATOR), torch.full((20,), 20))
    episodes = Mixture([bank], 0.5).tasks(3, Generator().manual_seed(seed))
    way = episodes.num_classes
    kept = torch.zeros(3, way).scatter_add_(1, episodes.support_y, episodes.support_mask.float())
    assert 2 <= way <= 50 and (kept > 0).all() and 0 <= episodes.query_y.min() <= episodes.query_y.max() < way
    assert episodes.support_x.isfinite().all() and episodes.query_x.isfinite().all()
    again = Mixture([bank], 0.5).tasks(3, Generator().manual_seed(seed))
    torch.testing.assert_close(again.query_x, episodes.query_x, rtol=0, atol=0)


def test_blocks_below_the_least_skill_are_drawn_again() -> None:
    skills = [skill_of(Mixture([], 0.0, 0.4).tasks(6, Generator().manual_seed(seed))) for seed in range(40)]
    free = [skill_of(Mixture([], 0.0).tasks(6, Generator().manual_seed(seed))) for seed in range(40)]
    assert min(free) < 0.2 and sum(skill < 0.3 for skill in skills) < 8  # wrong labels and outliers come after


def test_some_points_are_mixed_with_other_points_of_their_task() -> None:
    labels = torch.arange(4).repeat_interleave(25).expand(40, -1)
    x = torch.arange(4000.0).view(40, 100, 1)
    parts = {"support_x": x[:, :40], "support_y": labels[:, :40], "query_x": x[:, 40:], "query_y": labels[:, 40:]}
    episodes = Episodes(**parts, num_classes=4)
    mix_points(episodes, Generator().manual_seed(0))
    mixed = torch.cat((episodes.support_x, episodes.query_x), 1)
    share = (mixed != x).float().mean((1, 2))
    assert 0.03 < share.mean() < 0.15 and share.max() < 0.4 and share.min() < 0.02
    assert (mixed.amin(1) >= x.amin(1)).all() and (mixed.amax(1) <= x.amax(1)).all()  # other points of the same task


def test_ambiguous_points_are_drawn_where_they_are_asked_for() -> None:
    def many(ambiguous: float) -> list[Episodes]:
        return [Mixture([], 0.0, 0.0, ambiguous).tasks(2, Generator().manual_seed(seed)) for seed in range(30)]

    plain, mixed = many(0.0), many(1.0)
    for one, other in zip(plain, mixed, strict=True):
        shot = one.support_x.shape[1] / one.num_classes
        assert shot > 2 or torch.equal(one.query_x, other.query_x)
    assert not all(torch.equal(one.query_x, other.query_x) for one, other in zip(plain, mixed, strict=True))


def test_shapes_and_marginals_cover_their_ranges() -> None:
    generator = Generator().manual_seed(0)
    shapes = [random_shape(generator) for _ in range(2000)]
    assert {shape.way for shape in shapes} >= {2, 5, 20, 50}
    assert min(shape.query for shape in shapes) == 1 and max(shape.shot for shape in shapes) == 20
    five = Shape(5, 4, 75)
    counts = torch.cat([torch.nn.functional.one_hot(query_labels(five, 4, generator), 5).sum(1) for _ in range(300)])
    assert (counts.sum(1) == 75).all()
    balanced = (counts == 15).all(1).float().mean()
    assert 0.3 < balanced < 0.5 and (counts == 0).any(1).float().mean() > 0.05
    masks = torch.stack([support_mask(five, 2, generator) for _ in range(50)])
    assert masks.unflatten(-1, (5, 4)).any(-1).all() and not masks.all()


def test_simulated_tasks_are_between_impossible_and_trivial() -> None:
    labels = torch.arange(5).repeat(16).expand(8, -1)
    accuracies = []
    for seed in range(60):
        x = normalize(FeatureSimulator(Generator().manual_seed(seed)).points(labels, 5, 64), dim=-1)
        predicted = (x[:, 5:] @ x[:, :5].mT).argmax(-1)
        accuracies.append((predicted == labels[:, 5:]).float().mean().item())
    assert min(accuracies) < 0.35 and max(accuracies) > 0.8 and 0.45 < np.mean(accuracies) < 0.8


def test_a_learner_for_any_dimension_is_saved_and_loaded(tmp_path: Path) -> None:
    model = learner()
    model.save(tmp_path / "learner.pt")
    loaded = MetaLearner.load(tmp_path / "learner.pt").double()
    for dimension in (2, 50):
        expected = logits(model, tasks(dimension=dimension))
        torch.testing.assert_close(logits(loaded, tasks(dimension=dimension)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match=r"^expected query_x of shape \[N, any\], N >= 1, got \[3, 4, 5\]"):
        model.predict(np.ones((2, 4)), [0, 1], np.ones((3, 4, 5)))


def test_wrong_settings_are_refused_in_one_line() -> None:
    for build in (
        lambda: learner(num_steps=-1),
        lambda: learner(width=0),
        lambda: learner(balance="estimated"),
        lambda: learner(points="queries"),
        lambda: Mixture([], 0.5),
        lambda: Mixture([], 0.0, 1.0),
        lambda: Mixture([], 0.0, 0.0, 1.5),
        lambda: task_frame.Backbone((3, 32, 32)),
        lambda: MetaLearner.pretrained("best"),
        lambda: MetaLearner.pretrained("inductive", balance="known"),
    ):
        with pytest.raises(UsageError) as error:
            build()
        assert "\n" not in str(error.value)
