"""Training losses of laplace, leo and llama in raw batched PyTorch, in nats per task, without masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from benchmarks import gradient

RATE, NOISE = 0.01, gradient.NOISE


class RawLaplace(nn.Module):
    """One inner step from the prior mean, then a Gaussian with the precision of prior and support set."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(num_features))
        self.log_scale = nn.Parameter(torch.full((num_features,), 0.03).log())
        self.scale, self.bias = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(0.0))
        self.log_rate = nn.Parameter(torch.tensor(RATE).log())

    def cosines(self, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return cosines [T, C, N], 1 / |w_c| [T, C, 1] and logits [T, N, C] of w [T, C, D] and points x [T, N, D]."""
        norm = w.norm(dim=-1, keepdim=True)
        inverse = norm / (norm.square() + 1e-24)
        cosine = (w @ x.mT) * inverse
        return cosine, inverse, (self.scale * (cosine + self.bias)).mT

    def loss(self, support: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        num_tasks, way, shot, _ = support.shape
        x, precision = support.flatten(1, 2), (-2 * self.log_scale).exp()
        theta = self.loc.expand(num_tasks, way, -1)
        rate = self.log_rate.exp() / x.shape[1]
        cosine, inverse, logits = self.cosines(theta, x)
        g = (logits.softmax(-1) - torch.eye(way).repeat_interleave(shot, 0)).mT * self.scale * inverse
        slope = g @ x - (g * cosine).sum(-1, keepdim=True) * inverse * theta
        theta = theta - rate / (1 + rate * precision) * slope
        v = (self._root(theta, x) * self.log_scale.exp().unsqueeze(-1)).flatten(1, 2)  # [T, C * D, S * C]
        one = torch.eye(v.shape[-1])
        factor = torch.linalg.cholesky(v.mT @ v + one)
        noise = torch.randn(num_tasks, way, query.shape[-1])
        along = torch.linalg.solve_triangular(factor + one, v.mT @ noise.flatten(1).unsqueeze(-1), upper=False)
        along = torch.linalg.solve_triangular(factor.mT, along, upper=True)
        w = theta + (noise - (v @ along).view(noise.shape)) * self.log_scale.exp()
        log_q = factor.diagonal(dim1=-2, dim2=-1).log().sum() - 0.5 * noise.square().sum()
        log_p = -0.5 * ((w - self.loc).square() * precision).sum()  # log det precision of the prior is in both
        log_likelihood = self.cosines(w, query)[2].log_softmax(-1).gather(-1, labels.unsqueeze(-1)).sum()
        return (log_q - log_p - log_likelihood) / num_tasks

    def _root(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return U [T, C, D, S * C]: U U^T is the Fisher information of the weights in the S support points."""
        cosine, inverse, logits = self.cosines(theta, x)
        p = logits.softmax(-1)
        root = torch.diag_embed(p.sqrt()) - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)  # [T, S, C, C]
        slope = x.unsqueeze(2) - cosine.mT.unsqueeze(-1) * (theta * inverse).unsqueeze(1)  # [T, S, C, D]
        slope = slope * (self.scale * inverse).unsqueeze(1)
        return torch.einsum("tscd,tscm->tcdsm", slope, root).flatten(-2)


class RawLeo(nn.Module):
    """One latent per class: five inner steps in the latents, then five in the weights. No dropout and no penalties."""

    def __init__(self, num_features: int, num_classes: int, num_latents: int = 64) -> None:
        super().__init__()
        z = 2 * num_latents
        self.encoder = nn.Linear(num_features, num_latents, bias=False)
        self.relation = nn.Sequential(
            nn.Linear(z, z, bias=False), nn.ReLU(), nn.Linear(z, z, bias=False), nn.ReLU(), nn.Linear(z, z, bias=False)
        )
        self.decoder = nn.Linear(num_latents, 2 * num_features, bias=False)
        self.rate = nn.Parameter(torch.ones(num_latents))
        self.finetune_rate = nn.Parameter(torch.full((num_features,), 1e-3))
        self.spread = math.sqrt(2 / (num_features + num_classes))

    def decode(self, z: Tensor) -> Tensor:
        mean, raw = self.decoder(z).chunk(2, -1)
        return mean + (softplus(raw + math.log(math.expm1(self.spread))) + 1e-6) * torch.randn_like(mean)

    def loss(self, support: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        num_tasks, way, shot, _ = support.shape
        x, targets = support.flatten(1, 2), torch.eye(way).repeat_interleave(shot, 0)
        h = self.encoder(x)
        size = h.shape[1]
        pairs = torch.cat((h.unsqueeze(2).expand(-1, -1, size, -1), h.unsqueeze(1).expand(-1, size, -1, -1)), -1)
        mean, raw = self.relation(pairs).mean(2).unflatten(1, (way, shot)).mean(2).chunk(2, -1)
        scale = softplus(raw + math.log(math.expm1(0.1))) + 1e-6
        noise = torch.randn_like(mean)
        start = mean + scale * noise
        z = start
        for _ in range(5):
            w = self.decode(z)
            z = z - self.rate * torch.autograd.grad(w, z, self._slope(w, x, targets), create_graph=True)[0]
        w = self.decode(z)
        for _ in range(5):
            w = w - self.finetune_rate * self._slope(w, x, targets)
        kl = -scale.log().sum() - 0.5 * noise.square().sum() + 0.5 * start.square().sum()
        log_likelihood = (w @ query.mT).mT.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).sum()
        return (kl - log_likelihood) / num_tasks

    @staticmethod
    def _slope(w: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        return ((w @ x.mT).mT.softmax(-1) - targets).mT @ x


def llama_loss(theta: list[Tensor], x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor, num_steps: int) -> Tensor:
    """Compute maml's loss plus 1e-6 / 2 log det (I + J^T J / noise^2); J: the Jacobian of the query outputs."""
    num_tasks, num_points = query_x.shape[:2]
    phi = gradient.adapt([w.expand(num_tasks, *w.shape) for w in theta], x, y, num_steps)
    alone = [w.repeat_interleave(num_points, 0) for w in phi]
    outputs = gradient.network(alone, query_x.flatten(0, 1).unsqueeze(1))
    slopes = torch.autograd.grad(outputs.sum(), alone, create_graph=True)
    v = torch.cat([slope.flatten(1) for slope in slopes], -1).unflatten(0, (num_tasks, num_points)) / NOISE
    factor = torch.linalg.cholesky(v @ v.mT + torch.eye(num_points))
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum()
    error = (outputs.view(num_tasks, num_points, 1) - query_y).square().sum()
    return (error + 1e-6 * half_log_det) / num_tasks
