"""Label propagation on the graph of nearest neighbours of the points of a task.

Zhou et al., "Learning with Local and Global Consistency", NeurIPS 2004, in the form of Lazarou, Stathaki and Avrithis
2021.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pyro_metabayes.inference.cholesky import cholesky


def propagation(x: Tensor, mask: Tensor, num_neighbours: int, power: float, decay: float) -> Tensor:
    """Compute the matrix of label propagation for each task.

        matrix = (I - decay D^-1/2 (W + W^T) D^-1/2)^-1

    where W_ij = max(cos(x_i, x_j), 0)^power if j is one of the num_neighbours points nearest to i, else 0, and D is the
    diagonal matrix of the row sums of W + W^T. The product of the matrix with the one-hot labels of some points gives
    class scores of all points.

    Args:
        x: [T, N, num_features], N points x_i of T tasks.
        mask: [T, N], False for masked points, which have no neighbours and are no neighbours.
        num_neighbours: number of neighbours of each point, without the point itself.
        power: exponent of the cosines (gamma in Lazarou et al.).
        decay: factor of the graph in [0, 1) (alpha in Zhou et al.).

    Returns:
        Tensor [T, N, N].
    """
    unit = normalize(x, dim=-1)
    own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    off = own | ~(mask.unsqueeze(-1) & mask.unsqueeze(-2))
    cosine = (unit @ unit.mT).masked_fill(off, -torch.inf)
    best = cosine.topk(min(num_neighbours, x.shape[1]), dim=-1)
    weights = best.values.clamp(min=0).pow(power)
    directed = torch.zeros_like(cosine).scatter(-1, best.indices, weights)
    graph = directed + directed.mT
    root = graph.sum(-1).clamp(min=torch.finfo(x.dtype).tiny).rsqrt()  # an isolated point has a row of zeros
    root = torch.where(graph.sum(-1) > 0, root, 0.0)
    system = own.to(x.dtype) - decay * root.unsqueeze(-1) * graph * root.unsqueeze(-2)
    return torch.cholesky_inverse(cholesky(system))
