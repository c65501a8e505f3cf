"""LEO's encoder: a relation network over pairs of support points infers the latent vector that adaptation starts from.

Rusu et al., "Meta-Learning with Latent Embedding Optimization", ICLR 2019 (arXiv 1807.05960), and its released code.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from pyro.distributions import Delta, Normal, TorchDistribution
from torch import Size, Tensor

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed, class_sums
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.networks import half_square, mean_of_points, mean_relation, positive, relu_network
from pyro_metabayes.seeding import task_draws


@runtime_checkable
class DecodesLatents(Protocol):
    """Model that adapts a latent vector z to the support set and decodes its weights from z (model=leo)."""

    num_latents: int
    sample_at_test: bool
    l2: float

    def event_shape(self, observed: Observed) -> Size: ...

    def adapt(self, z: Tensor, observed: Observed) -> tuple[Tensor, Tensor]: ...

    def dropped(self, x: Tensor, observed: Observed) -> Tensor: ...


class Guide(pyro_metabayes.Guide):
    """Gaussian posterior over the latent vector z_n of each class n, computed by an encoder from the support set.

    q(z_n | support) = N(mu_n, diag(sigma_n^2)), with the relation network g (eq. 3) of two hidden layers and

        (mu_n, s_n) = mean of g(h_i, h_j) over the support points i of class n and all support points j,
        h_i = encoder(x_i),    sigma_n = softplus(s_n + constant)    (released code: max(exp(s_n) - 1, 1e-10)).

    In a regression a task has one latent vector. The encoder then takes (x_i, y_i), and the mean is over all pairs. For
    classes the networks have no biases. With model.copies > 1 a class has several latent vectors, drawn independently.
    Predictions use z = mu, or draws of z if model.sample_at_test is true.

    Args:
        num_hidden: width of the two hidden layers of the encoder; 0 for a linear map.
        scale: standard deviation sigma at s = 0.
        encoder_penalty: weight, in nats per task, of the mean squared difference between a draw of z and the same z
            after adaptation. The adapted z is treated as a constant.

    Raises:
        UsageError: a setting is out of range, or the model does not decode latents.
    """

    requires = (DecodesLatents,)

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_features: int,
        num_targets: int,
        num_hidden: int = 0,
        scale: float = 0.1,
        encoder_penalty: float = 0.0,
    ) -> None:
        super().__init__(model)
        if num_hidden < 0 or scale <= 0 or encoder_penalty < 0:
            got = f"{num_hidden=}, {encoder_penalty=}, {scale=}"
            raise UsageError(f"expected guide.num_hidden, encoder_penalty >= 0 and scale > 0, got {got}")
        self.num_classes = num_targets or None
        self.scale, self.encoder_penalty = scale, encoder_penalty
        latents, hidden = self.leo.num_latents, [num_hidden, num_hidden] if num_hidden else []
        bias = num_targets > 0
        self.encoder = relu_network([num_features + num_targets, *hidden, latents], bias)
        self.relation = relu_network([2 * latents] * 4, bias)

    @property
    def leo(self) -> DecodesLatents:
        return self.require(DecodesLatents)

    def posterior(self, observed: Observed) -> TorchDistribution:
        q = self._q(observed, observed.support_x)
        return q if self.leo.sample_at_test else Delta(q.mean, event_dim=len(q.event_shape))

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        """Return q with dropout on the support inputs. The query labels are not used."""
        return self._q(episodes, self.leo.dropped(episodes.support_x, episodes))

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Return the L2 penalty of the two networks (weight model.l2) and the encoder penalty, in nats [tasks]."""
        terms = {"encoder_l2": self.leo.l2 * (half_square(self.encoder) + half_square(self.relation))}
        terms = {name: value.expand(episodes.num_tasks) for name, value in terms.items()}
        if self.encoder_penalty:
            z = task_draws(self.training_posterior(episodes).rsample)
            with torch.no_grad():
                adapted, _ = self.leo.adapt(z, episodes)
            terms["encoder_penalty"] = self.encoder_penalty * (adapted - z).square().flatten(1).mean(1)
        return terms

    def _q(self, observed: Observed, x: Tensor) -> TorchDistribution:
        """Return q(z | support) for support inputs x [tasks, support points, features]."""
        related = self._related(observed, x)
        if observed.num_classes:
            sums, counts = class_sums(related, observed.support_y, observed.support_mask, observed.num_classes)
            pooled = (sums / counts.clamp(min=1)).unsqueeze(-2)  # [tasks, classes, 1, 2 latents]: equal for all copies
        else:
            pooled = mean_of_points(related, observed.support_mask)
        loc, raw = pooled.chunk(2, dim=-1)
        shape = observed.num_tasks, *self.leo.event_shape(observed)
        return Normal(loc.expand(shape), positive(raw, self.scale).expand(shape)).to_event(len(shape) - 1)

    def _related(self, observed: Observed, x: Tensor) -> Tensor:
        """Return the mean of the relation network g(h_i, h_j) over the points j, [tasks, points i, 2 * latents]."""
        if not observed.num_classes:
            x = torch.cat((x, observed.support_y), dim=-1)
        return mean_relation(self.relation, self.encoder(x), observed.support_mask)
