"""LEO's encoder: a relation network over all pairs of support points infers the latent at which adaptation starts.

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
    """A model that decodes its weights from a latent z, which it adapts to the support set (model=leo)."""

    num_latents: int
    sample_at_test: bool
    l2: float

    def event_shape(self, observed: Observed) -> Size: ...

    def adapt(self, z: Tensor, observed: Observed) -> tuple[Tensor, Tensor]: ...

    def dropped(self, x: Tensor, observed: Observed) -> Tensor: ...


class Guide(pyro_metabayes.Guide):
    """q(z_n | support) = N(mu_n, sigma_n^2), (mu_n, s_n) the mean of g(h_i, h_j) over points i of class n and all j.

    h = encoder(x), and g is the relation network (eq. 3), with two hidden layers. sigma is a softplus of s; the
    released code has max(exp(s) - 1, 1e-10). The copies of a class are independent given mu_n and sigma_n. In a
    regression the points are (x, y), and the mean is over all pairs. For classes the networks have no biases, as
    released. Predictions use mu alone, unless model.sample_at_test is set.

    Args:
        num_hidden: width of the two hidden layers of the encoder; 0 for a linear map.
        scale: sigma where s is 0.
        encoder_penalty: weight of mean((z^last - z^0)^2), in nats per task, for a separate draw z^0; the adapted
            latent z^last is treated as a constant. This is the only stop-gradient of the method.

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
            raise UsageError(
                "expected guide.num_hidden, encoder_penalty >= 0 and scale > 0, got "
                f"{num_hidden}, {encoder_penalty}, {scale}"
            )
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
        """q with dropout on the support inputs; the query labels are not used."""
        return self._q(episodes, self.leo.dropped(episodes.support_x, episodes))

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """model.l2 |matrices of encoder and g|^2 / 2 and the encoder penalty, [T] in nats."""
        terms = {"encoder_l2": self.leo.l2 * (half_square(self.encoder) + half_square(self.relation))}
        terms = {name: value.expand(episodes.num_tasks) for name, value in terms.items()}
        if self.encoder_penalty:
            z = task_draws(self.training_posterior(episodes).rsample)
            with torch.no_grad():
                adapted, _ = self.leo.adapt(z, episodes)
            terms["encoder_penalty"] = self.encoder_penalty * (adapted - z).square().flatten(1).mean(1)
        return terms

    def _q(self, observed: Observed, x: Tensor) -> TorchDistribution:
        """N(mu, sigma^2) from the support points with inputs x [T, S, D]."""
        related = self._related(observed, x)
        if observed.num_classes:
            sums, counts = class_sums(related, observed.support_y, observed.support_mask, observed.num_classes)
            pooled = (sums / counts.clamp(min=1)).unsqueeze(-2)  # [T, C, 1, 2 Z]: the same for all copies
        else:
            pooled = mean_of_points(related, observed.support_mask)
        loc, raw = pooled.chunk(2, dim=-1)
        shape = observed.num_tasks, *self.leo.event_shape(observed)
        return Normal(loc.expand(shape), positive(raw, self.scale).expand(shape)).to_event(len(shape) - 1)

    def _related(self, observed: Observed, x: Tensor) -> Tensor:
        """mean_j g(h_i, h_j) [T, S, 2 Z] over the unmasked support points j."""
        if not observed.num_classes:
            x = torch.cat((x, observed.support_y), dim=-1)
        return mean_relation(self.relation, self.encoder(x), observed.support_mask)
