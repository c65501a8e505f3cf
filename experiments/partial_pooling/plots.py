"""Plots of experiments.partial_pooling: effects with intervals, shrinkage, and the learned prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.exact.hierarchical_nuts import Draws
from pyro_metabayes.exact.mixed_effects import MixedEffects
from pyro_metabayes.experiments.partial_pooling.methods import GroupEstimates, least_squares_effects
from pyro_metabayes.experiments.runs.plots import new_figure, save_figure

MOST_NAMES = 30  # largest number of groups that are named in a plot
WIDEST = 150  # number of characters that fit side by side below a panel
Panel = tuple[str, Tensor, Any]  # title, draws of a parameter by NUTS, function that reads the parameter from estimates


def draw_effects(groups: Groups, methods: Mapping[str, GroupEstimates], folder: Path) -> Path:
    """Plot the 90% intervals of the effects of all groups to effects.png, one panel per effect.

    Groups are in the order of their number of points. They are named if there are at most MOST_NAMES.
    """
    sizes = groups.sizes
    order = sizes.argsort(stable=True)
    figure, axes = new_figure(1, rows=groups.num_own)
    figure.set_size_inches(11.0, 3.2 * groups.num_own + 0.4)
    for i, axis in enumerate(axes):
        for number, (name, estimates) in enumerate(methods.items()):
            place = torch.arange(len(order)) + 0.25 * (number - (len(methods) - 1) / 2)
            reach = estimates.reach[order, i]
            axis.errorbar(
                place, estimates.effects[order, i], yerr=reach, fmt="o", ms=2.5, lw=1, color=f"C{number}", label=name
            )
        axis.axhline(next(iter(methods.values())).coefficients[i].item(), color="black", lw=0.8, ls=":")
        _name_groups(axis, groups, order)
        axis.set(ylabel=groups.features[i], xlim=(-1, len(order)))
    labelled = "and their" if len(order) <= MOST_NAMES else "by their"
    axes[-1].set_xlabel(f"groups {labelled} numbers of points, from the smallest; dotted: mean of the prior")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return save_figure(figure, folder / "effects.png")


def _name_groups(axis: Any, groups: Groups, order: Tensor) -> None:
    """Label groups by name and size. If there are more than MOST_NAMES, label 20 to 39 of them by size alone.

    Names that are wider than the distance of two groups are vertical.
    """
    sizes, few = [int(size) for size in groups.sizes], len(order) <= MOST_NAMES
    step = 1 if few else len(order) // 20
    vertical = few and max(map(len, groups.names)) * len(order) > WIDEST
    between = ", " if vertical else "\n"
    chosen = order[::step].tolist()
    texts = [f"{groups.names[group]}{between}{sizes[group]}" if few else str(sizes[group]) for group in chosen]
    axis.set_xticks(range(0, len(order), step), texts, fontsize=8, rotation=90 if vertical else 0)


def draw_shrinkage(groups: Groups, fitted: MixedEffects, pooled: GroupEstimates, folder: Path) -> Path:
    """Plot a line from the least-squares effects of each group to its partially pooled effects, to shrinkage.png."""
    shared = fitted.coefficients[groups.num_random :]
    episodes = groups.with_equal_precision(groups.whole())
    alone = groups.scales.effects_in_units(least_squares_effects(fitted, episodes), shared)
    figure, axes = new_figure(1)
    figure.set_size_inches(7.0, 4.4)
    sizes = groups.sizes
    if groups.num_random == 1:
        start, end = ((sizes, effects[:, 0]) for effects in (alone, pooled.effects))
        axes[0].axhline(pooled.coefficients[0].item(), color="black", lw=0.8, ls=":", label="mean of the prior")
        axes[0].set(xscale="log", xlabel="points of the group", ylabel=groups.features[0])
        axes[0].xaxis.set_major_formatter("{x:g}")
    else:
        start, end = ((effects[:, 0], effects[:, 1]) for effects in (alone, pooled.effects))
        axes[0].plot(*pooled.coefficients[:2].tolist(), "k+", ms=12, label="mean of the prior")
        axes[0].plot(*_ellipse(pooled), color="black", lw=0.8, ls=":", label="90% of the prior")
        axes[0].set(xlabel=groups.features[0], ylabel=groups.features[1])
    for before, after in zip(zip(*start, strict=True), zip(*end, strict=True), strict=True):
        points = zip(before, after, strict=True)
        axes[0].plot(*([float(value) for value in ends] for ends in points), color="0.75", lw=0.8, zorder=0)
    axes[0].plot([], [], color="0.75", lw=0.8, label="of the same group")
    axes[0].plot(*start, "o", mfc="none", color="C3", ms=4, label="least squares per group")
    axes[0].plot(*end, "o", color="C0", ms=4, label="partially pooled (amortized)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return save_figure(figure, folder / "shrinkage.png")


def _ellipse(pooled: GroupEstimates) -> list[Tensor]:
    """Return the x and y values of the ellipse that contains 90% of the prior mass of two effects."""
    angle = torch.linspace(0, 2 * torch.pi, 100, dtype=torch.float64)
    rho = pooled.correlation or 0.0
    first = angle.cos()
    second = rho * first + (1 - rho**2) ** 0.5 * angle.sin()
    radius = (-2 * torch.tensor(0.1).log()).sqrt()
    return [pooled.coefficients[i] + radius * pooled.sd[i] * effect for i, effect in enumerate((first, second))]


def draw_prior(groups: Groups, draws: Draws, methods: Mapping[str, Sequence[GroupEstimates]], folder: Path) -> Path:
    """Plot the parameters of the prior (sds over groups, correlation, noise) to prior.png.

    Histograms show draws by NUTS. Lines show the point estimates of the other methods.
    """
    panels = _prior_panels(groups, draws)
    rows = (len(panels) + 1) // 2
    figure, axes = new_figure(2, rows)
    figure.set_size_inches(9.0, 2.6 * rows + 0.6)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_parameter(axis, panel, methods)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return save_figure(figure, folder / "prior.png")


def _prior_panels(groups: Groups, draws: Draws) -> list[Panel]:
    covariance = groups.scales.covariance_in_units(draws.covariance)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    panels: list[Panel] = [
        (f"sd of {groups.features[i]}", sd[:, i], lambda estimates, i=i: estimates.sd[i].item())
        for i in range(groups.num_random)
    ]
    if groups.num_random > 1:
        rho = covariance[:, 0, 1] / sd[:, 0] / sd[:, 1]
        panels.append(("correlation", rho, lambda estimates: estimates.correlation))
    panels.append(("noise", draws.noise * groups.noise_scale, lambda estimates: estimates.noise))
    return panels


def _draw_parameter(axis: Any, panel: Panel, methods: Mapping[str, Sequence[GroupEstimates]]) -> None:
    """Plot the histogram of the draws of NUTS of one parameter, and one line per method and seed."""
    title, values, parameter = panel
    axis.hist(values.numpy(), bins=40, density=True, color="0.8", label="NUTS, weak priors")
    for number, (name, seeds) in enumerate(methods.items()):
        for seed, estimates in enumerate(seeds):
            style = {"color": f"C{number}", "ls": ("-", "--", "-.", ":", "-")[number % 5], "lw": 1.4}
            axis.axvline(parameter(estimates), **style, label=name if seed == 0 else None)
    axis.set(title=title, yticks=[])
