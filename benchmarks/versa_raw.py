"""The conditional prior of mc and savi without this library, in raw batched PyTorch.

VERSA's two blocks map class means to loc and scale of the weights of a cosine classifier. One matrix product gives the
logits of all classes and samples of a task. The KL and the encoding of the support set are computed once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def block(num_inputs: int, num_outputs: int) -> nn.Module:
    layers = (nn.Linear(num_inputs, 256), nn.ELU(), nn.Linear(256, 256), nn.ELU(), nn.Linear(256, num_outputs))
    return nn.Sequential(*layers)


class RawEncoder(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.loc, self.log_scale = block(num_features, num_features), block(num_features, num_features)
        nn.init.constant_(self.log_scale[-1].bias, math.log(0.135))
        self.scale, self.bias = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(0.0))

    def encoded(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Compute loc and scale [T, C, D] of the weights from class means [T, C, D]."""
        return mean + self.loc(mean), self.log_scale(mean).clamp(-10, 4).exp()

    def log_likelihood(self, loc: Tensor, scale: Tensor, x: Tensor, labels: Tensor, samples: int) -> Tensor:
        """Compute log p(y_i | x_i, w_l) [T, L, Q] of the queries x [T, Q, D] with labels [T, Q], for L draws w_l."""
        num_tasks, num_classes, num_features = loc.shape
        noise = torch.randn(num_tasks, samples, num_classes, num_features, device=loc.device)
        w = loc.unsqueeze(1) + scale.unsqueeze(1) * noise
        cosine = torch.bmm(functional.normalize(w, dim=-1).flatten(1, 2), x.mT)  # [T, L * C, Q]
        logits = self.scale * (cosine.unflatten(1, (samples, num_classes)) + self.bias)
        index = labels[:, None, None].expand(-1, samples, 1, -1)
        return (logits.gather(2, index) - logits.logsumexp(2, keepdim=True)).squeeze(2)

    def savi_loss(self, support: Tensor, x: Tensor, labels: Tensor, samples: int) -> Tensor:
        """Compute the loss with KL weight 1; support [T, C, shot, D]. Queries are class-ordered and balanced."""
        queries = x.unflatten(1, (support.shape[1], -1))
        pooled = torch.cat((support, queries), dim=2).mean(2)
        loc, scale = self.encoded(support.mean(2))
        q_loc, q_scale = self.encoded(pooled)
        ratio = (q_scale / scale).square()
        kl = 0.5 * (ratio + ((q_loc - loc) / scale).square() - 1 - ratio.log()).sum()
        return (kl - self.log_likelihood(q_loc, q_scale, x, labels, samples).sum() / samples) / len(x)

    def mc_loss(self, support: Tensor, x: Tensor, labels: Tensor, samples: int) -> Tensor:
        loc, scale = self.encoded(support.mean(2))
        log_likelihood = self.log_likelihood(loc, scale, x, labels, samples)
        return -(log_likelihood.logsumexp(1) - math.log(samples)).sum() / len(x)
