"""The plot of the study spinning_lines: inferred slopes, and the KL divergence of each seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.collapse.closed_forms import information
from pyro_metabayes.experiments.runs.plots import legend_below, new_figure, save_figure
from pyro_metabayes.experiments.runs.setup import set_up
from pyro_metabayes.experiments.studies.study import Row, read
from pyro_metabayes.learner import MetaLearner
from pyro_metabayes.prediction.moments import mean_of


@torch.no_grad()
def draw_lines(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """Plot the mean slope under q against the optimal estimate E[w | inputs], and KL(q, p_psi) of each seed.

    Each named row gets a panel of slopes. Returns the path of the plot, or None if no row has one of the names.
    """
    plotted_rows = [row for row in rows if row.label in names]
    if not plotted_rows:
        return None
    figure, axes = new_figure(len(plotted_rows) + 1)
    figure.set_size_inches(3.1 * len(axes), 3.1)
    for axis, row in zip(axes, plotted_rows, strict=False):
        _draw_slopes(axis, row, folder)
    axes[0].set_ylabel("slope")
    legend_below(axes[0])
    _draw_kl(axes[-1], rows, folder)
    return save_figure(figure, folder / "lines.png")


def _draw_kl(axis: Any, rows: Sequence[Row], folder: Path) -> None:
    """Plot KL(q, p_psi) of each seed, at one height per row of the study, and the optimal value."""
    for number, row in enumerate(rows):
        kl = [run["kl"] for run in row.results(folder)]
        axis.plot(kl, [-number] * len(kl), "o", color="C0")
    config = rows[0].results(folder)[0]["config"]
    optimum = information(config["data"], config["task"]["query"])
    axis.axvline(optimum, color="black", lw=0.8, label=f"I(w; x) = {optimum:.4f}")
    legend_below(axis)
    axis.set_yticks([-number for number in range(len(rows))], [row.label for row in rows], fontsize=7)
    axis.set(title="KL(q, p_psi) of every seed", xlabel="nats per task")
    axis.title.set_fontsize(9)


def _draw_slopes(axis: Any, row: Row, folder: Path) -> None:
    run = row.folder(folder, 0)
    config, results = saved_config(run, []), read(run)
    tasks, learner = set_up(config, training=False).tasks, MetaLearner.load(run)
    observed = tasks.stream("test").batch(0, config.eval.tasks).observed()
    assert tasks.truth is not None
    posteriors = tasks.truth.truth(observed), learner.guide.posterior(observed)
    optimal, inferred = (mean_of(posterior).flatten() for posterior in posteriors)
    ends = [optimal.min(), optimal.max()]
    axis.plot(ends, ends, color="black", lw=0.8, label="E[w | x]")
    axis.plot(optimal, inferred, ".", ms=3, label="inferred")
    axis.set(
        xlabel="E[w | x]", title=f"{row.label}\nseed 0: MSE {results['mse']:.4f} (E[w | x] {results['oracle_mse']:.4f})"
    )
    axis.title.set_fontsize(8)
