"""The queries of the evaluation tasks of a run, with their predicted classes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import pyro
import torch
from torch import Tensor

from pyro_metabayes.data.sampler import BankSampler
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.task_scores import predictions_under
from pyro_metabayes.experiments.runs.restore_run import batches
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.likelihoods.classes import ClassPredictions
from pyro_metabayes.prediction.averages import most_probable
from pyro_metabayes.seeding import noise_of


@dataclass(frozen=True, eq=False)
class Classified:
    """Queries of all tasks [N], on the host.

    Args:
        task: index of the task.
        candidates: [N, C], the classes of the task.
        row: row of the query in the bank.
        true, predicted: classes, as numbers of the bank.
        probability: of the predicted class.
        spread: standard deviation of that probability over draws of the posterior.
        entropy: of the prediction, in nats.
        names: [G], the classes of the bank.
    """

    task: Tensor
    candidates: Tensor
    row: Tensor
    true: Tensor
    predicted: Tensor
    probability: Tensor
    spread: Tensor
    entropy: Tensor
    names: list[str]

    @property
    def accuracy(self) -> float:
        """Share of the queries whose predicted class is correct."""
        return (self.true == self.predicted).double().mean().item()

    def at(self, index: Tensor) -> Self:
        """The queries at `index` [n]."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return type(self)(**{key: value if key == "names" else value[index] for key, value in values.items()})

    def wrong(self, most: int) -> Self:
        """The wrongly predicted queries with the largest probability, the most probable first; at most `most`.

        An input that is a query of several tasks appears once, with its most probable error.
        """
        wrong = (self.true != self.predicted).nonzero().squeeze(1)
        order = wrong[self.probability[wrong].argsort(descending=True, stable=True)]
        of_input: dict[int, int] = {}
        for index, row in zip(order.tolist(), self.row[order].tolist(), strict=True):
            of_input.setdefault(row, index)
        return self.at(torch.tensor(list(of_input.values())[:most], dtype=torch.int64))


@torch.no_grad()
def classified_queries(setup: RunSetup) -> Classified:
    """The queries of the first eval.tasks tasks of the evaluation split; deterministic given the seed of the run.

    Raises:
        UsageError: the tasks are not of a bank of classes, or the settings ask for other predictions.
    """
    config, source = setup.config, setup.tasks.source
    if type(source) is not BankSampler:
        raise UsageError(
            f"expected a run on a bank of classes for errors, got data={config.choices.get('data')}"
            f"{' with task.base_query' * bool(config.task.base_query)}, whose tasks have no lasting classes"
        )
    if config.eval.temperature or config.eval.ensemble:
        raise UsageError(
            "expected no eval.temperature and no eval.ensemble for errors, which are those of the run itself; set "
            "eval.temperature=false eval.ensemble=[]"
        )
    tasks, rows = (batches(stream, config.eval.tasks) for stream in _streams(setup, source))
    with noise_of(config.seed), pyro.validation_enabled(False):
        parts = [_of_batch(setup, *pair) for pair in zip(tasks, rows, strict=True)]
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    task = torch.arange(config.eval.tasks).repeat_interleave(torch.cat([part.pop("queries") for part in parts]))
    del values["queries"]
    return Classified(task=task, names=list(source.bank.class_names), **values)


def _streams(setup: RunSetup, source: BankSampler) -> tuple[TaskStream, TaskStream]:
    """The evaluation tasks, and the same tasks with rows of the bank in place of inputs."""
    config, split = setup.config, setup.config.eval.split
    if split == "train" and source.bank.views is not None:
        raise UsageError(
            "expected eval.split=val or test for errors of a run with pretrain.views, got train; change it"
        )
    tasks, draw = setup.tasks.stream(split), source.rows_sampler(split, config.task.of(split))
    return tasks, TaskStream(lambda generator: draw(generator).rows, config.seed, split, tasks.num_tasks)


def _of_batch(setup: RunSetup, tasks: Episodes, rows: Episodes) -> dict[str, Tensor]:
    """The fields of `Classified` for the queries of T tasks, and `queries` [T], the number of queries of each."""
    learner, episodes = setup.learner, setup.learner.featured(tasks)
    samples = setup.config.eval.draws(episodes.num_classes)
    posterior = learner.guide.posterior(episodes.observed())
    predictions = predictions_under(posterior, learner.model, episodes, samples)
    assert isinstance(predictions, ClassPredictions) and rows.classes is not None  # of a bank of classes
    mask, classes = episodes.query_mask.cpu(), rows.classes
    best = most_probable(predictions.averaged)
    of_best = predictions.log_probs.exp().gather(-1, best.expand(len(predictions.log_probs), -1, -1).unsqueeze(-1))
    values = {
        "candidates": classes.unsqueeze(1).expand(-1, mask.shape[1], -1),
        "row": rows.query_x,
        "true": classes.gather(1, rows.query_y),
        "predicted": classes.gather(1, best.cpu()),
        "probability": of_best.mean(0).squeeze(-1).cpu(),
        "spread": of_best.std(0, correction=0).squeeze(-1).cpu(),
        "entropy": predictions.entropy.cpu(),
    }
    return {name: value[mask] for name, value in values.items()} | {"queries": mask.sum(1)}
