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
# # Posterior predictive checks
#
# A learner that predicts probabilities claims that labels look like draws from them. A posterior predictive check
# tests this claim. It draws the weights of a task from the posterior, draws labels given these weights, and compares
# the observed labels with the drawn ones. This page checks a learner on tasks like those in training, and then on
# tasks that differ.

# %%
# !python -m experiments.run guide=sib data=gaussian_features data.num_features=64 data.separation=0.6 train.steps=300 eval.tasks=200 hydra.run.dir=runs/checked

# %% [markdown]
# The discrepancy T(y) is the NLL of the query labels of a task. It is computed for the observed labels and for fifty
# sets of labels drawn from the model, the replicates. The p-value of a task is the share of replicates with a larger
# T than the observed labels. A p-value near 0 means that the model is overconfident, a p-value near 1 that it is
# underconfident.

# %%
from pyro_metabayes.diagnostics.predictive import Discrepancy, discrepancies, predictive_draws
from pyro_metabayes.experiments.runs.restore_run import run_and_tasks

# %matplotlib inline


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
# ## Single tasks
#
# Boxes show the NLL of the replicates for sixteen tasks, points the NLL of the observed labels. After this short
# training the posterior is underconfident on most tasks: the observed NLL is lower than expected. The prior (right)
# has no information about a task, so it expects the NLL of guessing, log 5 = 1.61.

# %%
from pyro_metabayes.experiments.runs.plots import new_figure

figure, axes = new_figure(2)
for axis, (name, discrepancy) in zip(axes, as_trained.items(), strict=True):
    order = discrepancy.observed[:16].argsort()
    axis.boxplot(discrepancy.replicated[:, order].numpy(), whis=(5, 95), showfliers=False, widths=0.6)
    axis.plot(range(1, 17), discrepancy.observed[order], "oC3", ms=4, label="observed")
    axis.set(
        title=f"labels drawn from the {name}", xlabel="tasks, by their NLL", ylabel="NLL, nats per query", xticks=[]
    )
axes[0].legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# ## Tasks that differ from training
#
# Now noise is added to the features of the test tasks; the learner was trained without it. The accuracy must fall.
# The check shows whether the probabilities account for that.

# %%
import numpy as np

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
axes[0].legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# Calibrated predictions lie on the dotted lines. On tasks as in training the learner lies below the line: it is
# underconfident, with p near 1. With some noise many tasks are above the line: it is overconfident. With more noise it
# expects half a nat per query, observes several times as much, and p is 0 for every task. The confidence of the learner
# does not reveal this. The check does, with a few labelled tasks of the new kind and no training on them.
#
# ## Next
#
# - [Predictive checks](../docs/predictive-checks.md) with one command, for every guide, and as an ArviZ object.
# - [Partial pooling](05_partial_pooling.md), where the posterior can be compared with the exact one.
