"""The mixture density of features for which the softmax of a head is the posterior of the classes."""

from __future__ import annotations

from torch import Tensor

from pyro_metabayes.models.heads import Cosine, CosineOffset, Head, Linear


def log_density(head: Head, w: Tensor, x: Tensor) -> Tensor | None:
    """Compute log p(x_i | w) = log sum_c pi_c p(x_i | c, w), up to a constant independent of x and w.

    This is the mixture density for which p(c | x, w) is the softmax of the logits of the head. Class c has the
    probability pi_c and the component p(x | c, w):

        Cosine        pi_c = 1 / C                                          vMF(x; w_c / |w_c|, scale)
        CosineOffset  pi_c proportional to exp(scale b_c)                   vMF(x; v_c / |v_c|, scale)
        Linear        pi_c proportional to exp(scale (b_c + |v_c|^2 / 4))   N(x; v_c / 2, I / (2 scale))

    vMF is the von Mises-Fisher density on the unit sphere. At the prototypes of the linear head pi_c = 1 / C, and the
    components are normal distributions around the class means.

    Args:
        head: a head.
        w: W weights w_c, or (v_c, b_c), of each of C classes in T tasks [..., T, C, W].
        x: D features of N points per task [T, N, D].

    Returns:
        Tensor [..., T, N], in nats; None for another head.
    """
    log_sum = head.outputs(w, x).logsumexp(-1)
    if type(head) is Cosine:
        return log_sum
    if type(head) is CosineOffset:
        return log_sum - (head.scale * w[..., -1]).logsumexp(-1, keepdim=True)
    if type(head) is Linear:
        terms = head.scale * (w[..., -1] + w[..., :-1].square().sum(-1) / 4)
        return log_sum - terms.logsumexp(-1, keepdim=True) - head.scale * x.square().sum(-1)
    return None
