"""Queries of the evaluation tasks of a run, with their predicted classes."""

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
    """Queries of all tasks with their predictions. Tensors are on the CPU, with shape [queries] unless given.

    Args:
        task: index of the task.
        candidates: the classes of the task, as indices of `names` [queries, way].
        row: index of the query in the data set.
        true, predicted: true and predicted class, as indices of `names`.
        probability: predicted probability of the predicted class.
        spread: standard deviation of this probability over draws of the posterior.
        entropy: entropy of the prediction, in nats.
        names: names of all classes of the data set.
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
        """Return the queries with these indices."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return type(self)(**{key: value if key == "names" else value[index] for key, value in values.items()})

    def wrong(self, most: int) -> Self:
        """Return at most `most` wrongly predicted queries, in decreasing order of the predicted probability.

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
    """Predict the queries of the first eval.tasks tasks of the evaluation split. The seed of the run fixes the result.

    Raises:
        UsageError: the data are not a data set of classes, eval.temperature or eval.ensemble is set, or eval.split is
            train in a run with pretrain.views.
    """
    config, source = setup.config, setup.tasks.source
    if type(source) is not BankSampler:
        raise UsageError(
            f"expected a run on a data set of classes, got data={config.choices.get('data')}"
            f"{' with task.base_query' * bool(config.task.base_query)}; give another run"
        )
    if config.eval.temperature or config.eval.ensemble:
        raise UsageError(
            "expected eval.temperature=false and no eval.ensemble, got a temperature or an ensemble; set "
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
    """Return the evaluation tasks, and the same tasks with indices of the data set in place of inputs."""
    config, split = setup.config, setup.config.eval.split
    if split == "train" and source.bank.views is not None:
        raise UsageError(
            "expected eval.split=val or test for a run with pretrain.views, got eval.split=train; set eval.split=test"
        )
    tasks, draw = setup.tasks.stream(split), source.rows_sampler(split, config.task.of(split))
    return tasks, TaskStream(lambda generator: draw(generator).rows, config.seed, split, tasks.num_tasks)


def _of_batch(setup: RunSetup, tasks: Episodes, rows: Episodes) -> dict[str, Tensor]:
    """Return the fields of `Classified` for a batch of tasks, and the number of queries of each task.

    Args:
        setup: the run.
        tasks: the tasks.
        rows: the same tasks with indices of the data set in place of inputs.
    """
    learner, episodes = setup.learner, setup.learner.featured(tasks)
    samples = setup.config.eval.draws(episodes.num_classes)
    posterior = learner.guide.posterior(episodes.observed())
    predictions = predictions_under(posterior, learner.model, episodes, samples)
    assert isinstance(predictions, ClassPredictions) and rows.classes is not None  # tasks of classes
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
