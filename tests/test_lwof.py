"""Learning without forgetting: tasks, scores, prior and inner loops agree with their definitions."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Delta, MixtureSameFamily
from torch import Tensor
from torch.nn import functional

from pyro_metabayes import Episodes, MetaLearner, UsageError
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.base_novel import BaseNovelSampler, distinct_positions
from pyro_metabayes.data.holdout import held_out_rows, without_rows
from pyro_metabayes.data.pairs import Pairs
from pyro_metabayes.data.stream import generator_of
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.evaluation.base_novel import BASE_NOVEL
from pyro_metabayes.evaluation.score import TaskScores, Weights
from pyro_metabayes.evaluation.scores import values_of
from pyro_metabayes.inference.divergences import innermost
from pyro_metabayes.likelihoods.classes import BaseNovelPredictions
from pyro_metabayes.models.backbones.conv4 import Backbone
from pyro_metabayes.pretraining import PretrainSettings, pretrain
from pyro_metabayes.sklearn import FewShotClassifier
from tests.commands import call, on_features, ran, results_of
from tests.pairs import BASE, FEATURES, WAY, Pair, random_tasks

CPU = torch.device("cpu")
SHAPE = TaskShape(way=2, shot=3, query=4, base_query=9)
LWOF = ("model=lwof", "pretrain.holdout_per_class=4", "task.base_query=30")  # features of 20 rows per class
STEPS = {"num_steps": 2, "step_size": 0.1, "posterior": "delta"}


@pytest.fixture
def bank() -> Bank:
    """A bank whose inputs are row numbers: 6 training classes of 20 to 25 rows, 3 classes in each other split."""
    sizes = torch.tensor([20, 9, 21, 9, 22, 9, 23, 9, 24, 9, 25, 9])
    splits = {"train": torch.arange(0, 12, 2), "val": torch.tensor([1, 3, 5]), "test": torch.tensor([7, 9, 11])}
    rows = torch.arange(int(sizes.sum())).unsqueeze(1).float()
    return Bank(rows, sizes, splits, [str(number) for number in range(12)])


def drawn(sampler: BaseNovelSampler, split: str, shape: TaskShape = SHAPE) -> Episodes:
    return sampler.sampler(split, shape)(generator_of(3, split, 0))


def with_base(episodes: Episodes, num_base: int = 3, seed: int = 0) -> Episodes:
    """The same tasks with random base classes. A third of the queries have a base class."""
    torch.manual_seed(seed)
    base = torch.rand(episodes.num_tasks, BASE).argsort(-1)[:, :num_base].sort(-1).values
    labels = episodes.query_y.clone()
    labels[:, ::3] = WAY + torch.randint(num_base, labels[:, ::3].shape)
    return replace(episodes, query_y=labels, auxiliary={"base": base})


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_base_queries_are_of_base_classes_and_of_the_images_of_their_split(split: str, bank: Bank) -> None:
    sampler = BaseNovelSampler(bank, 8)
    tasks = drawn(sampler, split, replace(SHAPE, base_query=40))
    held_out = held_out_rows(bank, 8)
    allowed = {"val": held_out[:, :4], "test": held_out[:, 4:]}
    base, labels = tasks.auxiliary["base"], tasks.query_y[:, 8:] - SHAPE.way
    rows = tasks.query_x[:, 8:, 0].long()
    ids = bank.splits["train"][base.gather(1, labels)]
    assert torch.equal(bank.labels[rows], ids) and tasks.query_mask.all() and tasks.query_mask.shape == (64, 48)
    if split == "train":
        everything = torch.cat((tasks.support_x, tasks.query_x), 1).long()
        assert not torch.isin(everything, held_out).any(), "held-out images are never trained on"
        assert set(rows.unique().tolist()) == set(bank.rows("train").tolist()) - set(held_out.flatten().tolist())
    else:
        assert set(rows.unique().tolist()) == set(allowed[split].flatten().tolist()), "these, and all of these"


def test_novel_and_base_classes_are_apart_and_complete(bank: Bank) -> None:
    """In training the classes are split anew in each task; elsewhere every training class is a base class."""
    sampler = BaseNovelSampler(bank, 4)
    train, test = drawn(sampler, "train"), drawn(sampler, "test")
    assert train.classes is not None and test.classes is not None
    assert train.auxiliary["base"].shape == (64, 4) and len(train.auxiliary["base"].unique(dim=0)) == 15
    for classes, base in zip(train.classes, train.auxiliary["base"], strict=True):
        both = torch.cat((classes, bank.splits["train"][base]))
        assert torch.equal(both.sort().values, bank.splits["train"]) and (base.diff() > 0).all()
    assert torch.equal(test.auxiliary["base"], torch.arange(6).expand(64, -1))
    assert torch.isin(test.classes, bank.splits["test"]).all()
    rows = test.query_x[:, :8, 0].long()
    assert torch.equal(bank.labels[rows], test.classes.gather(1, test.query_y[:, :8]))


def test_classes_are_drawn_with_and_images_without_replacement(bank: Bank) -> None:
    tasks = drawn(BaseNovelSampler(bank, 12), "test", replace(SHAPE, base_query=6))
    rows, labels = tasks.query_x[:, 8:, 0], tasks.query_y[:, 8:]
    assert all(len(task.unique()) == 6 for task in rows), "six images per class are enough for six queries"
    repeated = sum(len(task.unique()) < 6 for task in labels) / 64
    assert repeated > 0.9  # 1 - 6! / 6^6 = 0.985
    share = torch.bincount((labels - SHAPE.way).flatten(), minlength=6) / labels.numel()
    assert share.tolist() == pytest.approx([1 / 6] * 6, abs=0.08)


def test_positions_are_distinct_while_there_are_enough() -> None:
    groups = torch.tensor([[0, 1, 0, 0, 1, 2, 0], [3, 3, 3, 3, 3, 3, 3]])
    sizes = torch.tensor([[4, 2, 4, 4, 2, 9, 4], [3] * 7])
    seen = [distinct_positions(groups, sizes, generator_of(seed, "train", 0)) for seed in range(200)]
    for got in seen:
        assert sorted(got[0, [0, 2, 3, 6]].tolist()) == [0, 1, 2, 3] and sorted(got[0, [1, 4]].tolist()) == [0, 1]
        assert sorted(got[1, :3].tolist()) == [0, 1, 2] and torch.equal(got[1, 3:6], got[1, :3])
    assert {int(got[0, 5]) for got in seen} == set(range(9))


def test_training_tasks_may_have_fewer_queries() -> None:
    shape = replace(SHAPE, query=4, base_query=20, train_query=2)
    assert (shape.of("train").query, shape.of("train").base_query) == (2, 10)
    assert shape.of("test") == shape and SHAPE.of("train") == SHAPE


def test_held_out_rows_leave_the_others_as_they_are(bank: Bank) -> None:
    views = torch.stack([bank.inputs[bank.rows("train")] + 1000])
    rows = held_out_rows(bank, 5)
    assert rows.shape == (6, 5) and torch.equal(bank.labels[rows], bank.splits["train"].unsqueeze(1).expand(-1, 5))
    assert torch.equal(held_out_rows(bank, 5), rows)
    kept = without_rows(replace(bank, views=views), rows)
    left = sorted(set(range(len(bank.labels))) - set(rows.flatten().tolist()))
    assert kept.inputs.squeeze(1).tolist() == left
    assert kept.class_sizes.tolist() == (bank.class_sizes - 5 * (torch.arange(12) % 2 == 0)).tolist()
    assert kept.views is not None and torch.equal(kept.views[0], kept.inputs[kept.rows("train")] + 1000)


@pytest.mark.parametrize(
    ("per_class", "message"),
    [(1, "holdout_per_class >= 2 for task.base_query"), (20, "less than 20, the size of the smallest training class")],
)
def test_a_holdout_that_cannot_be_is_refused(per_class: int, message: str, bank: Bank) -> None:
    with pytest.raises(UsageError, match=message):
        BaseNovelSampler(bank, per_class)


def test_pairs_are_not_split(bank: Bank) -> None:
    partner = torch.arange(len(bank.labels))
    partner[[0, 1]] = partner[[1, 0]]
    with pytest.raises(UsageError, match="expected only different images"):
        held_out_rows(replace(bank, pairs=Pairs(partner)), 4)


def test_a_base_class_is_left(bank: Bank) -> None:
    with pytest.raises(UsageError, match=r"expected more than task.way=6 training classes.*got 6"):
        BaseNovelSampler(bank, 4).sampler("train", replace(SHAPE, way=6))


# ---------------------------------------------------------------- metrics


def base_novel_scores(log_probs: Tensor, labels: Tensor, mask: Tensor, num_novel: int) -> TaskScores:
    """Scores [T] of log p(y = c | x, w_l) [L, T, Q, C]."""
    return values_of(BaseNovelPredictions(labels, mask, log_probs, num_novel), Weights.DRAWS, BASE_NOVEL)


def test_the_scores_by_hand() -> None:
    """Two novel classes (0, 1) and two base classes (2, 3); the last query is masked."""
    logits = torch.tensor(
        [
            [4.0, 1.0, 5.0, 0.0],  # of 0: right among novel ones, not among all
            [0.0, 3.0, 1.0, 1.0],  # of 1: right
            [1.0, 0.0, 2.0, 3.0],  # of 3: right
            [4.0, 0.0, 3.0, 1.0],  # of 2: right among base classes, not among all
            [0.0, 0.0, 1.0, 3.0],  # of 2: wrong
            [9.0, 0.0, 0.0, 0.0],
        ]
    )
    labels = torch.tensor([[0, 1, 3, 2, 2, 1]])
    mask = torch.tensor([[True] * 5 + [False]])
    scores = base_novel_scores(logits.log_softmax(-1)[None, None], labels, mask, 2)
    expected = {"novel": 1.0, "base": 2 / 3, "both": 2 / 5, "base_over_all": 1 / 3}
    assert {name: value.item() for name, value in scores.items()} == pytest.approx(expected)


def test_base_does_not_depend_on_the_novel_columns() -> None:
    """Even for an average over samples, whose novel columns take more or less from the others."""
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 2, 40, 7), torch.randint(3, 7, (2, 40))
    mask = torch.ones(2, 40, dtype=torch.bool)
    other = torch.cat((9 * torch.randn(5, 2, 40, 3), logits[..., 3:]), -1)
    one, two = (base_novel_scores(each.log_softmax(-1), labels, mask, 3) for each in (logits, other))
    assert torch.equal(one["base"], two["base"]) and not torch.equal(one["both"], two["both"])


# ---------------------------------------------------------------- model


def test_without_steps_the_novel_columns_are_those_of_class_means() -> None:
    """K=0, a point mass, lambda's scaling at 1: sib's novel logits are the prototype classifier's, for both heads."""
    torch.set_default_dtype(torch.float64)
    episodes = with_base(random_tasks())
    for head in ("cosine", "linear"):
        start = {"num_steps": 0, "posterior": "delta"}
        torch.manual_seed(0)
        pair = Pair("sib", "flat", head, settings=start, model="lwof")
        learner = MetaLearner.from_specification(pair.specification())
        proto = MetaLearner.from_specification(Pair("proto", "flat", head).specification())
        _, likelihood = learner.posterior_predictive(episodes.observed(), 1)
        _, expected = proto.posterior_predictive(episodes.observed(), 1)
        novel = likelihood.logits[..., :WAY].log_softmax(-1)
        torch.testing.assert_close(novel, expected.logits, atol=1e-12, rtol=0)


def test_the_prior_is_the_mixture_of_the_base_classes() -> None:
    torch.set_default_dtype(torch.float64)
    model: Any = Pair("sib", model="lwof").learner().model
    observed = random_tasks().observed()
    prior, components = model.prior(observed), model.prior_over_weights
    w = components.loc[:WAY] + 0.05 * torch.randn(3, WAY, FEATURES)
    assert len(components.loc) == BASE
    by_hand = torch.zeros(3)
    for c in range(WAY):
        normal = torch.distributions.Normal(components.loc, components.log_scale.exp())
        by_hand += normal.log_prob(w[:, c : c + 1]).sum(-1).logsumexp(-1) - math.log(BASE)
    torch.testing.assert_close(prior.log_prob(w), by_hand)
    assert isinstance(innermost(prior), MixtureSameFamily)
    flat: Any = Pair("sib", "flat", settings=STEPS, model="lwof").learner().model
    assert not isinstance(innermost(flat.prior(observed)), MixtureSameFamily)


def test_base_weights_are_drawn_in_training_and_are_their_means_at_test() -> None:
    torch.set_default_dtype(torch.float64)
    episodes = with_base(random_tasks())
    model: Any = Pair("sib", model="lwof").learner().model
    components, w = model.prior_over_weights, torch.randn(2000, 3, WAY, FEATURES)
    observed, base = episodes.observed(), episodes.auxiliary["base"]
    assert torch.equal(model.base_weights(observed), components.loc[base])
    draws = components.draws(episodes, w.shape[:1])
    assert draws.shape == (2000, 3, 3, FEATURES)
    torch.testing.assert_close(draws.mean(0), components.loc[base], atol=0.02, rtol=0)
    torch.testing.assert_close(draws.std(0), components.log_scale.exp()[base], rtol=0.08, atol=0)
    first, second = (model.likelihood(w[0], episodes.query_x, observed).logits for _ in range(2))
    assert torch.equal(first, second)
    of_novel, of_base = (model.head.outputs(w_of, episodes.query_x) for w_of in (w[0], components.loc[base]))
    by_hand = torch.cat((of_novel, of_base + model.base_offset), -1)
    torch.testing.assert_close(first, by_hand.log_softmax(-1))
    first, second = (model.likelihood(w[0], episodes.query_x, episodes).logits for _ in range(2))
    assert not torch.equal(first, second)
    model.sample_at_test = True
    first, second = (model.likelihood(w[0], episodes.query_x, observed).logits for _ in range(2))
    assert not torch.equal(first, second)


def sib(inner: str, **settings: Any) -> tuple[Any, Any]:
    learner = Pair(
        "sib", "flat", settings={**STEPS, **settings}, model="lwof", model_settings={"inner": inner}
    ).learner()
    return learner.model, learner.guide


def test_what_a_synthetic_gradient_sees_of_a_query() -> None:
    torch.set_default_dtype(torch.float64)
    observed = with_base(random_tasks()).observed()
    for inner in ("novel", "gated", "pooled", "all"):
        model, guide = sib(inner, synthetic_gradient="equivariant")
        w = guide.start(guide.model, observed)
        log_probs = model.likelihood(w, observed.query_x, observed).logits
        novel, of_outputs = model.outputs_and_pullback(w, observed.query_x)
        seen, pullback = model.query_view(w, observed)
        share = log_probs.exp()[..., :WAY]
        if inner == "pooled":
            torch.testing.assert_close(seen.softmax(-1), torch.cat((share, 1 - share.sum(-1, keepdim=True)), -1))
        elif inner == "all":
            torch.testing.assert_close(seen.log_softmax(-1), log_probs)
        else:
            assert torch.equal(seen, novel)
        cotangent, gate = torch.randn_like(seen), share.sum(-1, keepdim=True) if inner == "gated" else 1.0
        torch.testing.assert_close(pullback(cotangent), of_outputs(cotangent[..., :WAY] * gate))


def test_a_loop_on_novel_columns_is_that_of_the_few_shot_classifier() -> None:
    torch.set_default_dtype(torch.float64)
    observed = with_base(random_tasks()).observed()
    _, guide = sib("novel")
    plain = Pair("sib", "flat", settings=STEPS).learner().guide
    plain.load_state_dict(guide.state_dict())
    plain.model.head.load_state_dict(guide.model.head.state_dict())
    torch.testing.assert_close(guide.posterior(observed).mean, plain.posterior(observed).mean)


def test_queries_that_are_surely_of_base_classes_do_not_pull_through_a_gate() -> None:
    torch.set_default_dtype(torch.float64)
    observed = with_base(random_tasks()).observed()
    for inner, moved in (("gated", False), ("novel", True)):
        model, guide = sib(inner)
        with torch.no_grad():
            model.head.scale.fill_(4000.0)  # every query is some base class, to the last digit
            model.prior_over_weights.loc[:3] = observed.query_x[0, :3]
        one = replace(observed.tasks(slice(1)), auxiliary={"base": torch.arange(3).unsqueeze(0)})
        one = replace(one, query_x=one.query_x[:, :3], query_mask=one.query_mask[:, :3])
        steps = (guide.posterior(one).mean - guide.start(guide.model, one)).abs().max()
        assert (steps > 1e-9) == moved, inner


def test_the_oracle_sees_labels_of_base_classes() -> None:
    torch.set_default_dtype(torch.float64)
    episodes = with_base(random_tasks())
    model, guide = sib("gated", true_gradient=True, num_steps=1)
    w = guide.start(guide.model, episodes.observed())
    slope = torch.func.grad(
        lambda its: -model.likelihood(its, episodes.query_x, episodes.observed()).log_prob(episodes.query_y).sum()
    )(w)
    expected = w - guide.log_step_size.exp() * slope
    torch.testing.assert_close(guide.training_posterior(episodes).mean, expected)


def test_a_network_for_a_fixed_number_of_classes_cannot_see_all() -> None:
    with pytest.raises(UsageError, match=r"model.inner=all, .*; set guide.synthetic_gradient=equivariant"):
        sib("all")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": "none"}, "model.inner to be one of novel, gated, pooled, all, got 'none'"),
        ({"scale": 0.0}, "model.scale > 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pair("proto", "flat", model="lwof", model_settings=settings).learner()


# ---------------------------------------------------------------- the attention generator


def test_the_generator_is_that_of_the_paper() -> None:
    """Point by point, class by class, for one task."""
    torch.set_default_dtype(torch.float64)
    episodes = with_base(random_tasks())
    guide: Any = Pair("attention", "flat", model="lwof").learner().guide
    q = guide.posterior(episodes.observed())
    assert isinstance(q, Delta)
    base = guide.model.prior_over_weights.loc[episodes.auxiliary["base"][0]]
    keys = functional.normalize(guide.keys[episodes.auxiliary["base"][0]], dim=-1)
    for c in range(WAY):
        points = episodes.support_x[0, episodes.support_y[0] == c]
        attended = torch.zeros(FEATURES)
        for x in points:
            query = functional.normalize(guide.query.weight @ x + guide.query.bias, dim=0)
            attention = (guide.log_scale.exp() * keys @ query).softmax(0)
            attended += attention @ functional.normalize(base, dim=-1) / len(points)
        expected = guide.average_factor * points.mean(0) + guide.attention_factor * attended
        torch.testing.assert_close(q.mean[0, c], expected)


# ---------------------------------------------------------------- from pretraining to results


SPECIFICATION = {"_target_": "models.backbones.conv4.Backbone", "num_filters": 4}
SETTINGS = PretrainSettings(epochs=2, batch_size=16, learning_rate=0.05, shift=0, holdout_per_class=6)


@pytest.fixture
def images() -> Bank:
    """Four classes of 32 noisy images. Each class has another bright quarter."""
    pixels = 60 * torch.rand(4, 32, 1, 16, 16)
    for number in range(4):
        top, left = 8 * (number // 2), 8 * (number % 2)
        pixels[number, :, :, top : top + 8, left : left + 8] += 120
    ids = torch.arange(4)
    splits = {"train": ids, "val": ids[:0], "test": ids[:0]}
    return Bank(pixels.flatten(0, 1).to(torch.uint8), torch.full((4,), 32), splits, ["a", "b", "c", "d"])


def test_held_out_images_are_not_trained_on(images: Bank) -> None:
    rows = held_out_rows(images, 6).flatten()
    other = images.inputs.clone()
    other[rows] = 255 - other[rows]
    one, two = (
        pretrain(Backbone((1, 16, 16), 4), SPECIFICATION, bank, SETTINGS, CPU)
        for bank in (images, images.with_inputs(other))
    )
    assert one.path != two.path and one.classes is not None and two.classes is not None
    kept = without_rows(images, rows)
    expected = without_rows(one.bank, rows).inputs
    assert torch.equal(expected, without_rows(two.bank, rows).inputs) and len(kept.inputs) == len(expected) == 104
    assert torch.equal(one.classes, two.classes)


def test_the_holdout_is_part_of_the_key_and_caches_without_one_keep_their_names(images: Bank) -> None:
    without = replace(SETTINGS, holdout_per_class=0)
    path = pretrain(Backbone((1, 16, 16), 4), SPECIFICATION, images, without, CPU).path
    settings = {name: value for name, value in asdict(without).items() if name not in ("views", "holdout_per_class")}
    key = json.dumps([SPECIFICATION, settings, images.fingerprint()], sort_keys=True)
    assert path.name == f"conv4-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    assert path != pretrain(Backbone((1, 16, 16), 4), SPECIFICATION, images, SETTINGS, CPU).path


@pytest.mark.parametrize("keep", ["last", "best"])
def test_base_classes_alone_are_the_pretrained_classifier(keep: str, images: Bank) -> None:
    """On every held-out image: the same answers, and so the same accuracy."""
    found = pretrain(Backbone((1, 16, 16), 4), SPECIFICATION, images, replace(SETTINGS, keep=keep), CPU)
    rows = held_out_rows(images, 6)
    features, labels = found.bank.inputs[rows.flatten()], torch.arange(4).repeat_interleave(6)
    assert found.classes is not None
    answers = (features @ functional.normalize(found.classes, dim=-1).T).argmax(-1)  # the classifier of the pretraining
    specification = Pair("proto", "flat", model="lwof").specification(features=features.shape[1])
    learner = MetaLearner.from_specification(specification)
    model: Any = learner.model
    model.start_at_classes(found.classes)
    tasks = random_tasks(1, features=features.shape[1])
    tasks = replace(
        tasks,
        query_x=features[None],
        query_y=(WAY + labels)[None],
        query_mask=torch.ones(1, len(labels), dtype=torch.bool),
    )
    _, likelihood = learner.posterior_predictive(tasks.observed(), 1)
    assert torch.equal(likelihood.logits[0, 0, :, WAY:].argmax(-1), answers)
    scores = base_novel_scores(likelihood.logits, tasks.query_y, tasks.query_mask, WAY)
    assert scores["base"].item() == pytest.approx((answers == labels).float().mean().item())
    for_the_test = (answers == labels).view(4, 6)[:, 3:].float().mean().item()
    assert found.held_out_accuracy(6) == pytest.approx(for_the_test)
    assert scores["base"].item() > 0.5, "and it has learned something"


@pytest.mark.usefixtures("empty_folder")
def test_the_command_prints_the_columns_with_intervals(features: Path) -> None:
    outcome = ran("run", *LWOF, *on_features(features), "guide=sib", "hydra.run.dir=run")
    results = results_of(Path("run"))
    titles = ("novel %", "base %", "both %", "base over all %", "19+5-way 1-shot, 15 queries + 30")
    assert all(title in outcome.out for title in titles)
    for name in ("novel", "base", "both", "base_over_all"):
        assert 0 < results[name]["mean"] <= 1 and results[name]["ci95"] > 0
        assert f"{100 * results[name]['mean']:.1f} +- {100 * results[name]['ci95']:.1f}" in outcome.out
    assert results["both"] == results["accuracy"] and (results["prior"], results["base_classes"]) == ("mixture", 19)
    bounds = results["kl_variational_bound"], results["kl_convexity_bound"]
    assert results["kl"] < bounds[0] * 1.01 and bounds[0] < bounds[1]
    with np.load("run/tasks.npz") as tasks:
        assert tasks["novel"].mean() == pytest.approx(results["novel"]["mean"])
    ran("evaluate", "run", "guide.num_steps=0", "model.sample_at_test=true")
    again = results_of(Path("run/evaluations/guide.num_steps=0,model.sample_at_test=true"))
    assert again["nll"] != results["nll"] and again["transductive"] is False
    assert "64+" not in ran("compare", "run", "--out", "out").out
    with pytest.raises(UsageError, match="got a learner that also predicts base classes"):
        FewShotClassifier("run").fit(np.random.default_rng(0).normal(size=(6, 16)), np.arange(6) % 5)


@pytest.mark.usefixtures("empty_folder")
def test_nothing_is_trained_at_the_start_and_base_is_the_mean_features(features: Path) -> None:
    """Without a pretraining base classes start at the mean features of what is not held out."""
    arguments = (*LWOF, *on_features(features), "guide=proto", "train.learning_rate=1e-30", "hydra.run.dir=run")
    ran("run", *arguments, "train.learning_rates={model.prior_over_weights.loc: 1e-30}")
    weights = torch.load("run/checkpoint.pt", weights_only=True)["best"]["weights"]
    loc = weights["model.prior_over_weights.loc"]
    torch.testing.assert_close(loc.norm(dim=-1), torch.ones(19))
    assert results_of(Path("run"))["base"]["mean"] > 0.6 and results_of(Path("run"))["prior"] == "flat"


MISTAKES = {
    "model=few_shot_classifier": "expected model=lwof and a data set of classes for task.base_query=30",
    "task.base_query=0": "expected tasks with base classes for model=lwof, got tasks without",
    "task.base_query=-1": "expected task.base_query >= 0, got -1",
    "pretrain.holdout_per_class=0": "expected pretrain.holdout_per_class >= 2 for task.base_query",
    "pretrain.holdout_per_class=40": "expected pretrain.holdout_per_class to be at least 1 and less than 20",
    "objective.kl=convexity model=few_shot_classifier task.base_query=0": "expected a normal posterior and a mixture",
    "guide=attention model=few_shot_classifier task.base_query=0": "expected a model with base classes for guide=att",
}


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("change", MISTAKES)
def test_a_mistake_is_named(change: str, features: Path) -> None:
    changed = {word.partition("=")[0] for word in change.split()}
    kept = [word for word in LWOF if word.partition("=")[0] not in changed]
    assert call("run", *on_features(features), "guide=sib", *kept, *change.split()).error.startswith(MISTAKES[change])


@pytest.mark.usefixtures("empty_folder")
def test_simulators_have_no_base_classes() -> None:
    error = call("run", "model=lwof", "data=gaussian_features", "data.num_features=8").error
    assert error.startswith("expected tasks with base classes for model=lwof, got tasks without")
