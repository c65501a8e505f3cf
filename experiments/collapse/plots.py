"""The pictures of a study; None where the chosen parts have nothing to draw."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_metabayes.diagnostics.collapse import COLLAPSED_DISAGREEMENT, COLLAPSED_LOGIT_SD
from pyro_metabayes.experiments.cli.config import saved_config
from pyro_metabayes.experiments.runs.assembly import Assembly
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure
from pyro_metabayes.experiments.studies.study import Row, read
from pyro_metabayes.learner import MetaLearner

FLOOR = 2e-4  # where a disagreement of 0 is drawn on a logarithmic axis


def training(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """relative_sd of the first seed over the steps; a panel a part where parts share their labels."""
    shown = [row for row in rows if row.label in names]
    if not shown:
        return None
    shared = max(Counter(row.label for row in shown).values(), default=0) > 1
    panels = _by_part(shown) if shared else {"": shown}
    figure, axes = new_figure(len(panels))
    figure.set_size_inches(4.6 * len(panels) + 2.6, 3.6)
    for axis, (part, its) in zip(axes, panels.items(), strict=True):
        for row in its:
            axis.plot(*_logged(row.folder(folder, 0), "relative_sd"), label=row.label)
        axis.set(yscale="log", xlabel="meta-training step", title=part)
    axes[0].set_ylabel("sd / mean of the weights under the prior")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return save_figure(figure, folder / "training.png")


def samples(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """sd of the conditional prior over the true one against L, with the L below which it must collapse."""
    parts = [part for part in names if any(row.part == part for row in rows)]
    if not parts:
        return None
    figure, (axis,) = new_figure(1)
    figure.set_size_inches(5.4, 3.6)
    axis.axhline(1, color="black", lw=0.8)
    counts: list[int] = []
    for number, part in enumerate(parts):
        runs = [_results(row, folder) for row in rows if row.part == part]
        counts = sorted({*counts, *(mine := [its[0]["config"]["train"]["particles"] for its in runs])})
        ratios = np.array([[run["sd_ratio"] for run in its] for its in runs])
        joint = runs[0][0]["config"]["objective"]["joint"]
        name, color = "joint" if joint else "per point", f"C{number}"
        _with_range(axis, mine, ratios, color=color, label=f"mc {name}")
        critical = critical_samples(runs[0][0], joint)
        axis.axvline(critical, color=color, ls="--", lw=1, label=f"{name}: a point below L = {critical:.1f}")
    axis.set(xscale="log", xlabel="samples L in training", ylabel="sd of p(w | support) / true")
    axis.set_title("mean, lowest and highest of the seeds", fontsize=9)
    axis.set_xticks(counts, [str(count) for count in counts], minor=False)
    axis.set_xticks([], minor=True)
    axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, folder / "samples.png")


def critical_samples(results: Mapping[str, Any], joint: bool) -> float:
    """L_crit = 1 + noise^2 / (M_eff v), v = 1 / (1 / scale^2 + n / noise^2), M_eff = M jointly, else 1."""
    data, task = results["config"]["data"], results["config"]["task"]
    variance = 1 / (data["scale"] ** -2 + task["shot"] / data["noise"] ** 2)
    return float(1 + data["noise"] ** 2 / ((task["query"] if joint else 1) * variance))


def shots(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """sd of p(w | support) against the size of the support set; trained at one size."""
    shown = [row for row in rows if row.label in names]
    if not shown:
        return None
    figure, (axis,) = new_figure(1)
    figure.set_size_inches(5.4, 3.6)
    points = np.zeros(0)
    for row in shown:
        run = row.folder(folder, 0)
        results = sorted(map(read, [run, *(run / "evaluations").glob("task.shot=*")]), key=lambda its: its["shot"])
        points = np.array([its["shot"] for its in results])
        data = results[0]["config"]["data"]
        true = (data["scale"] ** -2 + points / data["noise"] ** 2) ** -0.5
        fit = [its["sd_ratio"] * sd for its, sd in zip(results, true, strict=True)]
        exact = row.label == "exact"
        axis.plot(points, fit, "k-" if exact else "o-", lw=2 if exact else 1.2, label=row.label)
    axis.set(xscale="log", xlabel="points of support", ylabel="sd of p(w | support)")
    axis.set_xticks(points, [str(count) for count in points])
    axis.set_xticks([], minor=True)
    axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, folder / "shots.png")


def verdict(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """What draws from the prior do to logits and to decisions; shaded: collapsed."""
    alive = [row for row in rows if _results(row, folder)[0]["collapsed"] is not None]
    if not alive:
        return None
    panels = _by_part(alive)
    figure, axes = new_figure(len(panels))
    figure.set_size_inches(4.2 * len(panels) + 2.8, 3.6)
    for axis, (part, its) in zip(axes, panels.items(), strict=True):
        axis.fill_between([1e-3, COLLAPSED_LOGIT_SD], FLOOR / 2, COLLAPSED_DISAGREEMENT, color="0.9")
        for number, row in enumerate(its):
            runs = _results(row, folder)
            decided = [max(run["disagreement"], FLOOR) for run in runs]
            axis.plot(
                [run["logit_sd"] for run in runs], decided, "^o"[number < 10], color=f"C{number % 10}", label=row.label
            )
        axis.set(xscale="log", yscale="log", xlabel="sd of logits under the prior, nats", title=part)
    axes[0].set_ylabel(f"share of draws that decide otherwise (0 at {FLOOR:g})")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return save_figure(figure, folder / "verdict.png")


@torch.no_grad()
def lines(names: Sequence[str], rows: Sequence[Row], folder: Path) -> Path | None:
    """Spinning lines: slopes given to tasks against the best guess from their inputs; the nats that it took."""
    shown = [row for row in rows if row.label in names]
    if not shown:
        return None
    figure, axes = new_figure(len(shown) + 1)
    figure.set_size_inches(3.1 * len(axes), 3.1)
    for axis, row in zip(axes, shown, strict=False):
        _draw_slopes(axis, row, folder)
    axes[0].set_ylabel("slope")
    axes[0].legend(frameon=False, fontsize=8)
    for number, row in enumerate(rows):
        kl = [run["kl"] for run in _results(row, folder)]
        axes[-1].plot(kl, [-number] * len(kl), "o", color="C0")
    config = _results(rows[0], folder)[0]["config"]
    goal = information(config["data"], config["task"]["query"])
    axes[-1].axvline(goal, color="black", lw=0.8, label=f"I(w; x) = {goal:.4f}")
    axes[-1].legend(frameon=False, fontsize=8)
    axes[-1].set_yticks([-number for number in range(len(rows))], [row.label for row in rows], fontsize=7)
    axes[-1].set(title="KL(q, p_psi) of every seed", xlabel="nats a task")
    axes[-1].title.set_fontsize(9)
    return save_figure(figure, folder / "lines.png")


def _draw_slopes(axis: Any, row: Row, folder: Path) -> None:
    run = row.folder(folder, 0)
    config, results = saved_config(run, []), read(run)
    assembly, learner = Assembly(config), MetaLearner.load(run)
    observed = assembly.stream("test").batch(0, config.eval.tasks).observed()
    assert assembly.truth is not None
    best, given = (its.mean.flatten() for its in (assembly.truth.truth(observed), learner.guide.posterior(observed)))
    ends = [best.min(), best.max()]
    axis.plot(ends, ends, color="black", lw=0.8, label="E[w | x]")
    axis.plot(best, given, ".", ms=3, label="inferred")
    axis.set(
        xlabel="E[w | x]", title=f"{row.label}\nseed 0: MSE {results['mse']:.4f} (E[w | x] {results['oracle_mse']:.4f})"
    )
    axis.title.set_fontsize(8)


def information(data: Mapping[str, Any], num_points: int) -> float:
    """I(w; x) = log(1 + scale^2 / (n slope_scale^2)) / 2 nats: the goal of KL(q, p_psi)."""
    scale, slope_scale = data.get("scale", 1.0), data.get("slope_scale", 0.1)
    return float(0.5 * np.log1p(scale**2 / (num_points * slope_scale**2)))


PICTURES: dict[str, Callable[[Sequence[str], Sequence[Row], Path], Path | None]] = {
    picture.__name__: picture for picture in (training, samples, shots, verdict, lines)
}


def _by_part(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {part: [row for row in rows if row.part == part] for part in dict.fromkeys(row.part for row in rows)}


def _results(row: Row, folder: Path) -> list[dict[str, Any]]:
    return [read(row.folder(folder, seed)) for seed in range(row.seeds)]


def _logged(run: Path, name: str) -> tuple[list[int], list[float]]:
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    known = [line for line in logged if line[name] is not None]
    return [line["step"] for line in known], [line[name] for line in known]


def _with_range(axis: Any, x: Sequence[float], y: NDArray[Any], **style: Any) -> None:
    """Means over seeds [rows, seeds] with bars from the lowest to the highest."""
    mean = y.mean(1)
    axis.errorbar(x, mean, yerr=[mean - y.min(1), y.max(1) - mean], fmt="o-", ms=4, capsize=3, **style)
