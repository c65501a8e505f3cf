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
# # Quick start: your own embeddings
#
# You have embeddings (rows of numbers that stand for images, texts, products or species), a few labelled rows of some
# new classes (the support set), and rows to classify (the query set). This notebook first classifies them with
# `FewShotClassifier`, which needs no training. Then it trains a learner on classes of your own.
#
# **How to open this.** GitHub shows this notebook with its outputs. To run it, in the root of a clone, with Python 3.11
# to 3.13:
#
# ```
# pip install '.[experiments]'
# pip install jupyterlab
# jupyter lab notebooks/01_quick_start.ipynb
# ```
#
# `notebooks/01_quick_start.py` has the same text. CPU builds of torch and more: [Install](../docs/install.md).

# %% [markdown]
# ## Without training
#
# `FewShotClassifier` returns class probabilities for any embeddings. Here the embeddings are simulated: sixty classes
# with twenty noisy rows each. Replace them by yours.

# %%
import numpy as np

# %matplotlib inline

random = np.random.default_rng(0)
centres = random.normal(size=(60, 64))
features = np.repeat(centres, 20, axis=0) + 2 * random.normal(size=(1200, 64))
labels = np.repeat(np.arange(60), 20)

# %%
from pyro_metabayes import FewShotClassifier

chosen = [np.flatnonzero(labels == name) for name in range(5)]
support = np.concatenate([rows[:1] for rows in chosen])
query = np.concatenate([rows[1:16] for rows in chosen])
classifier = FewShotClassifier().fit(features[support], labels[support])
probabilities = classifier.predict_proba(features[query])
print(probabilities[:3].round(2))
print(f"accuracy {classifier.score(features[query], labels[query]):.2f}")

# %% [markdown]
# Logistic regression on the same five rows, for comparison. The negative log-likelihood (NLL) is the mean of
# -log(probability of the true class): smaller is better, and a guess among five classes has log 5 = 1.61.

# %%
from sklearn.linear_model import LogisticRegression

regression = LogisticRegression().fit(features[support], labels[support])
for name, values in {
    "few-shot classifier": probabilities,
    "logistic regression": regression.predict_proba(features[query]),
}.items():
    likelihood = values[np.arange(len(query)), labels[query]]
    print(f"{name}: accuracy {(values.argmax(1) == labels[query]).mean():.2f}, NLL {-np.log(likelihood).mean():.2f}")

# %% [markdown]
# The gain comes from the other queries: this classifier is transductive, so it sees the clusters that the query set forms.
# [Probabilities for any embeddings](../docs/any-embeddings.md) says which learner this is, and when to choose
# `FewShotClassifier("inductive")` or `balance="known"`.
#
# ## With training
#
# With many labelled classes of your own, a learner can be trained for them. It needs one file with `features` (one row
# per example) and `labels`.

# %%
np.savez("embeddings.npz", features=features.astype(np.float32), labels=labels)

# %% [markdown]
# ### Train
#
# The classes are split: 64% for training, 16% for validation (which selects the best learner), and the rest for the
# test. Tasks are drawn from each split. A task has five classes, with one labelled row per class (the support set)
# and fifteen rows per class to classify (the query set).

# %%
# !metabayes run guide=sib data=features data.path=embeddings.npz train.steps=200 eval.tasks=300 hydra.run.dir=runs/mine

# %% [markdown]
# `accuracy` is the accuracy on the test classes. All files of the run are in `runs/mine`.
#
# ## Use
#
# Now there are five new classes with one labelled row each. `MetaLearner.load` loads the learner from the folder of the
# run. Its method `predict` takes arrays:

# %%
from pyro_metabayes import MetaLearner

learner = MetaLearner.load("runs/mine")


def new_task(shots: int, queries: int = 15) -> tuple[np.ndarray, ...]:
    """Five new classes: labelled rows, their labels, rows to classify, and the true labels of these."""
    centres = random.normal(size=(5, 64))
    labels, truth = np.repeat(np.arange(5), shots), np.repeat(np.arange(5), queries)
    support_x, query_x = (centres[classes] + 2 * random.normal(size=(len(classes), 64)) for classes in (labels, truth))
    return support_x, labels, query_x, truth


support_x, labels, query_x, truth = new_task(shots=1)
probabilities, spread = learner.predict(support_x, labels, query_x)
answers = probabilities.argmax(1).numpy()
print("right:", (answers == truth).sum(), "of", len(truth))

# %% [markdown]
# One row tells little about a class. The plot below shows the first two principal components of the 64 dimensions.
# The labelled rows (stars) may be far from the centres of their classes, so the nearest star is often the wrong one.
# `sib` uses all queries of the task at once, without their labels, and moves the class weights towards the clusters
# of queries.

# %% alt="One task in two dimensions, with the wrong predictions circled: more with nearest class means than with sib"
from pyro_metabayes.experiments.runs.plots import legend_below, new_figure


def nearest_mean(support_x: np.ndarray, labels: np.ndarray, query_x: np.ndarray) -> np.ndarray:
    """The class whose mean has the largest cosine, a baseline without training."""
    means = np.stack([support_x[labels == label].mean(0) for label in range(5)])
    return (query_x @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1)


middle = query_x.mean(0)
plane = np.linalg.svd(query_x - middle, full_matrices=False)[2][:2].T
figure, axes = new_figure(2)
for axis, name, given in zip(
    axes, ("nearest class mean", "sib"), (nearest_mean(support_x, labels, query_x), answers), strict=True
):
    x, y = ((query_x - middle) @ plane).T
    axis.scatter(x, y, c=[f"C{label}" for label in truth], s=14)
    wrong = given != truth
    axis.scatter(x[wrong], y[wrong], facecolors="none", edgecolors="black", s=70, label="wrong")
    axis.scatter(*((support_x - middle) @ plane).T, c=[f"C{label}" for label in labels], marker="*", s=150, ec="black")
    axis.set(title=f"{name}: {(~wrong).sum()} of {len(truth)} right", xticks=[], yticks=[])
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=8)
figure

# %% [markdown]
# ## How many labels do you need?
#
# The same learner takes any number of labelled rows. The plots below are for thirty new tasks per number of labelled
# rows. They show the accuracy, and the calibration of the probabilities: of the predictions with a confidence of 80%,
# are 80% correct?
#
# In training there was one labelled row per class. Guides that use the query set, such as `sib`, warn if a task
# differs from the training tasks: their predictions may then be worse than those of the class means. The left plot
# compares both, so the warning is switched off here.

# %% alt="Left: accuracy of sib and of nearest class means against labelled rows per class. Right: share of right predictions of sib against its confidence, near the diagonal"
import warnings

from pyro_metabayes import UnfamiliarTasks

warnings.simplefilter("ignore", UnfamiliarTasks)
SHOTS = (1, 2, 5, 10)
accuracy: dict[str, list[float]] = {"nearest class mean": [], "sib": []}
confidence, right = [], []
for shots in SHOTS:
    hits: dict[str, list[float]] = {name: [] for name in accuracy}
    for _ in range(30):
        support_x, labels, query_x, truth = new_task(shots)
        probabilities = learner.predict(support_x, labels, query_x, num_samples=20).probabilities.numpy()
        hits["nearest class mean"].append((nearest_mean(support_x, labels, query_x) == truth).mean())
        hits["sib"].append((probabilities.argmax(1) == truth).mean())
        if shots == 1:
            confidence += list(probabilities.max(1))
            right += list(probabilities.argmax(1) == truth)
    for name in accuracy:
        accuracy[name].append(100 * float(np.mean(hits[name])))

figure, axes = new_figure(2)
for name, values in accuracy.items():
    axes[0].plot(SHOTS, values, "o-", label=name)
axes[0].set(title="accuracy on new classes, %", xlabel="labelled rows per class", xticks=SHOTS)
legend_below(axes[0])

bins = np.digitize(confidence, [0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
for number in np.unique(bins):
    inside = bins == number
    axes[1].plot(100 * np.mean(np.array(confidence)[inside]), 100 * np.mean(np.array(right)[inside]), "oC1")
axes[1].plot([20, 100], [20, 100], "k:", lw=0.8)
axes[1].set(title="sib, one labelled row per class: calibration", xlabel="confidence, %", ylabel="right, %")
figure

# %% [markdown]
# With one labelled row per class, `sib` is as accurate as class means of several rows. In the right plot, calibrated
# predictions lie on the dotted line. Points above it mean that the learner is underconfident, points below it that it
# is overconfident. Few predictions have a confidence below 60%, so those points are uncertain.
#
# ## Next
#
# - [Your own files and images](../docs/own-data.md), and the learner as a scikit-learn classifier.
# - [From a folder of images to predictions](06_images_to_predictions.ipynb), with the answer "unknown".
# - `guide=sib` needs the whole query set at once. [Other guides](02_swapping_guides.ipynb) do not.
# - [The meaning of every metric of a run](../docs/results.md#what-the-numbers-mean).
