"""Networks that predict the gradient of the loss with respect to the logits, without labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_metabayes.inference.task_norm import TaskNorm, point_shares

LEAST_SHARE = 1e-3  # lower bound on a class frequency, so that its logarithm is finite


class OrderedNet(nn.Module):
    """The published synthetic-gradient network xi, on the C logits of a query in class order.

    The layers are Linear-ReLU-norm of width 8 C, a second Linear-ReLU-norm of width 8 C, and Linear.

    Args:
        num_classes: number of classes C.
        normalise: whether channels are normalised over the queries of a task.
        over_batch: whether the normalisation is over the queries of all tasks of a batch instead.
    """

    pure = True  # a function of tensors, which torch.compile can compile
    fixed_classes = True  # works only for one number of classes

    def __init__(self, num_classes: int, normalise: bool = True, over_batch: bool = False) -> None:
        super().__init__()
        self.over_batch = over_batch
        width = 8 * num_classes
        self.inputs = nn.Linear(num_classes, width)
        self.hidden = nn.Linear(width, width)
        self.outputs = nn.Linear(width, num_classes)
        self.norms = nn.ModuleList([TaskNorm(width, over_batch=over_batch) for _ in range(2)] if normalise else [])

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Predict d loss / d logits from the logits per task, query and class [..., T, Q, C]; mask [T, Q]."""
        x, shares = logits, point_shares(mask, self.over_batch)
        for i, layer in enumerate((self.inputs, self.hidden)):
            x = layer(x).relu()
            x = self.norms[i](x, shares) if self.norms else x
        return self.outputs(x)


class PooledLinear(nn.Linear):
    """Permutation-equivariant linear layer: a map of each class plus a map of the mean over classes."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(2 * num_inputs, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        of_class, of_mean = self.weight.chunk(2, dim=1)
        if self.out_features < x.shape[-1]:  # averages after the map, which has fewer channels
            own, pooled = linear(x, torch.cat((of_class, of_mean))).chunk(2, dim=-1)
            return own + (pooled.mean(-2, keepdim=True) + self.bias)
        return linear(x, of_class) + linear(x.mean(-2, keepdim=True), of_mean, self.bias)


class EquivariantNet(nn.Module):
    """A synthetic-gradient network xi for any number of classes, equivariant under permutations of the classes.

    The network has three layers. Each layer applies one map to every class, and another map to the mean over classes.
    Channels are normalised over the queries and classes of a task jointly.

    Args:
        width: number of channels per class.
        normalise: whether channels are normalised.
        over_batch: whether the normalisation is over all tasks of a batch instead.
    """

    pure = True
    fixed_classes = False

    def __init__(self, width: int = 32, normalise: bool = True, over_batch: bool = False) -> None:
        super().__init__()
        self.over_batch = over_batch
        self.inputs = PooledLinear(2, width)
        self.hidden = PooledLinear(width, width)
        self.outputs = PooledLinear(width, 1)
        self.norms = nn.ModuleList([TaskNorm(width, over_batch=over_batch) for _ in range(2)] if normalise else [])

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Predict d loss / d logits from the logits per task, query and class [..., T, Q, C]; mask [T, Q]."""
        num_classes = logits.shape[-1]
        shares = point_shares(mask.repeat_interleave(num_classes, dim=-1), self.over_batch)  # [T, 1, Q * C]
        x = torch.stack((logits, logits.softmax(-1)), dim=-1)
        for i, layer in enumerate((self.inputs, self.hidden)):
            x = layer(x).relu()  # [..., T, Q, C, H]
            if self.norms:
                x = self.norms[i](x.flatten(-3, -2), shares).unflatten(-2, (-1, num_classes))
        return self.outputs(x).squeeze(-1)


class MarginalNet(nn.Module):
    """A synthetic-gradient network xi with the class marginal as input, equivariant under permutations of the classes.

    The class marginal predicted by the logits of the Q queries i is

        m_c = (1/Q) sum_i softmax(logits_i)_c.

    As in the published network, channels are normalised over the queries for each class separately. The normalisation
    removes the predicted class frequencies, which matter for imbalanced query sets. Therefore a linear map of the
    removed means over the queries, of m_c and of log m_c is added to the normalised channels.

    Args:
        width: number of channels per class.
        normalise: whether channels are normalised.
        over_batch: whether the normalisation is over all tasks of a batch instead.
    """

    pure = True
    fixed_classes = False

    def __init__(self, width: int = 64, normalise: bool = True, over_batch: bool = False) -> None:
        super().__init__()
        self.over_batch = over_batch
        self.inputs = PooledLinear(2, width)
        self.hidden = PooledLinear(width, width)
        self.outputs = PooledLinear(width, 1)
        self.shares = nn.ModuleList([PooledLinear(width + 2, width) for _ in range(2)])
        self.norms = nn.ModuleList([TaskNorm(width, over_batch=over_batch) for _ in range(2)] if normalise else [])

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Predict d loss / d logits from the logits per task, query and class [..., T, Q, C]; mask [T, Q]."""
        x = torch.stack((logits, logits.softmax(-1)), dim=-1)
        num_classes, of_task, of_norm = logits.shape[-1], point_shares(mask), point_shares(mask, self.over_batch)
        marginal = (of_task.to(x.dtype) @ x[..., 1]).clamp(min=LEAST_SHARE).unsqueeze(-1)
        marginal = torch.cat((marginal, marginal.log()), dim=-1)  # [..., T, 1, C, 2]
        for i, layer in enumerate((self.inputs, self.hidden)):
            x = layer(x).relu().flatten(-2)  # [..., T, Q, C * H]: a mean over queries is one product
            mean = (of_task.to(x.dtype) @ x).unflatten(-1, (num_classes, -1))
            share = self.shares[i](torch.cat((mean, marginal), dim=-1)).flatten(-2)
            x = self.norms[i](x, of_norm, share) if self.norms else x + share
            x = x.unflatten(-1, (num_classes, -1))
        return self.outputs(x).squeeze(-1)
