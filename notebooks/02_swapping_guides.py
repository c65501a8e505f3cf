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
# # Swapping guides, and a prior that collapses
#
# A *guide* is Pyro's name for an approximate posterior, here over the weights of a task. This notebook trains four
# guides with the same model on the same tasks. It shows that one training objective makes the prior collapse, while
# another one learns the correct posterior.
#
# **How to open this.** GitHub shows this notebook with its outputs. To run it, in the root of a clone, with Python 3.11
# to 3.13:
#
# ```
# pip install '.[experiments]'
# pip install jupyterlab
# jupyter lab notebooks/02_swapping_guides.ipynb
# ```
#
# `notebooks/02_swapping_guides.py` has the same text. CPU builds of torch and more: [Install](../docs/install.md).

# %% [markdown]
# ## Four guides
#
# `guide=` chooses a guide, and `-m` runs several. The tasks are simulated, so that training takes seconds. A task has five
# Gaussian classes in 64 dimensions, with one labelled point per class (the support set) and points to classify (the query
# set).

# %%
# !metabayes run -m guide=proto,mc,savi,sib data=gaussian_features data.num_features=64 data.separation=0.7 train.steps=300 eval.tasks=200 train.validation_tasks=50 hydra.sweep.dir=runs/guides

# %% [markdown]
# `proto` is a point estimate, the class means. `mc` (VERSA) and `savi` (SAMOVAR) have a conditional prior, which a
# network computes from the support set. `sib` starts at the class means and takes gradient steps on the unlabelled
# queries. `sib` is transductive: its predictions depend on the whole query set. Compare its accuracy only with that of
# other transductive guides.
#
# ## The same prior, two objectives
#
# `mc` and `savi` have the same model and the same prior network. Only the training objective differs, and it decides
# whether the prior collapses. Each run has logged the standard deviation of the logits under draws from the prior:

# %% alt="Accuracy and NLL of proto, mc, savi and sib, and the spread of their priors in training: only that of mc is small"
import json
from pathlib import Path

import numpy as np

from pyro_metabayes.experiments.runs.plots import legend_below, new_figure

# %matplotlib inline

runs = {}
for file in sorted(Path("runs/guides").glob("*/results.json")):
    results = json.loads(file.read_text())
    lines = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
    runs[results["guide"]] = results | {"lines": lines}

figure, axes = new_figure(3)
for place, (name, run) in enumerate(runs.items()):
    fill = "none" if run["transductive"] else f"C{place}"
    bar = {"fmt": "o", "color": f"C{place}", "markerfacecolor": fill}
    axes[0].errorbar(100 * run["accuracy"]["mean"], -place, xerr=100 * run["accuracy"]["ci95"], **bar)
    axes[1].plot(run["nll"], -place, "o", color=f"C{place}", markerfacecolor=fill)
    steps = [(line["step"], line["logit_sd"]) for line in run["lines"] if line["logit_sd"] is not None]
    if steps:
        axes[2].plot(*zip(*steps, strict=True), color=f"C{place}", label=name)
axes[0].set_title("accuracy, % (hollow: transductive)", fontsize=10)
axes[1].set_title("NLL, nats per query", fontsize=10)
axes[0].set_yticks([-place for place in range(len(runs))], list(runs))
axes[1].set_yticks([])
axes[2].set(yscale="log", xlabel="meta-training step")
axes[2].set_title("sd of logits under the prior, nats", fontsize=10)
legend_below(axes[2], 3)
figure

# %% [markdown]
# A prior is called collapsed if the labels of a task have less than 0.05 nats of information about the weights
# (`prior_information`):

# %%
for name, run in runs.items():
    if run["prior_information"] is not None:
        verdict = "collapsed" if run["collapsed"] else "not collapsed"
        print(f"{name:5} {run['prior_information']:.3f} nats: {verdict}")

# %% [markdown]
# The prior of `mc` has collapsed: all its draws are almost equal. The prior of `savi` has not. The accuracy does not show
# this difference.
#
# ## Tasks with a known posterior
#
# Is a prior that has not collapsed also correct? Consider tasks with a known posterior: w ~ N(0, 1) is the mean of a
# Gaussian, observed through five points with noise 1. Both guides now have an encoder that can represent the exact
# posterior.

# %%
# !metabayes run -m guide=mc,savi data=gaussian_mean prior.count_aware=true prior.num_hidden=0 prior.scale=0.6 train.particles=2 train.kl_weight=1 train.learning_rate=1e-2 train.steps=600 train.validation_tasks=50 eval.tasks=100 hydra.sweep.dir=runs/mean

# %% alt="Left: densities of the exact, mc and savi prior given the support set of one task; mc is far too narrow. Right: coverage of their intervals; mc covers too little"
import torch

from pyro_metabayes import MetaLearner, Observed

generator = torch.Generator().manual_seed(1)
w = torch.randn(2000, 1, 1, generator=generator)
points = w + torch.randn(2000, 5, 1, generator=generator)
observed = Observed(support_x=torch.ones(2000, 5, 1), support_y=points, query_x=torch.ones(2000, 1, 1), num_classes=0)
answers = {"exact": (5 / 6 * points.mean(1).flatten(), torch.full((2000,), 6**-0.5))}
for name in ("mc", "savi"):
    (folder,) = Path("runs/mean").glob(f"*_{name}_*")
    with torch.no_grad():
        q = MetaLearner.load(folder).guide.posterior(observed)
    answers[name] = (q.mean.flatten(), q.stddev.flatten())

figure, axes = new_figure(2)
grid = torch.linspace(-2.5, 2.5, 1001)
for number, (name, (mean, sd)) in enumerate(answers.items()):
    style = {"color": "black", "lw": 3, "alpha": 0.3} if name == "exact" else {"color": f"C{number}"}
    density = torch.distributions.Normal(mean[0], sd[0]).log_prob(grid).exp()
    axes[0].plot(grid, density.clamp(max=2), label=name, **style)
    shares = np.linspace(0.05, 0.95, 19)
    inside = torch.distributions.Normal(0.0, 1.0).cdf((w.flatten() - mean).abs() / sd) * 2 - 1
    axes[1].plot(100 * shares, [100 * (inside < share).float().mean() for share in shares], label=name, **style)
axes[0].plot(points[0].flatten(), torch.zeros(5), "k|", ms=12, label="support")
axes[0].set(title="p(w | support) of one task (cut at 2)", xlabel="w", ylim=(-0.08, 2.1))
axes[1].set(title="coverage of central intervals, 2,000 tasks", xlabel="nominal, %", ylabel="true w inside, %")
legend_below(axes[0], 4)
legend_below(axes[1], 3)
figure

# %% [markdown]
# `savi` agrees with the exact posterior. `mc` gives a spike, and its intervals contain the true mean far less often
# than their level says. With two draws per task, the objective of `mc` is maximal at zero variance. From eight draws
# on it is not. [Prior collapse](../docs/collapse.md) derives this threshold and measures it.
#
# ## Next
#
# - [Every guide with its equations](../docs/explanation/guides.md).
# - [Write a guide of your own](04_your_own_guide.ipynb).
