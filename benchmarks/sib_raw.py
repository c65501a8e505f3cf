"""SIB without this library: the same training step in raw batched PyTorch, and in the reference way, task by task.

Both are written from the equations (Hu et al., ICLR 2020): a delta posterior, theta^0 from the scaled prototypes, K
steps on the unlabelled queries, and a cosine classifier. The raw step is optimised: it has the closed form of the
pullback, class-major products, and one instance norm that normalises every task.
The reference way is that of the released code. It takes one task at a time and calls autograd.grad with create_graph,
in evaluation too. Products are query-major, and features are normalised at each use. A batch norm over the queries of
the task remains in training mode.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

ETA = 1e-3


class Net(nn.Module):
    """xi: Linear-ReLU-norm twice, then Linear, on the logits; the norm uses the statistics of one task's queries."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        width = 8 * num_classes
        self.inputs, self.hidden = nn.Linear(num_classes, width), nn.Linear(width, width)
        self.outputs = nn.Linear(width, num_classes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2))

    def of_one(self, logits: Tensor) -> Tensor:
        """Compute xi [Q, C] from the logits [Q, C] of one task."""
        x = self.norms[0](self.inputs(logits).relu())
        return self.outputs(self.norms[1](self.hidden(x).relu()))

    def of_all(self, logits: Tensor) -> Tensor:
        """Compute xi [T, Q, C] from the logits [T, Q, C] of all tasks."""
        x = logits
        for layer, norm in zip((self.inputs, self.hidden), self.norms, strict=True):
            x = layer(x).relu().mT
            x = functional.instance_norm(x, weight=norm.weight, bias=norm.bias).mT
        return self.outputs(x)


class RawSib(nn.Module):
    """Loss: the sum over queries of the cross-entropy, minus log N(theta^K; m, s^2), averaged over tasks."""

    def __init__(self, num_features: int, num_classes: int, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.start = nn.Parameter(torch.ones(num_features))
        self.scale, self.bias = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(0.0))
        self.net = Net(num_classes)
        self.loc = nn.Parameter(torch.zeros(num_features))
        self.log_scale = nn.Parameter(torch.full((num_features,), 0.1).log())

    def _log_prior(self, w: Tensor) -> Tensor:
        return torch.distributions.Normal(self.loc, self.log_scale.exp()).log_prob(w).sum()

    def adapted(self, support: Tensor, query: Tensor) -> Tensor:
        """Compute theta^K [T, C, D] of all tasks; support [T, C, shot, D] and query [T, Q, D] have unit length."""
        w = self.start * support.mean(2)
        for _ in range(self.num_steps):
            inverse = 1 / w.norm(dim=-1, keepdim=True)
            cosine = (w * inverse) @ query.mT
            g = self.net.of_all((self.scale * (cosine + self.bias)).mT).mT
            rate = ETA * self.scale * inverse
            w = w * (1 + rate * inverse * (g * cosine).sum(-1, keepdim=True)) - (rate * g) @ query
        return w

    def logits(self, w: Tensor, query: Tensor) -> Tensor:
        return (self.scale * (functional.normalize(w, dim=-1) @ query.mT + self.bias)).mT

    def loss(self, support: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        w = self.adapted(support, query)
        logits = self.logits(w, query)
        nll = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return (nll - self._log_prior(w)) / len(query)

    def one_adapted(self, support: Tensor, query: Tensor) -> Tensor:
        """Compute theta^K [1, C, D] of one task in the reference way; support [C, shot, D] and query [Q, D]."""
        num_classes, shot, _ = support.shape
        shots = functional.normalize(support.flatten(0, 1).unsqueeze(0), dim=-1)
        labels = torch.arange(num_classes).repeat_interleave(shot).view(1, -1, 1)
        member = torch.zeros(1, num_classes * shot, num_classes).to(shots).scatter_(2, labels, 1.0).transpose(1, 2)
        sums = torch.bmm(member, shots)
        w = self.start * sums.div(member.sum(2, keepdim=True).expand_as(sums))
        for _ in range(self.num_steps):
            logits = self.one_logits(w, query)
            w = w - ETA * torch.autograd.grad(logits, w, self.net.of_one(logits), create_graph=True)[0]
        return w

    def one_logits(self, w: Tensor, query: Tensor) -> Tensor:
        """Compute the logits [Q, C] of one task in the reference way, for w [1, C, D] and query [Q, D]."""
        features, weights = functional.normalize(query.unsqueeze(0), dim=-1), functional.normalize(w, dim=-1)
        cosine = torch.baddbmm(self.bias.view(1, 1, 1), features, weights.transpose(1, 2))
        return (self.scale * cosine).flatten(0, 1)

    def one_loss(self, support: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        w = self.one_adapted(support, query)
        return functional.cross_entropy(self.one_logits(w, query), labels, reduction="sum") - self._log_prior(w)
