"""python -m experiments.gold RUN_DIR tasks=32: a trained guide compared with exact inference in the same model.

By default, NUTS samples two exact posteriors: the inductive p(w | support), and p(w | support and query). The posterior
of the guide at test time approximates the first, the training posterior the second. The command reports the
approximation gap and the amortization gap of the guide, and results of importance sampling. Several folders of runs are
compared in one table. Settings of task, eval and guide can be changed.

The command writes table.md, table.csv, gold.png and tasks.npz (the metrics of each task) to RUN_DIR/gold of the first
run. docs/gold.md explains the metrics.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from pyro import validation_enabled

from pyro_metabayes.diagnostics.best_in_family import best_in_family
from pyro_metabayes.diagnostics.gaps import check_density, gaps_of
from pyro_metabayes.diagnostics.gold import NutsSettings, Target, gold_posterior
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation.score import TaskScores
from pyro_metabayes.evaluation.scores import scores_of
from pyro_metabayes.experiments.cli.command import run_program
from pyro_metabayes.experiments.gold.plots import draw
from pyro_metabayes.experiments.gold.tables import Comparison, pages, unconverged, write_tasks
from pyro_metabayes.experiments.runs.restore_run import run_and_tasks, settings_of
from pyro_metabayes.experiments.runs.results import trained_weight
from pyro_metabayes.experiments.runs.tables import save_tables, weight_cell
from pyro_metabayes.inference.capabilities import HasPrototypes
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.model import Model
from pyro_metabayes.seeding import seeded
from pyro_metabayes.storage.paths import user_path


@dataclass
class GoldSettings:
    """Settings of experiments.gold."""

    run: Any = MISSING  # folder of a finished run, or folders of several runs
    tasks: int = 32  # number of evaluation tasks
    targets: list[str] = field(default_factory=lambda: ["support", "all"])  # labels given: support, query, all (both)
    warmup: int = 200  # number of warm-up steps of NUTS
    draws: int = 300  # number of draws of NUTS per chain
    chains: int = 4  # number of chains of NUTS
    together: int = 16  # number of tasks that one chain of NUTS samples jointly
    samples: int = 2000  # number of draws for importance sampling
    fit_steps: int = 600  # number of steps that search for the best member of the guide's family
    noise: int = 0  # seed of all draws

    def check(self) -> NutsSettings:
        if self.samples < 100 or self.fit_steps < 1:
            raise UsageError(
                f"expected samples >= 100 and fit_steps >= 1, got samples={self.samples} and fit_steps={self.fit_steps}"
            )
        return NutsSettings(self.warmup, self.draws, self.chains, self.together)

    @property
    def runs(self) -> list[str]:
        runs = self.run if isinstance(self.run, list) else [self.run]
        return [str(user_path(str(run))) for run in runs]


def measure(learner: MetaLearner, episodes: Episodes, labels: str, settings: GoldSettings) -> Comparison:
    """Compare the posterior and the predictions of a guide with exact inference.

    Args:
        learner: the trained learner.
        episodes: the tasks.
        labels: the labels that both posteriors are given: support, query or all.
        settings: the settings of the command.
    """
    started, target = time.process_time(), Target(learner.model, episodes, labels)
    with torch.no_grad():
        observed, guide = episodes.observed(), learner.guide
        q = guide.posterior(observed) if labels == "support" else guide.training_posterior(episodes)
    check_density(q)
    best = best_in_family(target, q, settings.fit_steps, guide=guide)
    gold = gold_posterior(target, settings.check())
    with torch.no_grad():
        gaps = gaps_of(target, q, best, gold, settings.samples)
        query = episodes.query_y, episodes.query_mask
        scores = scores_of(learner.predictive_under(q, observed, len(gold.w))[1], *query)
        of_gold = scores_of(learner.model.likelihood(gold.w, observed.query_x, observed), *query)
        of_means = prototype_scores(learner.model, episodes)
    seconds = time.process_time() - started
    return Comparison(labels, gaps, gold, scores, of_gold, of_means, learner.guide.transductive, seconds)


def prototype_scores(model: Model, episodes: Episodes) -> TaskScores:
    """Return the scores of classification by class means; {} if the model or the tasks have no class means."""
    observed = episodes.observed()
    if not isinstance(model, HasPrototypes) or not observed.support_x.shape[1]:
        return {}
    likelihood = model.likelihood(model.prototypes(observed).unsqueeze(0), observed.query_x, observed)
    return scores_of(likelihood, episodes.query_y, episodes.query_mask)


def measure_run(folder: str, changed: Sequence[str], settings: GoldSettings) -> list[Comparison]:
    """Restore a run under changed settings, and compare its guide with exact inference, once per entry of `targets`."""
    setup, episodes = run_and_tasks(folder, changed, settings.tasks)
    weight = weight_cell(trained_weight(setup))
    with seeded(settings.noise), validation_enabled(False):
        measured = [measure(setup.learner, episodes, labels, settings) for labels in settings.targets]
    return [replace(comparison, kl_weight=weight) for comparison in measured]


def main(arguments: Sequence[str]) -> None:
    settings, changed = settings_of(GoldSettings, arguments)
    settings.check()
    out, text, comparisons = Path(settings.runs[0]) / "gold", "", {}
    for run in settings.runs:
        comparisons[Path(run).name] = measure_run(run, changed, settings)
        text, page, rows = pages(comparisons)  # after each run, so that an interruption keeps earlier rows
        save_tables(out, page, rows)
        write_tasks(out / "tasks.npz", comparisons)
        draw(comparisons, out / "gold.png")
    print(text)
    for line in unconverged(comparisons):
        print(line, file=sys.stderr)
    print(f"tables, plot and metrics of every task: {out}")


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
