"""A transductive guide, and no other, warns about tasks that differ from its training tasks."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import Tensor

import pyro_metabayes
from pyro_metabayes import Episodes, FewShotClassifier, MetaLearner, UnfamiliarTasks
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.storage import checkpoint
from pyro_metabayes.training.loop import MetaTraining
from pyro_metabayes.training.optimisation import TrainSettings
from pyro_metabayes.validation.trained_on import TaskRange
from tests.commands import checkpoint_of, ran
from tests.pairs import Pair, random_regressions, random_tasks, stream_of

STEPS = {"num_steps": 1, "step_size": 0.1}
XI = {**STEPS, "synthetic_gradient": "equivariant"}
GUIDES = {
    "sib": Pair(settings=XI),
    "marginal_aware": Pair(settings={**STEPS, "synthetic_gradient": "marginal_aware"}),
    "no step": Pair(settings={**XI, "num_steps": 0}),
    "proto": Pair("proto", "flat"),
    "savi": Pair("savi", "conditional"),
}
TRANSDUCTIVE = ("sib", "marginal_aware")
WAY, SHOT, QUERY = 3, 2, 6


def learner_of(guide: str, record: bool = True) -> MetaLearner:
    learner = GUIDES[guide].learner()
    learner.trained_on = TaskRange.of(random_tasks(3, WAY, SHOT, QUERY)) if record else None
    return learner


def unbalanced(episodes: Episodes, most: int) -> Episodes:
    """The same tasks with `most` queries of class 0. The other classes alternate in the other queries."""
    y = torch.arange(episodes.query_y.shape[1]) % (episodes.num_classes - 1) + 1
    y[:most] = 0
    return replace(episodes, query_y=y.expand_as(episodes.query_y))


def said(learner: MetaLearner, episodes: Episodes, door: str) -> list[str]:
    """The warnings of one call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if door == "evaluate":
            evaluate(learner, stream_of(episodes), EvalSettings(tasks=3, samples=2), seed=0)
        else:
            learner.predict(episodes.support_x[0], episodes.support_y[0], episodes.query_x[0], num_samples=2)
    assert all(warning.category is UnfamiliarTasks and warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


@settings(max_examples=80, deadline=None)
@given(
    guide=st.sampled_from(sorted(GUIDES)),
    record=st.booleans(),
    door=st.sampled_from(["evaluate", "predict"]),
    way=st.sampled_from([WAY, WAY, 2, 20]),
    shot=st.sampled_from([SHOT, SHOT, 1, 5]),
    query=st.sampled_from([QUERY, QUERY, 1, 3, 12, 13]),
    balanced=st.booleans(),
    masked=st.booleans(),
)
def test_it_warns_once_and_names_what_is_outside(
    guide: str, record: bool, door: str, way: int, shot: int, query: int, balanced: bool, masked: bool
) -> None:
    """Way, shot, number of queries, and the marginal where labels are known; masked points do not count."""
    learner, episodes = learner_of(guide, record), random_tasks(3, way, shot, query)
    if not balanced:
        episodes = unbalanced(episodes, most=max(1, way * query * 3 // 4))
    if masked and door == "evaluate":
        episodes = with_padding(episodes)
    num_queries, trained = way * query, WAY * QUERY
    share = TaskRange.of(episodes).largest_share or 0
    expected = {
        "classes (trained on": way != WAY,
        f"shot{'s' * (shot > 1)} (trained on": shot != SHOT,
        "queries (trained on": num_queries < trained / 2 or num_queries > 2 * trained,
        "most frequent class": door == "evaluate" and way == WAY and share > 1 / WAY + 0.1,
    }
    lines = said(learner, episodes, door)
    if not (record and guide in TRANSDUCTIVE and any(expected.values())):
        assert lines == []
        return
    (line,) = lines
    assert "\n" not in line and line.startswith("expected tasks like those that this transductive guide was trained on")
    for words, outside in expected.items():
        assert (words in line) == outside, (words, line)


def with_padding(episodes: Episodes) -> Episodes:
    """The same tasks with as many additional masked points."""
    twice = episodes.map_tensors(lambda x: torch.cat((x, x), dim=1) if x.dim() > 1 else x)
    masks = {name: getattr(twice, name).clone() for name in ("support_mask", "query_mask")}
    for mask in masks.values():
        mask[:, mask.shape[1] // 2 :] = False
    return replace(twice, **masks)


@pytest.mark.parametrize(
    ("trained", "met", "warns"), [(0.0, 2.0, True), (2.0, 2.0, False), (2.0, 0.1, True), (2.0, 0.0, False)]
)
def test_the_marginal_is_compared_by_the_share_of_the_largest_class(trained: float, met: float, warns: bool) -> None:
    """Dirichlet concentrations, 0 for balanced queries: less balanced than in training warns."""

    def labels(concentration: float, seed: int) -> Tensor:
        shape = TaskShape(way=5, shot=1, query=15, query_concentration=concentration)
        return shape.query_points(torch.Generator().manual_seed(seed))[0][:32]

    tasks = random_tasks(32, 5, 1, 15)
    one, other = (TaskRange.of(replace(tasks, query_y=labels(a, seed))) for a, seed in ((trained, 0), (met, 1)))
    assert any("most frequent class" in line for line in one.differences(other)) == warns


def test_numbers_have_shots_and_queries_alone() -> None:
    tasks = random_regressions(whole=True)
    trained = TaskRange.of(tasks)
    assert trained == TaskRange(0, (3, 3), (4, 4), None)
    assert TaskRange.of(random_regressions(support=5, query=9, whole=True)).way == 0
    assert len(trained.differences(TaskRange.of(random_regressions(support=5, query=9, whole=True)))) == 2


# ---------------------------------------------------------------- who records it, and who keeps it


def trained(folder: Path, steps: int, guide: str = "sib") -> MetaLearner:
    tasks = random_tasks(64, WAY, SHOT, QUERY)
    stream = TaskStream(lambda generator: tasks, seed=0, split="train")
    train = TrainSettings(steps=steps, tasks_per_step=2, validate_every=1, validation_tasks=2)
    fabric = Fabric(accelerator="cpu", devices=1)
    return MetaTraining(GUIDES[guide].learner(), stream, stream, train, folder, fabric, {}).run()


def test_the_training_records_it_and_a_resumed_one_keeps_it(tmp_path: Path) -> None:
    expected = TaskRange(WAY, (SHOT, SHOT), (WAY * QUERY, WAY * QUERY), pytest.approx(1 / WAY))
    assert trained(tmp_path, 1).trained_on == expected
    assert trained(tmp_path, 2).trained_on == expected
    assert MetaLearner.load(tmp_path).trained_on == expected


@pytest.mark.parametrize("record", [True, False])
def test_a_saved_learner_keeps_it(tmp_path: Path, record: bool) -> None:
    learner = learner_of("sib", record)
    learner.save(tmp_path / "learner.pt")
    assert MetaLearner.load(tmp_path / "learner.pt").trained_on == learner.trained_on
    assert (learner.trained_on is None) != record


def test_a_checkpoint_without_a_record_is_silent(tmp_path: Path) -> None:
    """As written by earlier versions."""
    state: dict[str, Any] = {"learner": learner_of("sib").portable()}
    del state["learner"]["trained_on"]
    checkpoint.save(tmp_path / "old.pt", state)
    learner = MetaLearner.load(tmp_path / "old.pt")
    assert learner.trained_on is None and said(learner, random_tasks(3, 20, 5, 1), "evaluate") == []


@pytest.mark.parametrize(
    "wrong", [{"way": 5}, [1, 2], {"way": "a", "shot": [1, 1], "query": [1, 1], "largest_share": 1}]
)
def test_a_damaged_record_is_one_line(tmp_path: Path, wrong: Any) -> None:
    state = {"learner": learner_of("sib").portable() | {"trained_on": wrong}}
    checkpoint.save(tmp_path / "wrong.pt", state)
    with pytest.raises(pyro_metabayes.UsageError, match="expected a learner of this package at"):
        MetaLearner.load(tmp_path / "wrong.pt")


def test_a_classifier_warns_of_its_queries_and_not_in_fit() -> None:
    """`fit` tries one query; `predict` has those of the user."""
    tasks = random_tasks(1, WAY, SHOT, QUERY)
    support, labels, query = (x[0].numpy() for x in (tasks.support_x, tasks.support_y, tasks.query_x))
    classifier = FewShotClassifier(learner_of("sib"), num_samples=2).fit(support, labels)
    classifier.predict(query)
    with pytest.warns(UnfamiliarTasks, match=r"got 1 query \(trained on 18\)"):
        classifier.predict(query[:1])


def test_a_command_says_it_in_one_line(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, once per evaluation; a run itself and an inductive guide say nothing."""
    monkeypatch.chdir(tmp_path)
    small = ["data=features", f"data.path={features}", "task.query=3", "train.steps=1", "eval.tasks=80"]
    small += ["train.validation_tasks=8", "guide.synthetic_gradient=equivariant", "guide=sib", "hydra.run.dir=run"]
    assert "warning: " not in ran("run", *small).err
    assert checkpoint_of(Path("run"))["best"]["trained_on"]["way"] == 5
    assert "warning: " not in ran("evaluate", "run", "eval.tasks=8").err
    assert "warning: " not in ran("evaluate", "run", "task.way=4", "guide.num_steps=0").err  # inductive
    (line,) = [
        line for line in ran("evaluate", "run", "task.way=4", "task.shot=3").err.splitlines() if "warning" in line
    ]
    assert line.startswith("warning: expected tasks like those that this transductive guide was trained on, ")
    assert "4 classes (trained on 5), 3 shots (trained on 1)" in line and ".py" not in line
    marginal = ran("evaluate", "run", "task.query_concentration=0.5", "eval.tasks=32").err
    assert marginal.count("warning: ") == 1 and "most frequent class" in marginal


def test_what_is_refused_is_not_warned_of() -> None:
    """A guide for one number of classes: a warning would be an error here, and another than that of the mistake."""
    learner, tasks = Pair(settings=STEPS).learner(), random_tasks(3, 4)
    learner.trained_on = TaskRange.of(random_tasks(3, WAY, SHOT, QUERY))
    with pytest.raises(pyro_metabayes.UsageError, match="expected tasks of 3 classes"):
        evaluate(learner, stream_of(tasks), EvalSettings(tasks=3, samples=2), seed=0)
    with pytest.raises(pyro_metabayes.UsageError, match="expected tasks of 3 classes"):
        learner.predict(tasks.support_x[0], tasks.support_y[0], tasks.query_x[0])
