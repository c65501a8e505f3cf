"""Training tasks whose queries are unequally shared among classes: the classes stay those of balanced tasks."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from pyro_metabayes.data.mixture.bank_points import Points, bank_points
from pyro_metabayes.data.mixture.banks import FeatureRows
from pyro_metabayes.data.mixture.shapes import Shape
from pyro_metabayes.data.mixture.source import Mixture

SIZES = torch.tensor([20, 25, 31, 20, 22, 40, 20, 21, 20])
# Row i of class k is (k, i).
BANK = FeatureRows("rows", torch.tensor([(k, i) for k, size in enumerate(SIZES.tolist()) for i in range(size)]), SIZES)
LABELS = torch.tensor([[0] * 45 + [1] * 15 + [2] * 3, [0] * 21 + [1] * 21 + [2] * 21])


def points_of(shot: int, merged: int) -> tuple[Points, Tensor]:
    """Points of two 3-way tasks with the queries LABELS, and the labels of all points."""
    labels = torch.cat((torch.arange(3).repeat_interleave(shot).expand(2, -1), LABELS), 1)
    drawn = bank_points(BANK, Shape(3, shot, LABELS.shape[1]), labels, merged, Generator().manual_seed(0))
    assert drawn is not None
    return drawn, labels


@pytest.mark.parametrize("shot, merged, expected", [(1, 1, 1), (1, 2, 2), (18, 1, 2)])
def test_skewed_class_shares_do_not_merge_classes(shot: int, merged: int, expected: int) -> None:
    """A class consists of as many classes of the data set as it is asked for, or as the support set needs."""
    drawn, labels = points_of(shot, merged)
    for x, y, mask in zip(drawn.x, labels, drawn.query_mask, strict=True):
        kept = torch.cat((torch.ones(3 * shot, dtype=torch.bool), mask))
        x, y = x[kept], y[kept]
        assert len(x.unique(dim=0)) == len(x)  # no row twice
        sources = [set(x[y == c][:, 0].tolist()) for c in range(3)]
        assert [len(each) for each in sources] == [expected] * 3
        assert len(set().union(*sources)) == 3 * expected  # no class of the data set twice


def test_the_mask_keeps_the_class_shares() -> None:
    """With room for 19 queries of a class, 45, 15 and 3 queries become 19, 7 and 2; the shares are rounded up."""
    drawn, _ = points_of(1, 1)
    counts = (one_hot(LABELS, 3) * drawn.query_mask.unsqueeze(-1)).sum(1)
    assert counts.tolist() == [[19, 7, 2], [19, 19, 19]]


def test_tasks_with_too_many_classes_are_not_drawn() -> None:
    labels = torch.arange(10).repeat(2).expand(2, -1)
    assert bank_points(BANK, Shape(10, 1, 10), labels, 1, Generator().manual_seed(0)) is None


def test_the_mask_reaches_the_tasks_of_the_mixture() -> None:
    mixture = Mixture([FeatureRows("rows", BANK.x.float(), BANK.class_sizes)], bank_share=1.0)
    drawn = [mixture.tasks(4, Generator().manual_seed(seed)) for seed in range(40)]
    assert any((~episodes.query_mask).any() for episodes in drawn)
    assert all(episodes.query_mask.any(1).all() for episodes in drawn)
