"""Pretraining of a backbone as a classifier over all training classes: the classifier and the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_metabayes.pretraining.augmentation import rotate
from pyro_metabayes.pretraining.settings import PretrainSettings


class CosineClassifier(nn.Module):
    """Linear classifier with normalised weights. The logit of class c for features x is

        scale * w_c . x / |w_c|.

    For features of unit length this is scale * cos(w_c, x) (Gidaris and Komodakis 2018, stage 1). A class that occurs
    in several domains has one weight vector.

    Args:
        num_features: size of x.
        num_classes: number of classes.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, num_features))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * features @ functional.normalize(self.weight, dim=-1).T


def classifier_of(backbone: nn.Module, num_classes: int, rotation: bool) -> nn.ModuleDict:
    """Construct the modules of pretraining. All weights are initialised anew, also those of the backbone.

    Args:
        backbone: the network, which is changed in place.
        num_classes: number of training classes.
        rotation: whether to add a classifier of the rotation of an image (0 to 3 quarter turns).

    Returns:
        The modules "backbone", "classes" (classifier of classes) and, with `rotation`, "turns" (classifier of
        rotations).
    """
    _initialise(backbone)
    num_features = int(backbone.num_features)  # type: ignore[arg-type]
    network = nn.ModuleDict({"backbone": backbone, "classes": CosineClassifier(num_features, num_classes)})
    if rotation:
        network["turns"] = CosineClassifier(num_features, 4)
    return network


def classification_loss(
    network: nn.ModuleDict, images: Tensor, labels: Tensor, settings: PretrainSettings
) -> tuple[Tensor, Tensor]:
    """Compute the mean cross-entropy of a batch in nats, and the number of correctly classified images.

    With settings.mixup, pairs of images are mixed, and the loss uses the labels of both images.

    With settings.rotation, half of the batch is also rotated at random. The loss of predicting these rotations is
    added, multiplied by settings.rotation.

    Args:
        network: the modules from `classifier_of`.
        images: a batch of images.
        labels: classes of the images.
        settings: settings of pretraining.
    """
    images, other_labels, share = _mixed_pairs(images, labels, settings.mixup)
    quarters = torch.randint(0, 4, (len(images) // 2,), device=images.device) if settings.rotation else None
    if quarters is not None:
        images = torch.cat([images, rotate(images[: len(quarters)], quarters)])
    with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
        features = network["backbone"](images)
        logits = network["classes"](features[: len(labels)])
    smoothing = settings.label_smoothing
    loss = share * functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    if share < 1:
        loss += (1 - share) * functional.cross_entropy(logits.float(), other_labels, label_smoothing=smoothing)
    if quarters is not None:
        rotation_logits = network["turns"](features[len(labels) :].float())
        loss += settings.rotation * functional.cross_entropy(rotation_logits, quarters)
    return loss, (logits.argmax(-1) == labels).sum()


def _mixed_pairs(images: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor, float]:
    """Mix each image with a random other image (mixup). With alpha = 0 the images are unchanged.

    Returns:
        The mixed images, the labels of the other images, and the weight of the original images, 0 to 1.
    """
    if not alpha:
        return images, labels, 1.0
    partner = torch.randperm(len(images), device=images.device)
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    return share * images + (1 - share) * images[partner], labels[partner], share


def _initialise(backbone: nn.Module) -> None:
    """Initialise all weights of the backbone anew, with torch's random state."""
    # The backbone comes last, since it may override the initialisation of its parts.
    for module in [*list(backbone.modules())[1:], backbone]:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
