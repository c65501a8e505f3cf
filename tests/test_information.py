"""Bounds on the information of posteriors, the generalisation gap, and overfitting close to a bound."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Categorical, MixtureSameFamily, Normal, TorchDistribution
from torch import Size, Tensor

import pyro_metabayes
from pyro_metabayes import Episodes, MetaLearner, Observed
from pyro_metabayes.data.sources.linear_gaussian import LinearGaussian
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.diagnostics.information import UPPER, _metrics, information, query_sets
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.models.heads import Cosine, Head
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.prior import Prior
from tests.commands import SMALL, call, ran, results_of
from tests.pairs import Pair, random_tasks, stream_of


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def of(learner: MetaLearner, *batches: Episodes, num_samples: int = 4) -> dict[str, Any]:
    figures = information(learner, batches, num_samples)
    assert figures is not None
    return figures


# ---------------------------------------------------------------- a model whose information is known


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """Information metrics of 2,000 tasks with w ~ N(0, 1), 4 queries with noise 1, and q = p(w | d)."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    pair = Pair("exact", model="gaussian_mean", model_settings={"noise": 1.0})
    prior = {"_target_": "models.priors.Gaussian", "scale": 1.0}
    shape = {"input_shape": [1], "num_classes": 1, "num_targets": 1}
    learner = MetaLearner.from_specification(pair.specification() | {"prior": prior} | shape)
    draw = LinearGaussian(constant=True).sampler("test", TaskShape(1, 0, 8))
    tasks = TaskStream(draw, 0, "test").batch(0, 2000).map_tensors(_as_double)
    return of(learner, *(tasks.tasks(slice(start, start + 500)) for start in range(0, 2000, 500)))


def _as_double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


INFORMATION = 0.5 * math.log(1 + 4)  # of w and 4 points


def test_the_kl_to_the_true_prior_is_the_information(known: dict[str, Any]) -> None:
    """The sd of KL(q, p) over tasks is below 1: 0.1 is 4.5 standard errors."""
    assert known["prior"] == pytest.approx(INFORMATION, abs=0.1)
    assert known["refitted_prior"] == pytest.approx(INFORMATION, abs=0.1)


def test_the_others_bound_it_from_their_side(known: dict[str, Any]) -> None:
    assert known["other_tasks"] > INFORMATION - 0.1 and known["other_tasks"] < INFORMATION + 0.6
    assert INFORMATION - 0.1 < known["below"] < INFORMATION + 0.1
    assert known["second_set"] > 0
    assert known["least"] == min(known[name] for name in UPPER)


def test_the_gap_of_an_exact_posterior_is_its_variance(known: dict[str, Any]) -> None:
    """w and the true weight are alike given d, so E L_d is that of the truth, and E L_b exceeds it by 1 / (1 + 4)."""
    gap = known["gap"]
    assert gap["mean"] == pytest.approx(1 / 5, abs=3 * gap["ci95"]) and 0 < gap["ci95"] < 0.05
    assert known["queries"] == 4


def test_rounding_below_no_information_leaves_a_bound_of_nothing() -> None:
    """A guide that looks at no query has KL 0 between the posteriors of two query sets, and -1e-9 on a bad day."""
    figures = _metrics({"gap": torch.zeros(3), "second_set": torch.full((3,), -1e-9)}, 2.0, 15)
    assert figures["least"] == figures["bound"] == 0
    assert figures["tightness"] is None


def test_a_loss_without_range_has_no_bound(known: dict[str, Any]) -> None:
    assert known["sigma"] is None and known["bound"] is None and known["tightness"] is None


# ---------------------------------------------------------------- over-fitting comes near the bound

HYPOTHESES, QUERIES, SCALE = 256, 40, 20.0


class Vote(Head):
    """Logits +-SCALE, with the sign that the first row of w selects from x. The loss is 0 or 2 SCALE."""

    def num_weights(self, num_features: int) -> int:
        return num_features

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        vote = (w[..., :1, :] @ x.mT).squeeze(-2).clamp(-1, 1)
        return SCALE * torch.stack((vote, -vote), -1)

    def loss_range(self, num_classes: int) -> Tensor:
        return torch.tensor(2 * SCALE + math.log(num_classes))


def narrow(loc: Tensor) -> Normal:
    return Normal(loc, 1e-4).to_event(2)


class Uniform(Prior):
    """A uniform prior over hypotheses. A hypothesis is a unit vector in the first row of w."""

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        each = narrow(torch.stack((torch.eye(HYPOTHESES), torch.zeros(HYPOTHESES, HYPOTHESES)), 1))
        return MixtureSameFamily(Categorical(logits=torch.zeros(observed.num_tasks, HYPOTHESES)), each)


class Overfits(pyro_metabayes.Guide):
    """Selects the hypothesis with the fewest errors on the labels, although the labels are random."""

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self._first(torch.zeros(observed.num_tasks, dtype=torch.long))

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        errors = (episodes.query_x < 0) != (episodes.query_y == 1).unsqueeze(-1)  # [T, Q, hypotheses]
        return self._first(errors.sum(1).argmin(-1))

    def _first(self, best: Tensor) -> TorchDistribution:
        row = torch.nn.functional.one_hot(best, HYPOTHESES).double()
        return narrow(torch.stack((row, torch.zeros_like(row)), 1))


class Indifferent(Overfits):
    """Selects one hypothesis without regard to the labels."""

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        return self.posterior(episodes.observed())


def coins(num_tasks: int = 48) -> Episodes:
    """Tasks whose features and labels are random bits."""
    x = torch.randint(2, (num_tasks, 2 * QUERIES, HYPOTHESES)) * 2.0 - 1
    y = torch.randint(2, (num_tasks, 2 * QUERIES))
    support = torch.zeros(num_tasks, 2, HYPOTHESES), torch.arange(2).expand(num_tasks, -1)
    return Episodes(support_x=support[0], support_y=support[1], query_x=x, query_y=y, num_classes=2)


def planted(guide: type[pyro_metabayes.Guide]) -> MetaLearner:
    honest = Pair("proto", "gaussian").learner(features=HYPOTHESES)
    model: Any = honest.model
    model.head, model.prior_over_weights = Vote(), Uniform()
    return MetaLearner(honest.backbone, model, guide(model), Elbo(), honest.specification)


def test_a_guide_that_over_fits_comes_near_the_bound() -> None:
    """The best of M coins is a tight case: I = log M, and the best of M normal errors lies near sqrt(2 log M) sd."""
    figures = of(planted(Overfits), coins(), num_samples=1)
    assert figures["prior"] == pytest.approx(math.log(HYPOTHESES), rel=1e-6) and figures["least"] == figures["prior"]
    assert figures["sigma"] == pytest.approx(SCALE + math.log(2) / 2)
    bound = figures["sigma"] * math.sqrt(2 * math.log(HYPOTHESES) / QUERIES)
    assert figures["bound"] == pytest.approx(bound, rel=1e-6)
    assert 0.7 < figures["tightness"] <= 1.0


def test_a_guide_that_does_not_look_has_neither_gap_nor_information() -> None:
    figures = of(planted(Indifferent), coins(), num_samples=1)
    assert abs(figures["gap"]["mean"]) < 3 * figures["gap"]["ci95"] + 1e-9
    assert figures["least"] == 0 and figures["bound"] == 0 and figures["tightness"] is None


# ---------------------------------------------------------------- on the library's own


def test_a_point_mass_has_no_information() -> None:
    learner = Pair("sib", "flat", settings={"posterior": "delta"}).learner()
    assert information(learner, [random_tasks(4)], 2) is None


def test_a_flat_prior_leaves_the_other_bounds() -> None:
    figures = of(Pair("sib", "flat").learner(), random_tasks(6))
    assert figures["prior"] is None and figures["least"] is not None and figures["bound"] > 0


def test_the_range_holds_the_losses_of_the_cosine_head() -> None:
    head, labels = Cosine(7.0), torch.randint(4, (1, 2000))
    w, x = torch.randn(1, 4, 3), torch.nn.functional.normalize(torch.randn(1, 2000, 3), dim=-1)
    loss = -Categorical(logits=head.outputs(w, x)).log_prob(labels)
    assert loss.min() >= 0 and loss.max() <= head.loss_range(4)
    ends = head.outputs(torch.tensor([[[1.0], [-1.0], [-1.0], [-1.0]]]), torch.tensor([[[-1.0]]]))
    worst = -Categorical(logits=ends).log_prob(torch.tensor([[0]])).item()
    assert worst == pytest.approx(math.log(1 + 3 * math.exp(14.0))) and head.loss_range(4) - worst < 0.3


def test_the_query_sets_share_tasks_and_no_point() -> None:
    episodes = random_tasks(3, query=4)
    d, b = query_sets(episodes)
    assert d.query_x.shape == b.query_x.shape == (3, 6, episodes.query_x.shape[-1])
    assert torch.equal(torch.stack((d.query_x, b.query_x), 2).flatten(1, 2), episodes.query_x)
    assert torch.equal(d.support_x, b.support_x)


def test_it_moves_no_other_figure() -> None:
    learner, tasks = Pair("sib").learner(), random_tasks(8)
    settings = EvalSettings(8, 3)
    without = evaluate(learner, stream_of(tasks), settings, 1, progress=False).metrics
    with_it = evaluate(learner, stream_of(tasks), settings, 1, progress=False, doubled=stream_of(tasks)).metrics
    assert without.pop("information") is None and with_it.pop("information")["bound"] > 0
    assert {**without, "seconds": 0} == {**with_it, "seconds": 0}


@pytest.mark.usefixtures("empty_folder")
def test_eval_information_is_in_results_json() -> None:
    torch.set_default_dtype(torch.float32)
    data = ("data=gaussian_features", "data.num_features=16", *SMALL)
    ran("run", *data, "guide=sib", "eval.information=true", "task.query_counts=[3,2,2,1,1]", "hydra.run.dir=run")
    figures = results_of(Path("run"))["information"]
    assert figures["queries"] == 9 and figures["tightness"] == abs(figures["gap"]["mean"]) / figures["bound"]
    ran("run", *data, "guide=sib_delta", "eval.information=true", "hydra.run.dir=delta")
    assert json.loads(Path("delta/results.json").read_text())["information"] is None


@pytest.mark.usefixtures("empty_folder")
def test_too_few_inputs_for_two_query_sets_are_refused_before_training() -> None:
    torch.set_default_dtype(torch.float32)
    np.savez("own.npz", features=np.random.default_rng(0).normal(size=(600, 4)), labels=np.arange(600) // 20)
    data = ("data=features", "data.path=own.npz")
    error = call("run", "guide=proto", *data, "eval.information=true", "hydra.run.dir=run").error
    assert (
        error.startswith("eval.information=true needs twice the queries per task: expected at least")
        and "31 inputs" in error
    )
    assert not Path("run").exists()
