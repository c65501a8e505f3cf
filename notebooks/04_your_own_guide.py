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
# A *guide* is an approximate posterior over the latent variable w of a task, for example the weights of a classifier. It
# is a program that reads a task and returns a distribution. This notebook writes three guides, trains them and tests
# them.
#
# **How to open this.** GitHub shows this notebook with its outputs. To run it, in the root of a clone, with Python 3.11
# to 3.13:
#
# ```
# pip install '.[experiments]'
# pip install jupyterlab
# jupyter lab notebooks/04_your_own_guide.ipynb
# ```
#
# `notebooks/04_your_own_guide.py` has the same text. CPU builds of torch and more: [Install](../docs/install.md).

# %% [markdown]
# In few-shot learning a task has a few labelled points, the support set, and points to predict, the query set. Its latent w
# has a prior that all tasks share. The word guide is Pyro's. The counterpart of the guide is the *model*, a program that
# states prior and likelihood.
#
# Each of the three guides is a class with one method, `posterior`:
#
# 1. class weights that are shrunk towards a common mean,
# 2. a posterior with correlated weights,
# 3. a posterior over two latents, for a model that is written here too.
#
# ## A shrinkage guide
#
# ProtoNets take the mean of the support points of a class as its weights, however few points there are. Empirical Bayes
# shrinks that mean. Suppose that class means scatter around m, and that the variance of points around their class mean is
# kappa times as large. Then n points with mean xbar give
#
# $$
# q(w_c \mid \mathrm{support}) = \mathcal{N}\left( m + \dfrac{n}{n + \kappa} (\bar{x}_c - m),\ \dfrac{\sigma^2}{n + \kappa} \right)
# $$
#
# The parameters m, kappa and sigma are learned from many tasks. As a guide:

# %%
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import nn

from pyro_metabayes import Guide, Model, Observed, class_sums

# %matplotlib inline


class Shrinkage(Guide):
    """q(w_c | support) = N(m + n / (n + kappa) (xbar_c - m), sigma^2 / (n + kappa)) for n points of class c."""

    def __init__(self, model: Model, num_weights: int) -> None:
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
# A guide sees a batch of T tasks. Its distribution has batch shape [T] and, for a classifier, event shape [C, W]: the weights
# of all classes. `.to_event(2)` declares the last two axes to be the event. Points are selected by label and mask, never by
# position, so tasks of unequal size need no further code.
#
# ### Train and evaluate
#
# A learner consists of a backbone, a model, a guide and an objective. `fit` trains it, and `evaluate` scores it on tasks with
# new classes. The objective is the ELBO, a lower bound on the log evidence. Here the inputs are features already, so the
# backbone is the identity. The model is a cosine classifier with a learned Gaussian prior, and the tasks are simulated.

# %%
from pyro_metabayes import MetaLearner, evaluate, fit
from pyro_metabayes.data.sources.gaussian_features import GaussianFeatures
from pyro_metabayes.data.stream import TaskStream
from pyro_metabayes.data.task_shape import TaskShape
from pyro_metabayes.evaluation.evaluate import EvalSettings
from pyro_metabayes.guides import proto
from pyro_metabayes.models import few_shot_classifier, heads, priors
from pyro_metabayes.models.backbones import identity
from pyro_metabayes.objectives.elbo import Elbo
from pyro_metabayes.prior import Prior

source = GaussianFeatures(num_features=64, separation=0.7)


def tasks(split: str, shot: int = 1) -> TaskStream:
    return TaskStream(source.sampler(split, TaskShape(way=5, shot=shot, query=15)), seed=0, split=split)


def classifier(prior: Prior) -> Model:
    return few_shot_classifier.Model(heads.Cosine(scale=20.0), prior)


guides = {
    "proto": proto.Guide(classifier(priors.Flat())),
    "shrinkage": Shrinkage(classifier(priors.Gaussian(num_weights=64)), num_weights=64),
}
learners = {}
for name, guide in guides.items():
    learner = MetaLearner(identity.Backbone(source.input_shape), guide.model, guide, Elbo())
    optimiser = torch.optim.Adam(learner.parameters(), lr=3e-2)
    torch.manual_seed(0)
    fit(learner, tasks("train"), tasks("val"), steps=200, optimiser=optimiser, kl_weight=0.01)
    learners[name] = learner
print("kappa:", round(guides["shrinkage"].log_kappa.exp().item(), 2))

# %% [markdown]
# Both learners now get the same test tasks, with one labelled point per class, as in training, and with more. `per_task` has
# the scores of each task, so the difference can be taken per task. The joint NLL is minus the log probability of all query
# labels of a task together, per query.

# %% alt="Accuracy of proto and shrinkage, gain of shrinkage in joint NLL, and its posterior sd, against labelled points per class"
from pyro_metabayes.evaluation.intervals import ci95_of
from pyro_metabayes.experiments.runs.plots import legend_below, new_figure

SHOTS = (1, 2, 5)
scored = {
    (name, shot): evaluate(learner, tasks("test", shot), EvalSettings(tasks=24, samples=20, joint=True), progress=False)
    for name, learner in learners.items()
    for shot in SHOTS
}
gain = [scored["proto", shot].per_task["joint_nll"] - scored["shrinkage", shot].per_task["joint_nll"] for shot in SHOTS]

figure, axes = new_figure(3)
for name in learners:
    accuracy = [100 * scored[name, shot].per_task["accuracy"] for shot in SHOTS]
    means = [values.mean() for values in accuracy]
    axes[0].errorbar(SHOTS, means, yerr=[ci95_of(values) for values in accuracy], label=name)
axes[1].errorbar(SHOTS, [values.mean() for values in gain], yerr=[ci95_of(values) for values in gain], fmt="oC1-")
axes[1].axhline(0, color="black", lw=0.8, ls=":")
axes[2].plot(SHOTS, [scored["shrinkage", shot].metrics["posterior_sd"] for shot in SHOTS], "oC1-")
titles = ("accuracy, %", "gain in joint NLL over proto, nats", "posterior sd of shrinkage")
for axis, title in zip(axes, titles, strict=True):
    axis.set(xlabel="labelled points per class", xticks=SHOTS)
    axis.set_title(title, fontsize=10)
axes[2].set_ylim(bottom=0)
legend_below(axes[0])
figure

# %% [markdown]
# The posterior narrows as points are added, which a point estimate cannot show. The accuracies are equal. The joint NLL shows
# where the posterior gains: at one point per class, as in training.
#
# ## Beyond independent normals
#
# The weights above are independent under the posterior. Often they are not. Take lines, w = (intercept, slope), with all x
# between 1 and 3. A larger slope fits only with a smaller intercept, so the two are strongly correlated given the data. Each
# batch of tasks is made by a function; every task has its own line and its own noise.

# %%
from pyro_metabayes import Episodes


def lines(num_tasks: int = 64, noise_spread: float = 0.0) -> tuple[Episodes, torch.Tensor]:
    """Tasks y = w . (1, x) + noise with 8 support and 8 query points, and log sd of the noise [T]."""
    log_noise = -0.7 + noise_spread * torch.randn(num_tasks)
    x = torch.cat((torch.ones(num_tasks, 16, 1), 1 + 2 * torch.rand(num_tasks, 16, 1)), -1)
    y = x @ torch.randn(num_tasks, 2, 1) + log_noise.exp().view(-1, 1, 1) * torch.randn(num_tasks, 16, 1)
    return Episodes(support_x=x[:, :8], support_y=y[:, :8], query_x=x[:, 8:], query_y=y[:, 8:]), log_noise


# %% [markdown]
# The guide multiplies 1, x and y with each other and sums these products over the support points. In a linear Gaussian model
# nothing else matters. Networks map the sums to a mean, a diagonal D and a matrix F. The number of columns of F is the rank. The
# posterior is N(mean, D + F F^T), a *low-rank* normal distribution. With rank 0 the weights are independent. As in the exact
# posterior, the covariance depends on the x alone.

# %%
from pyro.distributions import LowRankMultivariateNormal


def network(num_inputs: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(num_inputs, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, num_outputs))


class Line(Guide):
    """q(w | support) = N(loc, D + F F^T), F [2, rank]."""

    def __init__(self, model: Model, rank: int) -> None:
        super().__init__(model)
        self.rank = rank
        self.loc = network(9, 2)
        self.spread = network(4, 2 + 2 * rank)

    def posterior(self, observed: Observed) -> TorchDistribution:
        points = torch.cat((observed.support_x, observed.support_y), -1) * observed.support_mask.unsqueeze(-1)
        sums = (points.mT @ points).unsqueeze(1) / 10  # [T, 1, 3, 3]
        loc, spread = self.loc(sums.flatten(2)), self.spread(sums[..., :2, :2].flatten(2))
        log_sd, factor = spread[..., :2], spread[..., 2:].unflatten(-1, (2, self.rank))  # [T, 1, 2], [T, 1, 2, rank]
        if not self.rank:
            return Normal(loc, log_sd.exp()).to_event(2)
        return LowRankMultivariateNormal(loc, factor, (2 * log_sd).exp()).to_event(1)


# %% [markdown]
# The model is linear regression with known noise. `observe="support"` makes the ELBO a bound on the evidence of the support
# labels. Its optimum is the posterior given the support set, which this model has in closed form. `fit` also takes a function
# that makes batch 0, 1, 2, ...

# %%
import math

from pyro_metabayes.models import linear_regression

torch.manual_seed(0)
val, test = lines(100)[0], lines(400)[0]
posteriors: dict[str, TorchDistribution] = {}
for rank in (0, 1):
    prior = priors.Gaussian(num_weights=2, scale=1.0)
    model = linear_regression.Model(prior, num_targets=1, num_features=2, noise=math.exp(-0.7), observe="support")
    learner = MetaLearner(identity.Backbone([2], normalise=False), model, Line(model, rank), Elbo(particles=4))
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    fit(learner, lambda number: lines()[0], val, steps=400, optimiser=optimiser, scheduler=scheduler)
    scores = evaluate(learner, test, EvalSettings(test.num_tasks, joint=True), progress=False).metrics
    print(f"rank {rank}: ELBO {scores['elbo']:.2f}, query NLL {scores['nll']:.3f}, joint NLL {scores['joint_nll']:.3f}")
    posteriors[f"rank {rank}"] = learner.guide.posterior(test.observed())
known = learner
posteriors["exact"] = model.exact_posterior(test.observed())

# %% [markdown]
# Left: draws of (intercept, slope) for one task. Right: the sd of the slope for every test task. Independent weights give a
# posterior that is too narrow: it fills the middle of the exact one. One column in F restores the correlation.

# %% alt="Left: draws of intercept and slope for one task; rank 1 follows the correlation of the exact posterior, rank 0 does not. Right: posterior sd of the slope, right with rank 1, too small with rank 0"
figure, axes = new_figure(2)
for (name, q), color in zip(reversed(posteriors.items()), ("0.6", "C1", "C0"), strict=True):
    axes[0].plot(*q.sample((300,))[:, 0, 0].T, ".", color=color, ms=3, label=name)
    if name != "exact":
        sds = [normal.variance[:, 0, 1].sqrt().detach() for normal in (posteriors["exact"], q)]
        axes[1].plot(*sds, ".", color=color, ms=3, label=name)
axes[0].set(title="draws for one task", xlabel="intercept", ylabel="slope")
axes[1].axline((0.2, 0.2), slope=1, color="black", lw=0.8, ls=":")
axes[1].set(title="posterior sd of the slope", xlabel="exact", ylabel="guide")
for axis in axes:
    legend_below(axis, 3)
figure

# %% [markdown]
# ## A second latent
#
# Now the noise differs between tasks and is unknown. So each task has two latents, called *sites* in Pyro: the log standard
# deviation of its noise, and its line w. Prior and posterior are each a `Joint` of named distributions. A later site may be a
# function of the values of the earlier ones.
#
# A model defines its prior, the outputs for given latents, and the likelihood of a label given the outputs. Everything else
# sees the two sites as one vector, in the order of the attribute `sites`; `sites.split` takes it apart. In front of [T] there
# may be axes of samples, hence `...`.

# %%
from torch import Size, Tensor

from pyro_metabayes.distributions.joint import Joint
from pyro_metabayes.distributions.sites import Sites


class NoisyLine(Model):
    """log s ~ N(m, v^2), w ~ N(0, I), y_i ~ N(w . x_i, s^2) for each task; m and v are learned."""

    sites = Sites(log_noise=Size([]), w=Size([2]))

    def __init__(self) -> None:
        super().__init__(observe="support")
        self.centre = nn.Parameter(torch.tensor(0.0))
        self.log_spread = nn.Parameter(torch.tensor(0.0))

    def event_shape(self, observed: Observed) -> Size:
        return self.sites.event_shape

    def prior(self, observed: Observed) -> TorchDistribution:
        log_noise = Normal(self.centre, self.log_spread.exp()).expand([observed.num_tasks])
        w = Normal(0.0, 1.0).expand([observed.num_tasks, 2]).to_event(1)
        return Joint({"log_noise": log_noise, "w": w})

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Mean and log sd of each label [..., T, N, 2]."""
        values = self.sites.split(w)
        mean = (x @ values["w"].unsqueeze(-1)).squeeze(-1)
        return torch.stack((mean, values["log_noise"].unsqueeze(-1).expand_as(mean)), -1)

    def likelihood_of(self, outputs: Tensor) -> TorchDistribution:
        mean, log_sd = outputs.unsqueeze(-2).unbind(-1)  # [..., T, N, 1]
        return Normal(mean, log_sd.exp()).to_event(1)


# %% [markdown]
# The guide must have the same sites in the same order; other sites are refused. A network reads the size of the residuals of
# least squares and returns a normal distribution over the log noise. Given the noise, the posterior over w has the closed form
# of Bayesian regression.

# %%
from pyro.distributions import MultivariateNormal


class NoisyLineGuide(Guide):
    """q(log s, w | support) = q(log s | support) p(w | s, support)."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.network = nn.Sequential(nn.Linear(2, 32), nn.ELU(), nn.Linear(32, 2))

    def posterior(self, observed: Observed) -> TorchDistribution:
        mask = observed.support_mask.unsqueeze(-1)
        x, y = observed.support_x * mask, observed.support_y * mask
        gram, moment, identity_matrix = x.mT @ x, x.mT @ y, torch.eye(2)  # [T, 2, 2], [T, 2, 1]

        def w_given(values: dict[str, Tensor]) -> TorchDistribution:
            variance = (2 * values["log_noise"]).exp()[..., None, None]  # [..., T, 1, 1]
            precision = identity_matrix + gram / variance
            loc = torch.linalg.solve(precision, moment / variance).squeeze(-1)
            return MultivariateNormal(loc, precision_matrix=precision)

        residual = y - x @ torch.linalg.solve(gram + 0.01 * identity_matrix, moment)
        size = residual.square().sum((1, 2)).clamp(min=1e-6)
        loc, log_sd = self.network(torch.stack((size.log(), mask.sum((1, 2)).log()), -1)).unbind(-1)
        return Joint({"log_noise": Normal(loc, log_sd.exp()), "w": w_given})


torch.manual_seed(0)
val, (test, log_noise) = lines(100, noise_spread=0.7)[0], lines(400, noise_spread=0.7)
guide = NoisyLineGuide(NoisyLine())
noisy = MetaLearner(identity.Backbone([2], normalise=False), guide.model, guide, Elbo())
optimiser = torch.optim.Adam(noisy.parameters(), lr=1e-2)
fit(noisy, lambda number: lines(noise_spread=0.7)[0], val, steps=200, optimiser=optimiser)
for name, learner in (("known to be exp(-0.7)", known), ("a latent", noisy)):
    scores = evaluate(learner, test, EvalSettings(test.num_tasks), progress=False).metrics
    print(f"noise {name}: query NLL {scores['nll']:.3f}")
centre, spread = guide.model.centre.item(), guide.model.log_spread.exp().item()
print(f"learned prior of log noise: N({centre:.2f}, {spread:.2f}^2), that of the simulated tasks: N(-0.70, 0.70^2)")

# %% [markdown]
# `predictive_draws` draws latents and query labels, from the posterior and from the prior. The draws of the latents are named
# by site. Left: the noise is inferred from eight points, with its uncertainty. Middle and right: the predictions follow it.

# %% alt="Left: posterior of the log noise of 60 tasks against the true one, along the diagonal. Middle and right: predictive band of a task with little noise, and of one with much"
from pyro_metabayes.diagnostics.predictive import predictive_draws

draws = predictive_draws(noisy, test, num_samples=500)
print({name: tuple(value.shape) for name, value in draws.posterior.sites.items()})

figure, axes = new_figure(3)
inferred = draws.posterior.sites["log_noise"]
axes[0].errorbar(log_noise[:60], inferred.mean(0)[:60], yerr=inferred.std(0)[:60], fmt=".", lw=0.8)
axes[0].axline((-0.7, -0.7), slope=1, color="black", lw=0.8, ls=":")
axes[0].set(title="log noise of 60 tasks", xlabel="true", ylabel="posterior mean and sd")
for axis, task in zip(axes[1:], (log_noise.argmin(), log_noise.argmax()), strict=True):
    x, order = test.query_x[task, :, 1], test.query_x[task, :, 1].argsort()
    low, high = draws.posterior.y[:, task, :, 0].quantile(torch.tensor([0.05, 0.95]), dim=0)
    axis.fill_between(x[order], low[order], high[order], alpha=0.3, label="90% of predictive draws")
    axis.plot(test.support_x[task, :, 1], test.support_y[task, :, 0], "k.", label="support")
    axis.plot(x, test.query_y[task, :, 0], "C1.", label="query")
    axis.set(title=f"the task with log noise {log_noise[task]:.1f}", xlabel="x", ylim=(-6, 6))
legend_below(axes[1], 3)
figure

# %% [markdown]
# ## What a guide must satisfy
#
# Query labels must not affect the posterior, and tasks must not affect each other. The tests check both for every file in
# `guides/`; by hand:

# %%
from dataclasses import replace

guide, episodes = learners["shrinkage"].guide, tasks("test").batch(0, 4)
mean = guide.posterior(episodes.observed()).mean
shuffled = replace(episodes, query_y=episodes.query_y.flip(1))
assert torch.equal(mean, guide.posterior(shuffled.observed()).mean)  # query labels
assert torch.allclose(mean[:1], guide.posterior(episodes.tasks(slice(0, 1)).observed()).mean)  # other tasks

# %% [markdown]
# Model and guide are Pyro programs, so they work with everything in Pyro. Here `Predictive` draws weights and query labels:

# %%
from pyro.infer import Predictive

samples = Predictive(guide.model, guide=guide, num_samples=50)(episodes.observed())
print({name: tuple(value.shape) for name, value in samples.items()})

# %% [markdown]
# ## Next
#
# - [Train from Python](../docs/train-from-python.md): data sets, schedulers, callbacks, checkpoints.
# - To use a guide from the command line, put the class into `guides/mine.py` under the name `Guide` and add
#   `experiments/conf/guide/mine.yaml`: [three steps](../CONTRIBUTING.md#add-a-guide-in-three-steps). All tests of guides then
#   apply to it.
# - [Several latent sites](../docs/explanation/model.md#several-latent-sites), and `models/task_scale.py` with its guide.
