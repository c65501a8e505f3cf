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
# # A guide of your own
#
# A guide says how a task's weights w are inferred. All that it must have is `posterior`: a distribution over w, for every
# task of a batch, from the support set and at most the query inputs. Training, prediction, scores and Pyro do the rest.
#
# ## An idea
#
# ProtoNets take the class mean as weights, however few points it is the mean of. Empirical Bayes would shrink it: if class
# means scatter around m, and points around their class mean kappa times as much, then n points of mean xbar say
#
# ```math
# q(w_c \mid \mathrm{support}) = \mathcal{N}\left( m + \dfrac{n}{n + \kappa} (\bar{x}_c - m),\ \dfrac{\sigma^2}{n + \kappa} \right)
# ```
#
# Three things to learn, m, kappa and sigma, by the bound that every guide is trained with. As a guide:

# %%
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import nn

import pyro_metabayes
from pyro_metabayes import Observed, class_sums

# %matplotlib inline


class Guide(pyro_metabayes.Guide):
    """q(w_c | support) = N(m + n / (n + kappa) (xbar_c - m), sigma^2 / (n + kappa)), n the points of class c."""

    def __init__(self, model: pyro_metabayes.Model, num_weights: int) -> None:
        super().__init__(model)
        self.centre = nn.Parameter(torch.zeros(num_weights))
        self.log_kappa = nn.Parameter(torch.tensor(0.0))
        self.log_scale = nn.Parameter(torch.full((num_weights,), -3.0))

    def posterior(self, observed: Observed) -> TorchDistribution:
        sums, counts = class_sums(
            observed.support_x, observed.support_y, observed.support_mask, observed.num_classes
        )  # [T, C, D], [T, C, 1]
        total = counts + self.log_kappa.exp()
        loc = self.centre + (sums - counts * self.centre) / total
        return Normal(loc, self.log_scale.exp() * total.rsqrt()).to_event(2)


# %% [markdown]
# Batch shape [T], one for each task; event shape [C, W], the weights of all classes: hence `.to_event(2)`. Points are told
# apart by label and mask, never by position, so that tasks of unequal size just work.
#
# ## Train it
#
# A learner consists of a backbone, a model, a guide and an objective. The inputs are features already, so the backbone is
# the identity. The model is that of the few-shot tasks, a cosine classifier with a learned Gaussian prior; the simulated
# tasks are those of the other pages.

# %%
from pyro_metabayes import MetaLearner
from pyro_metabayes.data.sources.gaussian_features import GaussianFeatures
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.evaluation.evaluate import EvalSettings, evaluate
from pyro_metabayes.guides import proto as protonet
from pyro_metabayes.models import few_shot_classifier, heads, priors
from pyro_metabayes.models.backbones import identity
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.prior import Prior

source = GaussianFeatures(num_features=64, separation=0.7)


def tasks(split: str, shot: int = 1) -> TaskStream:
    return TaskStream(source.sampler(split, TaskShape(way=5, shot=shot, query=15)), seed=0, split=split)


def classifier(prior: Prior) -> few_shot_classifier.Model:
    return few_shot_classifier.Model(heads.Cosine(scale=20.0), prior)


def learner_of(guide: pyro_metabayes.Guide) -> MetaLearner:
    return MetaLearner(identity.Backbone(source.input_shape), guide.model, guide, Elbo())


def trained(learner: MetaLearner, steps: int = 200) -> MetaLearner:
    """The loop in its plainest form; `experiments.run` has schedules, validation, checkpoints and logs."""
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(learner.parameters(), lr=3e-2)
    stream = tasks("train")
    for step in range(steps):
        loss = learner(stream.batch(16 * step, 16 * (step + 1)), kl_weight=0.01)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return learner


proto = trained(learner_of(protonet.Guide(classifier(priors.Flat()))))
mine = trained(learner_of(Guide(classifier(priors.Gaussian(num_weights=64)), num_weights=64)))
print("kappa:", round(mine.guide.log_kappa.exp().item(), 2))

# %% [markdown]
# ## Is it any good?
#
# Score both on tasks of classes that neither has met, at one point a class, as trained, and at more. Both get the same
# tasks, so differences are taken task by task:

# %%
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.runs.plots import new_figure

SHOTS = (1, 2, 5, 10)
scored = {
    (name, shot): evaluate(learner, tasks("test", shot), EvalSettings(tasks=64, samples=20), 0, progress=False)
    for name, learner in (("proto", proto), ("mine", mine))
    for shot in SHOTS
}
gain = [scored["proto", shot].per_task["joint_nll"] - scored["mine", shot].per_task["joint_nll"] for shot in SHOTS]

figure, axes = new_figure(3)
for name in ("proto", "mine"):
    accuracy = [100 * scored[name, shot].per_task["accuracy"] for shot in SHOTS]
    axes[0].errorbar(SHOTS, [its.mean() for its in accuracy], yerr=[ci95_of(its) for its in accuracy], label=name)
axes[1].errorbar(SHOTS, [its.mean() for its in gain], yerr=[ci95_of(its) for its in gain], fmt="oC1-")
axes[1].axhline(0, color="black", lw=0.8, ls=":")
axes[2].plot(SHOTS, [scored["mine", shot].metrics["posterior_sd"] for shot in SHOTS], "oC1-")
titles = ("accuracy, %", "gain in joint NLL over proto, nats a query", "sd of mine's posterior")
for axis, title in zip(axes, titles, strict=True):
    axis.set(xlabel="labelled points a class", xticks=SHOTS)
    axis.set_title(title, fontsize=10)
axes[2].set_ylim(bottom=0)
axes[0].legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# The posterior narrows as points come in, which a point estimate cannot. In accuracy that changes little: averaged over its
# spread a Gaussian decides much as its mean does. At one point a class, which it was trained for, it scores all the answers
# of a task together better than the point does; at more it is a little worse.
#
# ## Does it keep its word?
#
# The contract of a guide is tested for every file in `guides/`. Two of its clauses, by hand: a guide that peeks at the
# labels of the queries would be useless at test, and a task must not depend on those beside it.

# %%
from dataclasses import replace

episodes = tasks("test").batch(0, 4)
before = mine.guide.posterior(episodes.observed()).mean
shuffled = replace(episodes, query_y=episodes.query_y.flip(1))
assert torch.equal(before, mine.guide.posterior(shuffled.observed()).mean)  # labels of queries
assert torch.allclose(before[:1], mine.guide.posterior(episodes.tasks(slice(0, 1)).observed()).mean)  # other tasks
print("batch shape", before.shape[0], "event shape", tuple(before.shape[1:]))

# %% [markdown]
# It is a Pyro guide, too: with the model it makes a pair for anything in Pyro, here a draw of weights and query labels.

# %%
from pyro.infer import Predictive

samples = Predictive(mine.model, guide=mine.guide, num_samples=50)(episodes.observed())
print({name: tuple(value.shape) for name, value in samples.items()})

# %% [markdown]
# ## Keep it
#
# Put the class into `guides/mine.py`, name it in `experiments/conf/guide/mine.yaml`, and it is a choice of the command line,
# with every test that a guide has to pass: [Contributing](../CONTRIBUTING.md#add-a-guide-in-three-steps) has the three steps.
