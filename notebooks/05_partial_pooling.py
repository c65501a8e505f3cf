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
# # Partial pooling: radon in 85 counties
#
# How much radon is in the houses of a county, if in some counties a hundred houses were measured and in others only
# one? This notebook learns a prior over the counties from a CSV file, shrinks the estimates of small counties, and
# compares an amortized guide with the closed form.
#
# **How to open this.** GitHub shows this notebook with its outputs. To run it, in the root of a clone, with Python 3.11
# to 3.13:
#
# ```
# pip install '.[experiments]'
# pip install jupyterlab
# jupyter lab notebooks/05_partial_pooling.ipynb
# ```
#
# `notebooks/05_partial_pooling.py` has the same text. CPU builds of torch and more: [Install](../docs/install.md).

# %% [markdown]
# ## The problem
#
# A separate estimate per county relies too much on single houses. One mean for all counties ignores that counties
# differ. Partial pooling is a compromise: the effects of the counties are draws from a prior, which is learned from
# all counties. Estimates for counties with few houses are close to the mean of the prior. This is empirical Bayes, as
# in few-shot learning, with one county per task.
#
# Any CSV file with a column of groups can be used. Here it is the table of 919 houses in Minnesota (Gelman and Hill
# 2007) if METABAYES_DATA has it. Otherwise counties with realistic numbers of houses are simulated.

# %%
import os
import shutil
from pathlib import Path

import numpy as np

# %matplotlib inline

SIZES = [1, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 13, 14, 25, 52, 116]


def make_up(path: Path) -> None:
    random = np.random.default_rng(0)
    rows = ["county.name,log.radon,basement,uranium"]
    for county, houses in enumerate(SIZES * 5):
        uranium, own = 0.4 * random.normal(), 0.15 * random.normal()
        for floor in (random.uniform(size=houses) < 0.2).astype(int):
            radon = 1.4 + own + 0.7 * uranium - 0.65 * floor + 0.75 * random.normal()
            rows.append(f"C{county},{radon:.4f},{floor},{uranium:.4f}")
    path.write_text("\n".join(rows) + "\n")


radon = Path(os.environ.get("METABAYES_DATA", "")) / "groups" / "radon.csv"
if radon.is_file():
    shutil.copy(radon, "radon.csv")
else:
    make_up(Path("radon.csv"))
print((radon.is_file() and "the table of Minnesota") or "simulated counties")

# %% [markdown]
# ## Fit
#
# Every county has its own intercept. All counties share the effects of the floor on which radon was measured
# (basement or first floor) and of the uranium in the soil. The guide is amortized: one network maps the houses of any
# county to a posterior over its intercept.

# %%
# !metabayes run data=groups data.path=radon.csv data.group=county.name data.response=log.radon 'data.predictors=[basement,uranium]' guide=partial_pooling train.steps=400 train.tasks_per_step=85 hydra.run.dir=runs/radon

# %% [markdown]
# ## Comparison with the closed form
#
# The model is linear and Gaussian, so the maximum-likelihood estimates and the posteriors are also known in closed
# form. Both methods get the same counties.

# %%
import torch

from pyro_metabayes import MetaLearner
from pyro_metabayes.data.sources.groups import load
from pyro_metabayes.exact import mixed_effects

counties = load("county.name", "log.radon", ["basement", "uranium"], path="radon.csv")
episodes = counties.whole()
closed = mixed_effects.fit(episodes, num_random=1)
pooled = episodes.pooled()
learner = MetaLearner.load("runs/radon")
with torch.no_grad():
    prior, q = learner.model.prior(episodes.observed()), learner.guide.training_posterior(episodes)
exact = closed.effects(pooled)

unit = counties.scale
prior_sd = unit * prior.variance[0].sqrt().item()
closed_sd = unit * closed.covariance.sqrt().item()
print(f"sd of the counties, log radon: guide {prior_sd:.3f}, maximum likelihood {closed_sd:.3f}")

# %% [markdown]
# ## Shrinkage
#
# Left: the intercept of each county without pooling (the mean of its houses, adjusted for floor and uranium) and
# after partial pooling. Counties with few houses move far towards the mean of all counties; those with many houses
# hardly move. Middle: posterior means of guide and closed form for each county. Right: posterior standard deviations.

# %% alt="Intercepts of counties, pooled ones closer together than those of each county alone; posterior means and sds of the guide, equal to the closed form"
from pyro_metabayes.experiments.runs.plots import legend_below, new_figure

houses = episodes.query_mask.sum(1).numpy()
residual = (episodes.query_y - closed.shared(episodes.query_x.double())).squeeze(-1) * episodes.query_mask
alone = residual.sum(1) / episodes.query_mask.sum(1)
shared = closed.coefficients[1:], learner.model.beta.detach()[0], closed.coefficients[1:]
alone, means, exact_means = (
    counties.scales.effects_in_units(effects.reshape(-1, 1), slopes).flatten().numpy()
    for effects, slopes in zip((alone, q.mean, exact.mean), shared, strict=True)
)
sds, exact_sds = (unit * posterior.variance.sqrt().flatten().numpy() for posterior in (q, exact))

figure, axes = new_figure(3)
for count, one, other in zip(houses, alone, means, strict=True):
    axes[0].plot([count, count], [one, other], color="0.7", lw=0.8, zorder=0)
axes[0].plot(houses, alone, "o", ms=4, mfc="none", color="C7", label="alone")
axes[0].plot(houses, means, "o", ms=4, color="C0", label="pooled")
axes[0].set(xscale="log", title="intercepts of counties, log radon", xlabel="houses measured")
legend_below(axes[0])
ends = [exact_means.min(), exact_means.max()]
axes[1].plot(ends, ends, "k:", lw=0.8)
axes[1].plot(exact_means, means, "o", ms=4)
axes[1].set(title="posterior mean", xlabel="closed form", ylabel="guide")
order = houses.argsort()
axes[2].plot(houses[order], exact_sds[order], color="black", lw=3, alpha=0.3, label="closed form")
axes[2].plot(houses, sds, "o", ms=4, label="guide")
axes[2].set(xscale="log", title="posterior sd, log radon", xlabel="houses measured", ylim=(0, None))
legend_below(axes[2])
figure

# %%
print(f"mean distance of the intercepts: {np.abs(means - exact_means).mean():.3f} log radon")

# %% [markdown]
# An amortized guide is useful for models without a closed form. Here it can be compared with one. Neither accounts
# for the uncertainty about the prior itself, which empirical Bayes treats as known once it is learned.
#
# ## Next
#
# - [Write a guide of your own](04_your_own_guide.ipynb).
# - [The model, and what is pooled](../docs/explanation/model.md).
