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
# # From a folder of images to predictions
#
# You have a folder of images. A few of them have labels, and some of the others show things that you have no label for.
# This notebook turns the images into embeddings, classifies them with `FewShotClassifier`, and lets it answer "unknown".
#
# **How to open this.** GitHub shows this notebook with its outputs. To run it, in the root of a clone, with Python 3.11
# to 3.13:
#
# ```
# pip install '.[experiments,timm]'
# pip install jupyterlab
# jupyter lab notebooks/06_images_to_predictions.ipynb
# ```
#
# `notebooks/06_images_to_predictions.py` has the same text. CPU builds of torch and more: [Install](../docs/install.md).

# %% [markdown]
# ## The folder
#
# The folder `photos` has one folder per class with five images each, and the folder `new` with the images to classify.
# Here they are Greek letters, drawn with the fonts of matplotlib and distorted, since nothing is downloaded. Six letters
# have labelled images. Three more letters, zeta, xi and psi, occur in `new` alone. The file names in `new` begin with the
# true letter, which is used for the scores only.

# %%
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pyro_metabayes.data.sources import glyphs

# %matplotlib inline

KNOWN = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "phi": "φ", "omega": "ω"}
OTHERS = {"zeta": "ζ", "xi": "ξ", "psi": "ψ"}

bank = glyphs.load(rotation=10.0, shear=0.1, scale=0.1, shift=1.0, noise=0.1)
images = bank.inputs.unflatten(0, (-1, 20))  # 20 images of each character, [G, 20, 1, 28, 28]
shutil.rmtree("photos", ignore_errors=True)
Path("photos.npz").unlink(missing_ok=True)  # the command below does not overwrite it
for name, character in (KNOWN | OTHERS).items():
    for number, pixels in enumerate(images[bank.class_names.index(character), :, 0].numpy()):
        labelled = name in KNOWN and number < 5
        file = Path("photos", name if labelled else "new", f"{name}_{number:02d}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
print({folder.name: len(list(folder.iterdir())) for folder in sorted(Path("photos").iterdir())})

# %% alt="One image of each of six known Greek letters, and ten images of the folder new"
from pyro_metabayes.experiments.runs.plots import legend_below, new_figure


def show(axis, file: Path, title: str, color: str = "black") -> None:
    axis.imshow(Image.open(file), cmap="gray")
    axis.set_axis_off()
    axis.set_title(title, fontsize=9, color=color)


figure, axes = new_figure(8, rows=2)
figure.set_size_inches(9, 2.8)
samples = [*(Path("photos", name, f"{name}_00.png") for name in KNOWN), *sorted(Path("photos/new").iterdir())[3::16]]
for axis, file in zip(axes, samples, strict=False):
    show(axis, file, file.parent.name)
figure

# %% [markdown]
# ## Images to embeddings
#
# An embedding is the output of a network that was pretrained on many other images. For photographs take a large one of
# timm or torchvision, such as `backbone=timm backbone.name=resnet18`, and skip the next cell
# ([pretrained backbones](../docs/backbones-and-embeddings.md)). To download nothing, the next cell trains a tiny network of
# timm to tell 100 digits, Latin letters and other signs apart. It has not seen a Greek letter.

# %%
import math

import torch
from torch.nn.functional import cross_entropy, normalize

from pyro_metabayes.models.backbones import timm

torch.manual_seed(0)
signs = images[bank.splits["train"][15:115]]
steps = 120
backbone = timm.Backbone((1, 28, 28), name="test_byobnet", weights="random", size=28)
classes = torch.nn.Parameter(0.1 * torch.randn(len(signs), backbone.num_features))
optimiser = torch.optim.SGD([*backbone.parameters(), classes], lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
backbone.train()
for _ in range(steps):
    sign, number = torch.randint(len(signs), (96,)), torch.randint(20, (96,))
    cosines = backbone(signs[sign, number] / 255) @ normalize(classes, dim=1).T
    loss = cross_entropy(10 * cosines, sign)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
torch.save(backbone.network.state_dict(), "network.pt")
print(f"loss of the last batch {loss.item():.2f} nats, that of a guess {math.log(len(signs)):.2f}")

# %% [markdown]
# One command writes the embeddings of all images, the names of their folders and their files to one file:

# %%
# !metabayes embed photos out=photos.npz backbone=timm backbone.name=test_byobnet backbone.weights=network.pt backbone.size=28

# %% [markdown]
# ## Embeddings to predictions
#
# The labelled images are the support set, and the images in `new` are the query set. The learner that ships as
# `"inductive"` predicts each query from the support set alone. The default learner also uses the other queries. It
# assumes that all of them belong to the classes of the support set, which is not so here.

# %%
from pyro_metabayes import FewShotClassifier

stored = np.load("photos.npz")
features, labels, files = stored["features"], stored["labels"], stored["files"]
new = labels == "new"
support_x, support_y, query_x, query_files = features[~new], labels[~new], features[new], files[new]
truth = np.array([Path(file).name.partition("_")[0] for file in query_files])
known = np.isin(truth, list(KNOWN))

classifier = FewShotClassifier("inductive").fit(support_x, support_y)
probabilities = classifier.predict_proba(query_x)
print(f"accuracy on the letters with labelled images: {(classifier.predict(query_x) == truth)[known].mean():.2f}")

# %% [markdown]
# ## Unknown
#
# The entropy of a prediction is 0 if it is certain, and log 6 = 1.79 nats if all six classes are equally probable.
# `reject_above=t` answers "unknown" above t. The labelled images suffice to choose t: leave out one image of each class and
# predict it from the others. Below, t is the entropy that 90% of these predictions do not exceed.

# %%


def entropy(values: np.ndarray) -> np.ndarray:
    return -(values * np.log(np.clip(values, 1e-12, None))).sum(1)


held_out = []
for number in range(5):
    left = np.arange(len(support_y)) % 5 == number  # the files are sorted, with five of each class
    fitted = FewShotClassifier("inductive").fit(support_x[~left], support_y[~left])
    held_out.append(entropy(fitted.predict_proba(support_x[left])))
threshold = float(np.quantile(np.concatenate(held_out), 0.9))

classifier = FewShotClassifier("inductive", reject_above=threshold).fit(support_x, support_y)
answers = classifier.predict(query_x)
print(f"threshold {threshold:.2f} nats")
print(
    f"known letters: {(answers == truth)[known].mean():.0%} right, {(answers == 'unknown')[known].mean():.0%} unknown"
)
print(f"other letters: {(answers == 'unknown')[~known].mean():.0%} unknown")

# %% [markdown]
# The AUROC (area under the ROC curve) is the probability that an image of another letter has a larger entropy than one of
# a known letter: 0.5 is chance, 1 is best. It does not depend on a threshold.

# %% alt="Left: entropy of predictions for known and other letters, with the threshold. Right: counts of true letters and answers; images of psi are answered phi"
from sklearn.metrics import roc_auc_score

score = entropy(probabilities)
print(f"AUROC of the entropy {roc_auc_score(~known, score):.2f}")

names, columns = [*KNOWN, *OTHERS], [*KNOWN, "unknown"]
counts = np.array([[np.sum((truth == name) & (answers == column)) for column in columns] for name in names])
figure, axes = new_figure(2)
bins = np.linspace(0, math.log(len(KNOWN)), 19)
axes[0].hist(score[known], bins, color="C0", alpha=0.6, label="known letters")
axes[0].hist(score[~known], bins, color="C3", alpha=0.6, label="other letters")
axes[0].axvline(threshold, color="black", ls="--", lw=1, label="threshold")
axes[0].set(title="entropy of the predictions", xlabel="nats", ylabel="images")
legend_below(axes[0], 3)
axes[1].imshow(counts, cmap="Blues", aspect="auto", vmax=1.3 * counts.max())
axes[1].grid(False)
for (row, column), count in np.ndenumerate(counts):
    if count:
        axes[1].text(column, row, count, ha="center", va="center", fontsize=8)
axes[1].axhline(len(KNOWN) - 0.5, color="black", lw=0.8)
axes[1].axvline(len(KNOWN) - 0.5, color="black", lw=0.8)
axes[1].set_xticks(range(len(columns)), columns, fontsize=8)
axes[1].set_yticks(range(len(names)), names, fontsize=8)
axes[1].set(title="true letter (rows) and answer (columns)")
figure

# %% [markdown]
# The errors are the most useful images to look at. Here are the eight wrong answers with the smallest entropy, with
# the true letter after the arrow:

# %% alt="Eight images of psi that were answered phi with the lowest entropy"
wrong = np.flatnonzero(answers != np.where(known, truth, "unknown"))
figure, axes = new_figure(8)
figure.set_size_inches(9, 1.6)
for axis in axes:
    axis.set_axis_off()
for axis, row in zip(axes, wrong[score[wrong].argsort()], strict=False):
    show(axis, Path("photos", query_files[row]), f"{answers[row]} → {truth[row]}", "C3")
figure

# %% [markdown]
# ## A table
#
# One line per image, to open in a spreadsheet:

# %%
lines = ["file,answer,entropy," + ",".join(f"p({name})" for name in classifier.classes_)]
for file, answer, nats, row in zip(query_files, answers, score, probabilities, strict=True):
    lines.append(f"{file},{answer},{nats:.3f}," + ",".join(f"{value:.3f}" for value in row))
Path("predictions.csv").write_text("\n".join(lines) + "\n")
print("\n".join(lines[:4]))

# %% [markdown]
# Entropy says how undecided a prediction is between the known classes, not how far an image is from all of them. Zeta and
# xi are mostly "unknown". Psi resembles one known letter, phi, and is accepted as phi with a small entropy. A remedy is
# a few labelled images of psi, or a network that was trained on more characters.
#
# ## Next
#
# - [Unknown classes](../docs/unknown-classes.md): other scores, and thresholds from many tasks.
# - [Predictions to look at](../docs/predictions.md): the same table from a trained run, with one command.
# - [Quick start](01_quick_start.ipynb): train a learner on classes of your own.
