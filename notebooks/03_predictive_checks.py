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
# # Would the model draw such labels?
#
# A learner that gives probabilities makes a claim: labels look like draws from them. A posterior predictive check takes it
# at its word. Draw the weights of a task from the posterior, draw labels with them, and ask whether the observed labels
# could be one more such draw. We check a learner where it was trained, and then where the world has changed.

# %%
# !python -m experiments.run guide=sib data=gaussian_features data.num_features=64 data.separation=0.6 train.steps=300 eval.tasks=200 hydra.run.dir=runs/checked

# %% [markdown]
# The discrepancy is the NLL of a task's labels, T(y). It is computed for the observed labels and for fifty replicates,
# drawn by the model. The share of replicates with a larger T than the observed one is the p-value of the task: near 0 the
# labels surprise the model more than its own do, so that it was too sure; near 1 less, so that it was not sure enough.

# %%
from pyro_metabayes.diagnostics.predictive import Discrepancy, discrepancies, predictive_draws
from pyro_metabayes.experiments.runs.restore_run import run_and_tasks

# %matplotlib inline


def checked(*changed: str) -> dict[str, Discrepancy]:
    """The NLL of 64 test tasks under posterior and prior, their settings changed."""
    setup, episodes = run_and_tasks("runs/checked", changed, num_tasks=64)
    draws = predictive_draws(setup.learner, episodes, num_samples=50)
    both = {"posterior": draws.posterior, "prior": draws.prior}
    return {
        name: discrepancies(setup.learner, episodes.observed(), its, episodes.query_y)["nll"]
        for name, its in both.items()
    }


as_trained = checked()
print({name: tuple(its.replicated.shape) for name, its in as_trained.items()}, "replicates, tasks")

# %% [markdown]
# The query labels never reach the model: with them the labels would be conditioned on, each replicate would be the
# observation, and every check would pass.
#
# ## Task by task
#
# Boxes: what the model expects of sixteen tasks. Points: what it got. The posterior, after this short training, is not sure
# enough of most tasks: its answers come out better than it expects. The prior (right) has seen nothing of a task, and expects
# to do no better than guessing, whose NLL is log 5 = 1.61.

# %%
from pyro_metabayes.experiments.runs.plots import new_figure

figure, axes = new_figure(2)
for axis, (name, its) in zip(axes, as_trained.items(), strict=True):
    order = its.observed[:16].argsort()
    axis.boxplot(its.replicated[:, order].numpy(), whis=(5, 95), showfliers=False, widths=0.6)
    axis.plot(range(1, 17), its.observed[order], "oC3", ms=4, label="observed")
    axis.set(title=f"labels drawn from the {name}", xlabel="tasks, by their NLL", ylabel="NLL, nats a query", xticks=[])
axes[0].legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# ## When the world changes
#
# The same learner, trained on clean features, meets features with noise on them. It is not told. Its accuracy must
# fall; whether it knows that it fell is what the check asks.

# %%
import numpy as np

worlds = {"as trained": as_trained["posterior"]}
worlds |= {f"noise {noise:g}": checked(f"task.feature_noise={noise}")["posterior"] for noise in (0.5, 1.0)}

figure, axes = new_figure(2)
for number, (name, its) in enumerate(worlds.items()):
    axes[0].scatter(its.replicated.mean(0), its.observed, s=12, color=f"C{number}", label=name)
    shares = np.sort(its.p_values.numpy())
    axes[1].plot(shares, (np.arange(len(shares)) + 0.5) / len(shares), color=f"C{number}", label=name)
most = max(its.observed.max().item() for its in worlds.values())
axes[0].plot([0, most], [0, most], "k:", lw=0.8)
axes[0].set(title="NLL of 64 tasks", xlabel="expected by the model", ylabel="observed")
axes[1].plot([0, 1], [0, 1], "k:", lw=0.8)
axes[1].set(title="p-values: share of tasks below", xlabel="p", ylabel="share")
axes[0].legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# On the dotted lines a model knows what it knows. As trained it lies below, not sure enough, with p near 1. With some noise many
# tasks have moved above: too sure. With more it has no idea of what has happened: it expects half a nat a query and gets several
# times as much, and p is 0 for every task. Its own confidence would not have told; the check does,
# with a few labelled tasks of the new world and no training on them.
#
# ## Next
#
# - [Predictive checks](../docs/predictive-checks.md) by one command, for every guide, and as an ArviZ object.
# - [Partial pooling](05_partial_pooling.md), where the posterior can be checked against the truth.
