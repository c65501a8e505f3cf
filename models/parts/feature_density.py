"""The density of the features of which a head is the posterior of the classes."""

from __future__ import annotations

from torch import Tensor

from pyro_metabayes.models.heads import Cosine, CosineOffset, Head, Linear


def log_density(head: Head, w: Tensor, x: Tensor) -> Tensor | None:
    """log p(x_i | w) = log sum_c pi_c p(x_i | c, w), in nats up to a constant that depends neither on x nor on w.

    The softmax of the logits is p(c | x, w) under the mixture with these components:

        Cosine        pi_c = 1 / C                                          vMF(x; w_c / |w_c|, scale)
        CosineOffset  pi_c proportional to exp(scale b_c)                       vMF(x; v_c / |v_c|, scale)
        Linear        pi_c proportional to exp(scale (b_c + |v_c|^2 / 4))       N(x; v_c / 2, I / (2 scale))

    vMF is the von Mises-Fisher density on the unit sphere. At the prototypes of the linear head pi_c = 1 / C, and the
    components are normal distributions around the class means.

    Args:
        head: a head.
        w: its weights [..., T, C, W].
        x: features [T, N, D].

    Returns:
        Tensor [..., T, N]; None for another head.
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
