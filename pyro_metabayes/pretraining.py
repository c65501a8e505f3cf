"""Backbones, pretrained once on the training classes and cached with the features of the whole bank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from pyro_metabayes import checkpoint
from pyro_metabayes.arrays import as_float
from pyro_metabayes.data.bank import Bank
from pyro_metabayes.data.cache import cache_folder
from pyro_metabayes.errors import UsageError
from pyro_metabayes.evaluation import noise_of

EXTRACTION_BATCH = 512
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass
class PretrainSettings:
    """A cosine classifier over the training classes, by SGD with a one-cycle schedule."""

    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 0.2  # at the peak of the cycle
    momentum: float = 0.9  # Nesterov
    weight_decay: float = 5e-4
    shift: int = 2  # augmentation: translation by up to so many pixels
    flip: bool = False  # augmentation: half of the images mirrored, left to right
    precision: str = "32-true"  # 32-true, bf16-mixed (the backbone in bfloat16; what follows it stays float32)
    seed: int = 0  # of the backbone alone: runs of several seeds share it

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"expected pretrain.precision to be one of {', '.join(PRECISIONS)}, got '{self.precision}'"
            )
        if self.epochs < 1 or self.batch_size < 2 or self.learning_rate <= 0 or self.shift < 0:
            raise UsageError(
                f"expected pretrain.epochs >= 1, batch_size >= 2, learning_rate > 0, shift >= 0, got {self}"
            )


class CosineClassifier(nn.Module):
    """logits = scale * cos(w_c, x), over all training classes (Gidaris and Komodakis 2018, stage 1)."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, num_features))
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * features @ functional.normalize(self.weight, dim=-1).T


def pretrained_features(
    backbone: nn.Module, specification: Mapping[str, Any], bank: Bank, settings: PretrainSettings, device: torch.device
) -> Bank:
    """Bring the backbone to its pretrained weights, and give the bank of its features.

    Both come from the cache where a backbone of this specification was pretrained on this bank with
    these settings before; swapping guides costs nothing then.
    """
    key = json.dumps([dict(specification), asdict(settings), bank.fingerprint()], sort_keys=True)
    name = specification["_target_"].split(".")[-2]
    path = cache_folder() / "backbones" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    if path.exists():
        state = checkpoint.load(path)
        backbone.load_state_dict(state["weights"])
        backbone.to(device)
        return bank.with_inputs(state["features"])
    print(f"no pretrained {name} for this data yet: pretraining it once, {settings.epochs} epochs")
    with noise_of(settings.seed):
        accuracy = pretrain(backbone.to(device), bank, settings, device)
    num_classes = len(bank.splits["train"])
    print(
        f"pretrained {name}: {accuracy:.1%} of the training images right among {num_classes} classes "
        f"(chance {1 / num_classes:.1%}); kept in {path}"
    )
    features = extract(backbone, bank, device)
    weights = {name: value.cpu() for name, value in backbone.state_dict().items()}
    checkpoint.save(path, {"weights": weights, "features": features})
    return bank.with_inputs(features)


def pretrain(backbone: nn.Module, bank: Bank, settings: PretrainSettings, device: torch.device) -> float:
    """Train in place on the training classes; accuracy on them over the last epoch."""
    rows, classes = bank.rows("train"), bank.splits["train"]
    labels = torch.searchsorted(classes, bank.labels[rows])
    per_epoch = len(rows) // settings.batch_size
    if per_epoch == 0:
        expected = f"at least pretrain.batch_size={settings.batch_size} training images"
        raise UsageError(f"expected {expected}, got {len(rows)}; lower it or bring more")
    _initialise(backbone)
    classifier = CosineClassifier(int(backbone.num_features), len(classes))  # type: ignore[arg-type]
    network = nn.Sequential(backbone, classifier).to(device).requires_grad_(True).train()
    optimizer, schedule = _one_cycle(network, settings, settings.epochs * per_epoch)
    hits = torch.zeros((), device=device)
    with tqdm(total=settings.epochs * per_epoch, desc="pretrain", unit="batch", disable=None) as bar:
        for _ in range(settings.epochs):
            hits.zero_()
            for batch in torch.randperm(len(rows))[: per_epoch * settings.batch_size].split(settings.batch_size):
                images = _augmented(as_float(bank.inputs[rows[batch]].to(device)), settings)
                loss, right = _classify(network, images, labels[batch].to(device), settings.precision)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                hits += right
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", hits=f"{hits.item() / (per_epoch * settings.batch_size):.1%}")
    backbone.eval()
    return hits.item() / (per_epoch * settings.batch_size)


def _one_cycle(network: nn.Module, settings: PretrainSettings, num_steps: int) -> tuple[SGD, OneCycleLR]:
    optimizer = SGD(
        network.parameters(),
        settings.learning_rate,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    return optimizer, OneCycleLR(optimizer, settings.learning_rate, num_steps, pct_start=0.3)


def _classify(network: nn.Module, images: Tensor, labels: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy, and how many are right."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        logits = network(images)
    logits = logits.float()
    return functional.cross_entropy(logits, labels), (logits.argmax(-1) == labels).sum()


@torch.no_grad()
def extract(backbone: nn.Module, bank: Bank, device: torch.device) -> Tensor:
    """Features of every input of the bank, row by row, on the CPU."""
    backbone.eval()
    parts = [
        backbone(as_float(part.to(device))).cpu()
        for part in tqdm(bank.inputs.split(EXTRACTION_BATCH), desc="extract features", unit="batch", disable=None)
    ]
    return torch.cat(parts)


def _initialise(backbone: nn.Module) -> None:
    """Fresh weights from the noise of pretrain.seed, whatever was drawn before."""
    for module in backbone.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]


def _augmented(images: Tensor, settings: PretrainSettings) -> Tensor:
    if settings.flip:
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    return _shifted(images, settings.shift)


def _shifted(images: Tensor, most: int) -> Tensor:
    """Each image moved by up to `most` pixels along each axis, zeros moving in."""
    if most == 0:
        return images
    padded = functional.pad(images, (most,) * 4)
    num, _, height, width = images.shape
    top, left = torch.randint(0, 2 * most + 1, (2, num), device=images.device)
    rows = (top.unsqueeze(1) + torch.arange(height, device=images.device)).view(num, 1, height, 1)
    columns = (left.unsqueeze(1) + torch.arange(width, device=images.device)).view(num, 1, 1, width)
    item = torch.arange(num, device=images.device).view(num, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return padded[item, channel, rows, columns]
