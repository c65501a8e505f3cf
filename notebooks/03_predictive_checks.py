# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Prior and posterior predictive checks
#
# A learner that predicts probabilities claims that labels look like draws from its predictive distribution. This
# notebook draws labels from the prior and from the posterior, compares them with the observed labels, measures
# calibration, and shows where the model fails.
#
# **How to open this.** GitHub shows this notebook with its outputs. To run it, in the root of a clone, with Python 3.11
# to 3.13:
#
# ```
# pip install '.[experiments]'
# pip install jupyterlab
# jupyter lab notebooks/03_predictive_checks.ipynb
# ```
#
# `notebooks/03_predictive_checks.py` has the same text. CPU builds of torch and more: [Install](../docs/install.md).

# %% [markdown]
# ## The data beside both predictive distributions
#
# A predictive distribution is what the model expects before it sees the labels. To draw from it, draw weights w, then
# labels y given w. With w from the prior it is the prior predictive, with w from the posterior the posterior
# predictive. Data that lie outside both contradict the model.
#
# The tasks of this section are lines: eight labelled points (the support set) and forty points to predict (the query
# set). The model knows the prior and the noise of the lines, and its posterior is exact, so nothing is trained. A second
# set of tasks has curves, which the model does not know: it still fits lines.

# %%
import torch

from pyro_metabayes import Episodes, MetaLearner
from pyro_metabayes.diagnostics.predictive import Discrepancy, discrepancies, predictive_draws
from pyro_metabayes.guides import exact
from pyro_metabayes.models import linear_regression, priors
from pyro_metabayes.models.backbones import identity
from pyro_metabayes.objectives.elbo import Elbo

# %matplotlib inline


def regression_tasks(curvature: float) -> Episodes:
    """200 tasks y = a + b x + curvature (x^2 - 1/3) + noise, with a, b ~ N(0, 1) and noise of sd 0.3."""
    x = 2 * torch.rand(200, 48, 1) - 1
    inputs = torch.cat((torch.ones_like(x), x), -1)
    y = inputs @ torch.randn(200, 2, 1) + curvature * (x.square() - 1 / 3) + 0.3 * torch.randn(200, 48, 1)
    return Episodes(support_x=inputs[:, :8], support_y=y[:, :8], query_x=inputs[:, 8:], query_y=y[:, 8:])


torch.manual_seed(0)
prior = priors.Gaussian(num_weights=2, scale=1.0)
model = linear_regression.Model(prior, num_targets=1, num_features=2, noise=0.3)
line = MetaLearner(identity.Backbone([2], normalise=False), model, exact.Guide(model), Elbo())
kinds = {"lines": regression_tasks(0.0), "curves": regression_tasks(2.0)}
drawn = {kind: predictive_draws(line, episodes, num_samples=500) for kind, episodes in kinds.items()}

# %% alt="Bands of 90% of the draws, with the labels of one task: wide under the prior, narrow around a line, and off the labels of a curve"
from typing import Any

from pyro_metabayes.experiments.runs.plots import legend_below, new_figure


def beside_data(axis: Any, y: torch.Tensor, episodes: Episodes) -> None:
    """The central 90% of the draws y [L, Q] for the first task, and its data."""
    x, order = episodes.query_x[0, :, 1], episodes.query_x[0, :, 1].argsort()
    low, middle, high = y[:, order].quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
    axis.fill_between(x[order], low, high, color="C0", alpha=0.25, lw=0, label="90% of draws")
    axis.plot(x[order], middle, color="C0", lw=1, label="median")
    axis.plot(x, episodes.query_y[0, :, 0], ".", color="C3", label="query labels")
    axis.plot(episodes.support_x[0, :, 1], episodes.support_y[0, :, 0], "ko", ms=5, label="support labels")
    axis.set(xlabel="x", xticks=(-1, -0.5, 0, 0.5, 1), ylim=(-4, 4))


figure, axes = new_figure(3)
beside_data(axes[0], drawn["lines"].prior.y[:, 0, :, 0], kinds["lines"])
beside_data(axes[1], drawn["lines"].posterior.y[:, 0, :, 0], kinds["lines"])
beside_data(axes[2], drawn["curves"].posterior.y[:, 0, :, 0], kinds["curves"])
titles = ("a line: prior predictive", "the same line: posterior predictive", "a curve: posterior predictive")
for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title, fontsize=10)
legend_below(axes[1], 2)
figure

# %% [markdown]
# The prior predictive contains most of the labels, but says little about them. The posterior predictive of a line follows
# the labels and still contains most of them. The posterior predictive of a curve is as narrow, and misses many labels.
#
# ## Calibration, and where the model fails
#
# One task proves little, so the next plots are about 200 tasks of each kind. Left: how many labels lie inside the
# central intervals of each level. Middle: the same for the 90% interval, by x. Right: the p-value of a task is the share of
# replicates, labels drawn from the model, whose negative log-likelihood (NLL) is larger than that of the observed
# labels. For a good model the p-values of many tasks are spread over all of (0, 1).

# %% alt="Share of labels inside intervals, by level and by x, and p-values of 200 tasks: calibrated for lines, too few labels inside and p-values near 0 for curves"
from itertools import pairwise

import numpy as np


def levels(y: torch.Tensor, observed: torch.Tensor) -> np.ndarray:
    """The level of the smallest central interval of the draws y [L, T, Q, 1] that contains each label [T, Q]."""
    below = (y < observed).float().mean(0).squeeze(-1)
    return (2 * below - 1).abs().numpy()


rows = {
    "lines, prior": (levels(drawn["lines"].prior.y, kinds["lines"].query_y), "lines", "C7"),
    "lines, posterior": (levels(drawn["lines"].posterior.y, kinds["lines"].query_y), "lines", "C0"),
    "curves, posterior": (levels(drawn["curves"].posterior.y, kinds["curves"].query_y), "curves", "C3"),
}
nominal, edges = np.linspace(0.05, 0.95, 19), np.linspace(-1, 1, 11)

figure, axes = new_figure(3)
for name, (values, kind, color) in rows.items():
    x = kinds[kind].query_x[..., 1].numpy()
    by_x = [100 * (values[(x >= low) & (x < high)] < 0.9).mean() for low, high in pairwise(edges)]
    axes[0].plot(100 * nominal, [100 * (values < level).mean() for level in nominal], color=color, label=name)
    axes[1].plot((edges[:-1] + edges[1:]) / 2, by_x, "o-", ms=4, color=color, label=name)
for kind, color in (("lines", "C0"), ("curves", "C3")):
    samples = predictive_draws(line, kinds[kind], num_samples=100)
    found = discrepancies(line, kinds[kind].observed(), samples.posterior, kinds[kind].query_y)["nll"]
    axes[2].hist(found.p_values, np.linspace(0, 1, 11), color=color, alpha=0.5, label=f"{kind}, posterior")
axes[0].plot([0, 100], [0, 100], "k:", lw=0.8)
axes[0].set(title="labels inside, %", xlabel="level of the interval, %")
axes[1].axhline(90, color="black", ls=":", lw=0.8)
axes[1].set(title="labels inside the 90% interval, %", xlabel="x", xticks=(-1, -0.5, 0, 0.5, 1), ylim=(0, 102))
axes[2].set(title="p-values of 200 tasks", xlabel="p", ylabel="tasks")
for axis in axes:
    legend_below(axis, 1)
figure

# %% [markdown]
# Prior and posterior are both calibrated for lines. For curves the posterior predictive is overconfident: its intervals
# contain too few labels, and p is near 0. Most labels are missed at both ends and in the middle, where a line cannot follow a
# curve. So the check names the assumption that fails. The remedy is a model with another feature, x squared.
#
# ## A trained classifier
#
# The same check for a learner that is trained: five classes, one labelled point per class.

# %%
# !metabayes run guide=sib data=gaussian_features data.num_features=64 data.separation=0.6 train.steps=200 train.validation_tasks=50 eval.tasks=100 hydra.run.dir=runs/checked

# %% [markdown]
# The discrepancy T(y) is the NLL of the query labels of a task. It is computed for the observed labels and for fifty
# replicates; another fifty draws of w score both. A p-value near 0 means that the model is overconfident, a p-value near 1 that it is underconfident.

# %%
from pyro_metabayes.experiments.runs.restore_run import run_and_tasks


def checked(*changed: str) -> dict[str, Discrepancy]:
    """The discrepancy of 64 test tasks with some settings changed, under the posterior and under the prior."""
    setup, episodes = run_and_tasks("runs/checked", changed, num_tasks=64)
    draws = predictive_draws(setup.learner, episodes, num_samples=100)
    both = {"posterior": draws.posterior, "prior": draws.prior}
    return {
        name: discrepancies(setup.learner, episodes.observed(), samples, episodes.query_y)["nll"]
        for name, samples in both.items()
    }


as_trained = checked()
print({name: tuple(discrepancy.replicated.shape) for name, discrepancy in as_trained.items()}, "replicates, tasks")

# %% [markdown]
# The query labels are not passed to the model. If they were, the model would condition on them, every replicate would
# equal the observed labels, and every check would pass.
#
# Boxes show the NLL of the replicates for sixteen tasks, points the NLL of the observed labels. After this short
# training the posterior is underconfident on most tasks: the observed NLL is lower than expected. The prior (right)
# has no information about a task, so it expects the NLL of guessing, log 5 = 1.61.

# %% alt="Boxes of the replicated NLL of 16 tasks and points of the observed NLL: below most boxes under the posterior, inside most boxes under the prior"
figure, axes = new_figure(2)
for axis, (name, discrepancy) in zip(axes, as_trained.items(), strict=True):
    order = discrepancy.observed[:16].argsort()
    boxes = axis.boxplot(discrepancy.replicated[:, order].numpy(), whis=(5, 95), showfliers=False, widths=0.6)
    boxes["boxes"][0].set_label("replicates")
    axis.plot(range(1, 17), discrepancy.observed[order], "oC3", ms=4, label="observed")
    axis.set(
        title=f"labels drawn from the {name}", xlabel="tasks, by their NLL", ylabel="NLL, nats per query", xticks=[]
    )
    legend_below(axis)
figure

# %% [markdown]
# ## Tasks that differ from training
#
# Now noise is added to the features of the test tasks; the learner was trained without it. The accuracy must fall.
# The check shows whether the probabilities account for that.

# %% alt="Left: observed against expected NLL of 64 tasks, above the diagonal with noise. Right: distribution of p-values, near 0 with noise 1"
worlds = {"as trained": as_trained["posterior"]}
worlds |= {f"noise {noise:g}": checked(f"task.feature_noise={noise}")["posterior"] for noise in (0.5, 1.0)}

figure, axes = new_figure(2)
for number, (name, discrepancy) in enumerate(worlds.items()):
    axes[0].scatter(discrepancy.replicated.mean(0), discrepancy.observed, s=12, color=f"C{number}", label=name)
    shares = np.sort(discrepancy.p_values.numpy())
    axes[1].plot(shares, (np.arange(len(shares)) + 0.5) / len(shares), color=f"C{number}", label=name)
most = max(discrepancy.observed.max().item() for discrepancy in worlds.values())
axes[0].plot([0, most], [0, most], "k:", lw=0.8)
axes[0].set(title="NLL of 64 tasks", xlabel="expected by the model", ylabel="observed")
axes[1].plot([0, 1], [0, 1], "k:", lw=0.8)
axes[1].set(title="p-values: share of tasks below", xlabel="p", ylabel="share")
for axis in axes:
    legend_below(axis, 3)
figure

# %% [markdown]
# Calibrated predictions lie on the dotted lines. On tasks as in training the learner lies below the line: it is
# underconfident, with p near 1. With some noise many tasks are above the line: it is overconfident. With more noise it
# expects about half a nat per query and observes about three times as much. There p is 0 for every task.
#
# The confidence of the learner does not reveal this. The check does, with a few labelled tasks of the new kind and no
# training on them.
#
# ## Next
#
# - [Predictive checks](../docs/predictive-checks.md) with one command, for every guide, and as an ArviZ object.
# - [Partial pooling](05_partial_pooling.ipynb), where the posterior can be compared with the exact one.
