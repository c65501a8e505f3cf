"""Imbalanced query sets and noisy features: distributions of the tasks."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_metabayes import Episodes, UsageError
from pyro_metabayes.data import positions
from pyro_metabayes.data.pairs import Pairs
from pyro_metabayes.data.perturbed import with_noise, with_shift
from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.sources.gaussian_features import GaussianFeatures
from pyro_metabayes.data.sources.linear_gaussian import LinearGaussian
from pyro_metabayes.data.stream import TaskStream, generator_of
from pyro_metabayes.data.task_shape import BLOCK, TaskShape, bounded_counts
from pyro_metabayes.experiments.runs.finished_runs import Run
from pyro_metabayes.experiments.runs.tables import queries_of
from tests.pairs import random_tasks
from tests.test_data import equal, numbered

COUNTS = [9, 3, 2, 1, 0]
SMALL = GaussianFeatures(num_features=8, separation=4.0, rectify=False)


def counts_of(labels: Tensor, way: int = 5) -> Tensor:
    """Numbers of queries per class [T, way]."""
    return torch.nn.functional.one_hot(labels, way).sum(1)


def tasks_of(source: Any, num_tasks: int = 640, **shape: Any) -> Episodes:
    return TaskStream(source.sampler("train", TaskShape(**shape)), 0, "train").batch(0, num_tasks)


@pytest.mark.parametrize("source", [SMALL, BankSampler(numbered([14, 12, 30, 12, 13, 12, 20]))], ids=["drawn", "bank"])
def test_counts_are_dealt_out_anew_in_every_task(source: Any) -> None:
    """Each task has them all; each class has each of them as often: 640 draws of probability 1/5, five sd."""
    counts = counts_of(tasks_of(source, query_counts=COUNTS).query_y)
    assert torch.equal(counts.sort(1, descending=True).values, torch.tensor(COUNTS).expand(640, -1))
    for count in COUNTS:
        share = (counts == count).double().mean(0)
        assert (share - 0.2).abs().max() < 5 * (0.2 * 0.8 / 640) ** 0.5


def test_points_of_a_bank_are_of_their_class_and_all_different() -> None:
    bank = numbered([14, 12, 30, 12, 13, 12, 20])
    tasks = tasks_of(BankSampler(bank), shot=2, query_counts=COUNTS)
    support, query = (x.squeeze(-1).long() for x in (tasks.support_x, tasks.query_x))
    assert tasks.classes is not None
    for rows, labels in ((support, tasks.support_y), (query, tasks.query_y)):
        assert torch.equal(bank.labels[rows], tasks.classes.gather(1, labels))
    assert (torch.cat((support, query), 1).sort(1).values.diff(dim=1) > 0).all()


def test_drawn_points_are_of_their_class() -> None:
    """Separation 4 and noise 1: the nearest support point of 20 is of the query's class nearly always."""
    tasks = tasks_of(SMALL, 64, shot=4, query_counts=COUNTS)
    nearest = torch.cdist(tasks.query_x, tasks.support_x).argmin(-1)
    right = tasks.support_y.gather(1, nearest) == tasks.query_y
    assert right.float().mean() > 0.97


def test_dirichlet_shares_have_their_moments() -> None:
    """Counts of 75 under Dirichlet(1): mean 15, variance 75 / 5 * 4 / 5 * (75 + 5) / 6 = 160."""
    counts = counts_of(tasks_of(SMALL, 6400, query_concentration=1.0).query_y).double()
    assert (counts.sum(1) == 75).all()
    assert counts.mean(0).sub(15).abs().max() < 5 * (160 / 6400) ** 0.5
    assert counts.var(0).mean() == pytest.approx(160, rel=0.08)


def test_a_share_of_the_tasks_stays_balanced() -> None:
    counts = counts_of(tasks_of(SMALL, 1280, query_concentration=0.5, query_balanced=0.3).query_y)
    balanced = (counts == 15).all(1).double().mean().item()
    assert balanced == pytest.approx(0.3, abs=5 * (0.21 / 1280) ** 0.5)


@pytest.mark.parametrize("shape", [{"query_counts": COUNTS}, {"query_concentration": 2.0, "query_balanced": 0.5}])
def test_unbalanced_tasks_are_seed_split_and_index(shape: dict[str, Any]) -> None:
    for source in (SMALL, BankSampler(numbered([90] * 6))):
        whole = tasks_of(source, 100, **shape)
        assert equal(tasks_of(source, 90, **shape).tasks(slice(60, 90)), whole.tasks(slice(60, 90)))


def test_the_same_classes_and_support_whatever_the_queries() -> None:
    """Of a bank: the accuracy at one marginal can be paired with that at another."""
    source = BankSampler(numbered([90] * 6))
    one, other = tasks_of(source, 64), tasks_of(source, 64, query_counts=[55, 5, 5, 5, 5])
    assert torch.equal(one.support_x, other.support_x) and one.classes is not None and other.classes is not None
    assert torch.equal(one.classes, other.classes)


def test_twice_the_queries_are_so_in_every_class() -> None:
    shape = TaskShape(query_counts=COUNTS, query_concentration=0.0).twice()
    assert shape.query == 30 and shape.query_counts == [18, 6, 4, 2, 0]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"query_counts": [5, 5]}, r"task\.query_counts to be 5 numbers >= 0.*got \[5, 5\]"),
        ({"query_counts": [5, 5, 5, 5, -1]}, "5 numbers >= 0"),
        ({"query_counts": [0] * 5}, "5 numbers >= 0"),
        ({"query_concentration": -1.0}, r"task\.query_concentration to be finite and >= 0"),
        ({"query_concentration": float("inf")}, "to be finite"),
        (
            {"query_balanced": 0.5},
            r"task\.query_balanced from 0 to 1, and equal to 0 if task\.query_concentration is 0",
        ),
        ({"query_concentration": 1.0, "query_balanced": 1.5}, "query_balanced from 0 to 1"),
    ],
)
def test_impossible_query_sets_are_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SMALL.sampler("train", TaskShape(**shape))


def test_a_bank_too_small_for_the_largest_count_says_so() -> None:
    with pytest.raises(UsageError, match=re.escape("task.shot + the most queries per class = 56 inputs")):
        BankSampler(numbered([40] * 6)).sampler("train", TaskShape(query_counts=[55, 5, 5, 5, 5]))
    with pytest.raises(UsageError, match=re.escape("task.shot + task.query = 16 inputs in every class")):
        BankSampler(numbered([15] * 6)).sampler("train", TaskShape())


@pytest.mark.parametrize(
    ("sizes", "shape", "message"),
    [
        ([15] * 6, {}, "task.way * task.query = 75 inputs besides the support set in any 5 classes of the train split"),
        ([90, 90, 4, 4, 4, 4, 4], {"shot": 3}, "got 5 in the 5 smallest; lower task.shot or task.query"),
        ([90, 90, 90, 90, 2, 90], {"shot": 3}, "at least task.shot = 3 inputs in every class of the train split"),
        ([90, 90, 90, 90, 12, 90], {"query_balanced": 0.5}, "task.shot + task.query = 16 inputs in every class of the"),
    ],
)  # fmt: skip
def test_classes_too_small_for_all_queries_are_refused(sizes: list[int], shape: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        BankSampler(numbered(sizes)).sampler("train", TaskShape(query_concentration=1.0, **shape))


BANKS = st.lists(st.integers(1, 40), min_size=2, max_size=9)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(BANKS, st.integers(2, 5), st.integers(1, 3), st.integers(1, 20), st.sampled_from([0.01, 0.5, 1, 2, 50, 1e6]),
       st.sampled_from([0, 0.5]), st.booleans())  # fmt: skip
def test_drawn_counts_fit_the_classes(
    sizes: list[int], way: int, shot: int, query: int, concentration: float, balanced: float, sequential: bool
) -> None:
    """Classes of any sizes: a task is refused, or has all its queries, of its classes and none twice."""
    shape = TaskShape(way, shot, query, query_concentration=concentration, query_balanced=balanced)
    bank = numbered(sizes)
    room = sorted(size - shot for size in sizes)
    possible = len(sizes) >= way and room[0] >= query * (balanced > 0) and sum(room[:way]) >= way * query
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "MOST_KEYS", 0 if sequential else positions.MOST_KEYS)
        if not possible:
            with pytest.raises(UsageError):
                BankSampler(bank).sampler("train", shape)
            return
        tasks = TaskStream(BankSampler(bank).sampler("train", shape), 0, "train").batch(0, BLOCK)
    support, rows = (x.squeeze(-1).long() for x in (tasks.support_x, tasks.query_x))
    assert rows.shape == (BLOCK, way * query) and tasks.classes is not None
    assert torch.equal(bank.labels[rows], tasks.classes.gather(1, tasks.query_y))
    assert torch.equal(bank.labels[support], tasks.classes.gather(1, tasks.support_y))
    assert (torch.cat((support, rows), 1).sort(1).values.diff(dim=1) > 0).all()


@pytest.mark.parametrize("concentration", [0.3, 1.0, 2.0, 1e4])
def test_bounded_counts_have_the_probabilities_of_their_definition(concentration: float) -> None:
    """40,000 draws against the Dirichlet-multinomial summed over all counts that fit: within five sd of each share."""
    total, room = 7, [2, 5, 3]
    fitting = [n for n in product(*(range(most + 1) for most in room)) if sum(n) == total]
    logs = torch.tensor([[math.lgamma(n + concentration) - math.lgamma(n + 1) for n in counts] for counts in fitting])
    expected = logs.double().sum(1).softmax(0)
    uniform = torch.rand(40_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = bounded_counts(total, concentration, torch.tensor([room]).expand(40_000, -1), uniform)
    shares = torch.stack([(drawn == torch.tensor(counts)).all(1).double().mean() for counts in fitting])
    assert shares.sum() == 1
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / 40_000).sqrt() + 1e-9).all()


def test_larger_classes_have_the_counts_of_before() -> None:
    """Classes that hold all queries of a task draw the multinomial itself, also beside smaller ones of other tasks."""
    shape = {"query_concentration": 2.0, "query_balanced": 0.25}
    counts = counts_of(tasks_of(BankSampler(numbered([90] * 6)), 64, **shape).query_y)
    generator = generator_of(0, "train", 0)
    torch.rand(BLOCK, 6, generator=generator), torch.rand(BLOCK, 5, 90, generator=generator, dtype=torch.float64)
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    expected = torch.from_numpy(numbers.multinomial(75, numbers.dirichlet([2.0] * 5, BLOCK)))
    expected[numbers.random(BLOCK) < 0.25] = 15
    assert torch.equal(counts, expected)


def test_of_smaller_classes_tasks_that_fit_have_the_counts_of_before() -> None:
    """So the others alone are drawn again, from the distribution given that they fit."""
    shape = TaskShape(query_concentration=1.0)
    rooms = (None, torch.full((BLOCK, 5), 39))
    free, bounded = (counts_of(shape.query_points(generator_of(0, "train", 0), room)[0]) for room in rooms)
    fits = (free <= 39).all(1)
    assert 10 < fits.sum() < 60 and (bounded <= 39).all()
    assert torch.equal(free[fits], bounded[fits])


def test_pairs_stay_on_one_side_where_counts_are_bounded() -> None:
    """Twenty images and their twins of each class: no query is the twin of a support image."""
    partner = torch.arange(6 * 40) ^ 1
    bank = replace(numbered([40] * 6), pairs=Pairs(partner))
    tasks = tasks_of(BankSampler(bank), shot=2, query_concentration=0.5)
    support, query = (x.squeeze(-1).long() for x in (tasks.support_x, tasks.query_x))
    assert not (partner[support].unsqueeze(2) == query.unsqueeze(1)).any()


def test_regressions_have_no_classes_to_count() -> None:
    for shape in (TaskShape(1, 2, 3, query_counts=[3]), TaskShape(1, 2, 3, query_concentration=1.0)):
        with pytest.raises(UsageError, match=r"no task\.query_counts and no task\.query_concentration"):
            LinearGaussian().sampler("train", shape)


def test_reports_name_the_queries() -> None:
    task = {"query": 15, "query_counts": [], "query_concentration": 0.0}
    assert queries_of(task) == "15"
    assert queries_of(task | {"query_counts": COUNTS}) == "9/3/2/1/0"
    assert queries_of(task | {"query_concentration": 2.0}) == "Dirichlet(2)"
    assert queries_of(task | {"query_concentration": 2.0, "query_counts": COUNTS}) == "9/3/2/1/0"


def test_counts_win_over_shares() -> None:
    """So that a learner of random marginals is scored at given ones by one setting."""
    counts = counts_of(tasks_of(SMALL, 64, query_counts=COUNTS, query_concentration=1.0, query_balanced=0.5).query_y)
    assert torch.equal(counts.sort(1, descending=True).values, torch.tensor(COUNTS).expand(64, -1))


def test_runs_on_other_query_sets_are_not_compared_task_by_task() -> None:
    results = {"data": "x", "split": "test", "way": 5, "shot": 1, "query": 15, "tasks": 9, "seed": 0}
    one, other = (Run(Path(), results | {"query_counts": its}, {}) for its in ([], COUNTS))
    assert one.tasks != other.tasks


# ---------------------------------------------------------------- noise


def test_noise_turns_features_and_keeps_their_length() -> None:
    """In many dimensions e is orthogonal to x: the cosine of the angle is 1 / sqrt(1 + relative^2)."""
    draw = GaussianFeatures(num_features=4000).sampler("train", TaskShape(query=2))
    plain, noisy = (its(generator_of(0, "train", 0)) for its in (draw, with_noise(draw, 0.5)))
    for before, after in ((plain.support_x, noisy.support_x), (plain.query_x, noisy.query_x)):
        torch.testing.assert_close(before.norm(dim=-1), after.norm(dim=-1))
        cosine = (before * after).sum(-1)
        assert (cosine - 1.25**-0.5).abs().max() < 0.05
    assert torch.equal(plain.query_y, noisy.query_y)


def test_no_noise_is_nothing_and_noise_is_of_the_task() -> None:
    draw = SMALL.sampler("train", TaskShape())
    assert with_noise(draw, 0.0) is draw
    one, again = (with_noise(draw, 1.0)(generator_of(0, "train", 3)) for _ in range(2))
    assert equal(one, again) and one.num_tasks == BLOCK


def test_a_shift_moves_a_task_as_a_whole() -> None:
    """x + s = k x_moved with k > 0, s the same for all points of the task."""
    draw = GaussianFeatures(num_features=8).sampler("train", TaskShape(query=3))
    plain, moved = (its(generator_of(0, "train", 0)) for its in (draw, with_shift(draw, 2.0)))
    for name in ("support_x", "query_x"):
        before, after = getattr(plain, name), getattr(moved, name)
        torch.testing.assert_close(before.norm(dim=-1), after.norm(dim=-1))
        assert (before - after).norm(dim=-1).mean() > 0.1 * before.norm(dim=-1).mean()
    # Two points tell s: it solves k_i x'_i - s = x_i for i = 1, 2, and then serves all others.
    x, y = plain.query_x[3].double(), moved.query_x[3].double()
    system = torch.zeros(16, 10, dtype=torch.float64)
    system[:8, 0], system[8:, 1] = y[0], y[1]
    system[:8, 2:], system[8:, 2:] = -torch.eye(8), -torch.eye(8)
    shift = torch.linalg.lstsq(system, torch.cat((x[0], x[1])).unsqueeze(1)).solution[2:, 0]
    cosine = torch.nn.functional.cosine_similarity(x + shift, y, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-5, rtol=0)
    assert with_shift(draw, 0.0) is draw


def test_turned_views_move_with_their_task() -> None:
    def draw(generator: torch.Generator) -> Episodes:
        tasks = random_tasks(num_tasks=4)
        return replace(tasks, auxiliary={"turned": tasks.query_x.unsqueeze(2).expand(-1, -1, 3, -1)})

    moved = with_shift(draw, 1.0)(generator_of(0, "train", 0))
    torch.testing.assert_close(moved.auxiliary["turned"], moved.query_x.unsqueeze(2).expand(-1, -1, 3, -1))


def test_noise_is_for_features() -> None:
    images = BankSampler(numbered([20] * 6))
    draw = images.sampler("train", TaskShape())

    def of_bytes(generator: torch.Generator) -> Episodes:
        return draw(generator).tasks(slice(None)).map_tensors(lambda x: x.byte() if x.is_floating_point() else x)

    with pytest.raises(UsageError, match=r"expected features .* for task\.feature_noise, got torch\.uint8"):
        with_noise(of_bytes, 0.1)(generator_of(0, "train", 0))
    with pytest.raises(UsageError, match=r"expected features .* for data\.train_shift, got torch\.uint8"):
        with_shift(of_bytes, 0.1)(generator_of(0, "train", 0))
    with pytest.raises(UsageError, match=r"task\.feature_noise to be finite and >= 0"):
        TaskShape(feature_noise=-0.1)
