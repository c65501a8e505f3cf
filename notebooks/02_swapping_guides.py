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
# One model, one stream of tasks, four ways to infer a task's weights. `guide=` chooses, `-m` runs them all. The tasks
# are made up, so that this takes seconds: endless Gaussian classes in 64 dimensions, five of them a task, one labelled
# point each.

# %%
# !python -m experiments.run -m guide=proto,mc,savi,sib data=gaussian_features data.num_features=64 data.separation=0.7 train.steps=300 eval.tasks=200 train.validation_tasks=100 hydra.sweep.dir=runs/guides

# %% [markdown]
# `proto` is the nearest class mean, a point. `mc` (VERSA) and `savi` (SAMOVAR) have a prior that a network reads off the
# support set. `sib` starts from the class means and descends on the unlabelled queries: it is transductive, so its accuracy
# competes with its like only.
#
# ## Two that should be alike
#
# `mc` and `savi` share the model, the prior and its network. Only the objective differs, and with it what becomes of the
# prior while it is trained. Each run has logged how far draws from its prior move the logits:

# %%
import json
from pathlib import Path

import numpy as np

from pyro_metabayes.experiments.runs.plots import new_figure

# %matplotlib inline

runs = {}
for file in sorted(Path("runs/guides").glob("*/results.json")):
    results = json.loads(file.read_text())
    lines = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
    runs[results["guide"]] = results | {"lines": lines}

figure, axes = new_figure(3)
for place, (name, its) in enumerate(runs.items()):
    fill = "none" if its["transductive"] else f"C{place}"
    bar = {"fmt": "o", "color": f"C{place}", "markerfacecolor": fill}
    axes[0].errorbar(100 * its["accuracy"]["mean"], -place, xerr=100 * its["accuracy"]["ci95"], **bar)
    axes[1].plot([its["nll"], its["joint_nll"]], [-place, -place], f"C{place}-", lw=1)
    axes[1].plot(its["nll"], -place, "o", color=f"C{place}")
    axes[1].plot(its["joint_nll"], -place, "|", color=f"C{place}", ms=14)
    steps = [(line["step"], line["logit_sd"]) for line in its["lines"] if line["logit_sd"] is not None]
    if steps:
        axes[2].plot(*zip(*steps, strict=True), color=f"C{place}", label=name)
for axis, title in zip(axes, ("accuracy, % (hollow: transductive)", "NLL (dot), joint NLL (bar)", ""), strict=True):
    axis.set_title(title, fontsize=10)
axes[0].set_yticks([-place for place in range(len(runs))], list(runs))
axes[1].set_yticks([])
axes[2].axhline(0.1, color="black", lw=0.8, ls=":")
axes[2].set(yscale="log", xlabel="meta-training step")
axes[2].set_title("what draws from the prior do to the logits, nats", fontsize=10)
axes[2].legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# Below the dotted line (and with fewer than 2% of the decisions changed) a prior is called collapsed: `mc` has learned
# to predict from a point. Its joint NLL, the score of all queries of a task under one draw of the weights, is its NLL: all
# draws are the same. `savi` keeps its prior alive. The accuracy does not tell.
#
# ## Where the truth is known
#
# Is a living prior also right? Take a task whose answer is known: the mean w of a Gaussian, w ~ N(0, 1), from five points
# with noise 1. Both guides now have an encoder that could represent the exact answer.

# %%
# !python -m experiments.run -m guide=mc,savi data=gaussian_mean prior.count_aware=true prior.num_hidden=0 prior.scale=0.6 train.particles=2 train.kl_weight=1 train.learning_rate=1e-2 train.steps=600 eval.tasks=200 hydra.sweep.dir=runs/mean

# %%
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
axes[0].set(title="p(w given support) of one task (cut at 2)", xlabel="w", ylim=(-0.08, 2.1))
axes[1].set(title="2,000 tasks: how often is the true w inside?", xlabel="interval claimed, %", ylabel="inside, %")
axes[0].legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# `savi` lies on the exact answer. `mc` gives a spike, and its intervals hold the true mean far less often than they claim.
# With two draws a task no spread pays for itself query by query; from eight draws on some does.
# [Prior collapse](../docs/collapse.md) derives the threshold and measures it.
#
# ## Next
#
# - [Every guide with its equations](../docs/explanation/guides.md).
# - [Write a guide of your own](04_your_own_guide.md).
