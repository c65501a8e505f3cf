"""LEO's model: gradient steps on a low-dimensional latent code, which a decoder maps to the weights of a task.

Rusu et al., "Meta-Learning with Latent Embedding Optimization", ICLR 2019 (arXiv 1807.05960), and its released code.
"""

from __future__ import annotations

from functools import partial

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Size, Tensor, nn
from torch.func import vjp
from torch.nn import functional

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.networks import half_square, positive, relu_network
from pyro_metabayes.models.parts.generated import LinearClassifier, NeuralRegression, Predictor
from pyro_metabayes.seeding import task_dropout, task_noise


class Model(pyro_metabayes.Model):
    """Model with a latent code z ~ N(0, I) and a predictor f(x; w) whose weights w adapt to the support set:

        w = mu(z) + sigma(z) eps,   z <- z - alpha * d/dz loss(w)     num_steps times; w is decoded again after each
        w <- w - rho * d/dw loss(w)                                   finetune_steps times, from the last w

    The decoder computes mu and sigma. loss is the sum over the support points of -log p(y_i | x_i) for classes, or of
    half the squared error in a regression. The step sizes alpha [Z] and rho [P] are learned. The outer gradient flows
    through all steps. For classes f is linear, and a code z gives P weights of one class. In a regression one code z
    gives all P weights of a network with two hidden layers.

    The latent site "w" is z before any step. The steps are part of the likelihood. So the ELBO bounds log p(y_query |
    x_query, support) without a Jacobian. eps ~ N(0, I) is drawn at each decoding in training (called with Episodes). By
    default eps is 0 in predictions. sigma is a softplus. The released code has max(exp(s) - 1 + scale, 1e-10), without
    gradient where clamped.

    Args:
        num_latents: Z, the size of one code z.
        copies: number of codes z per class; the released code has one per shot.
        num_hidden: width of the two hidden layers of the decoder; 0 for a linear map.
        width: width of the two hidden layers of f in a regression.
        noise: standard deviation of the label noise in a regression.
        num_steps: number of steps in z.
        step_size: alpha before training.
        finetune_steps: number of steps in w.
        finetune_step_size: rho before training.
        inner_clip: bound on each entry of an inner gradient; 0 for none, as in the released code.
        dropout: dropout rate of input features in training. Each inner step and the queries draw separate masks.
        sample_at_test: whether predictions draw eps, and z from the guide. If not, eps = 0 and z is the guide's mean.
        orthogonality: weight of the penalty on correlated latent dimensions, in nats per task.
        l2: weight of the penalties on the matrices of the decoder, and on those of guide=leo, in nats per task.

    Raises:
        UsageError: a setting is out of range.
    """

    given_support = True  # the latent adapts to the support labels in the likelihood
    predictor: Predictor
    decoder: nn.Sequential

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_targets: int,
        num_latents: int = 64,
        copies: int = 1,
        num_hidden: int = 0,
        width: int = 40,
        noise: float = 0.3,
        num_steps: int = 5,
        step_size: float = 1.0,
        finetune_steps: int = 5,
        finetune_step_size: float = 1e-3,
        inner_clip: float = 0.0,
        dropout: float = 0.0,
        sample_at_test: bool = False,
        orthogonality: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        if min(num_latents, copies, width) < 1 or min(num_hidden, num_steps, finetune_steps) < 0:
            raise UsageError(
                "expected model.num_latents, copies, width >= 1 and num_hidden, num_steps, finetune_steps >= 0, got "
                f"num_latents={num_latents}, copies={copies}, width={width}, num_hidden={num_hidden}, "
                f"num_steps={num_steps}, finetune_steps={finetune_steps}"
            )
        if min(step_size, finetune_step_size, noise) <= 0 or min(inner_clip, orthogonality, l2) < 0:
            raise UsageError(
                "expected model.step_size, finetune_step_size, noise > 0 and inner_clip, orthogonality, l2 >= 0, got "
                f"step_size={step_size}, finetune_step_size={finetune_step_size}, noise={noise}, "
                f"inner_clip={inner_clip}, orthogonality={orthogonality}, l2={l2}"
            )
        if not 0 <= dropout < 1:
            raise UsageError(f"expected 0 <= model.dropout < 1, got {dropout}")
        self.num_latents, self.num_steps, self.finetune_steps = num_latents, num_steps, finetune_steps
        self.inner_clip, self.dropout, self.sample_at_test = inner_clip, dropout, sample_at_test
        self.orthogonality, self.l2 = orthogonality, l2
        if num_targets:
            self.predictor = NeuralRegression(num_features, width, num_targets, noise)
        else:
            self.predictor = LinearClassifier(num_features, num_classes, copies)
        num_weights, hidden = self.predictor.num_weights, [num_hidden, num_hidden] if num_hidden else []
        self.decoder = relu_network([num_latents, *hidden, 2 * num_weights], bias=num_targets > 0)
        if num_targets:
            with torch.no_grad():  # hidden units with equal weights would have equal gradients
                list(self.decoder.parameters())[-1][:num_weights] = self.predictor.initial()
        self.step_size = nn.Parameter(torch.full((num_latents,), step_size))
        self.finetune_step_size = nn.Parameter(torch.full((num_weights,), finetune_step_size))

    def event_shape(self, observed: Observed) -> Size:
        return Size((*self.predictor.slots(observed), self.num_latents))

    def prior(self, observed: Observed) -> TorchDistribution:
        shape = self.event_shape(observed)
        zero = observed.query_x.new_zeros(observed.num_tasks, *shape)
        return Normal(zero, 1.0).to_event(len(shape))

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        """Adapt the code z, the argument `w`, to the support set; return p(y | x, z, support) at points x."""
        _, weights = self.adapt(w, observed)
        return self.predictor.likelihood(self.predictor.outputs(weights, self.dropped(x, observed)))

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Compute the logits or means with the decoded weights mu(z), without adaptation to the support set.

        Args:
            w: the codes z of T tasks (the latent variable w of this model).
            x: D features of N points per task [T, N, D].

        Returns:
            Tensor [..., T, N, Y], for Y classes or values in a label.
        """
        return self.predictor.outputs(self.decode(w, None), x)

    def adapt(self, z: Tensor, observed: Observed) -> tuple[Tensor, Tensor]:
        """Adapt the codes z to the support sets; return the last codes, and the weights after fine-tuning.

        Args:
            z: initial codes of Z numbers [..., T, *slots, Z], with slots = [C, copies] for C classes, [] in a
                regression.
            observed: T tasks.

        Returns:
            Codes [..., T, *slots, Z], and vectors of P weights [..., T, *slots, P].
        """
        noise = self._noise(z, observed)
        for _ in range(self.num_steps):
            w, pullback = vjp(partial(self.decode, noise=noise), z)[:2]
            z = z - self.step_size * self._clipped(pullback(self._loss_gradient(w, observed))[0])
            noise = self._noise(z, observed)
        w = self.decode(z, noise)
        for _ in range(self.finetune_steps):
            w = w - self.finetune_step_size * self._clipped(self._loss_gradient(w, observed))
        return z, w

    def decode(self, z: Tensor, noise: Tensor | None) -> Tensor:
        """Decode codes z to weights mu(z) + sigma(z) noise, or mu(z) if noise is None. The decoder gives mu, sigma."""
        mean, raw = self.decoder(z).chunk(2, dim=-1)
        return mean if noise is None else mean + positive(raw, self.predictor.scale) * noise

    def _noise(self, z: Tensor, observed: Observed) -> Tensor | None:
        if not (self.sample_at_test or isinstance(observed, Episodes)):
            return None
        shape = (*z.shape[:-1], self.predictor.num_weights)
        return task_noise(shape, z, task_dim=-1 - len(self.event_shape(observed)))

    def dropped(self, x: Tensor, observed: Observed) -> Tensor:
        """Apply dropout to the features x if `observed` is an Episodes, as in training."""
        return task_dropout(x, self.dropout) if self.dropout and isinstance(observed, Episodes) else x

    def _loss_gradient(self, w: Tensor, observed: Observed) -> Tensor:
        """Compute d loss / dw over the unmasked support points, for each sample and task separately."""
        x = self.dropped(observed.support_x, observed)
        outputs, pullback = self.predictor.outputs_and_pullback(w, x)
        return pullback(self.predictor.residual(outputs, observed.support_y) * observed.support_mask.unsqueeze(-1))

    def _clipped(self, gradient: Tensor) -> Tensor:
        return gradient.clamp(-self.inner_clip, self.inner_clip) if self.inner_clip else gradient

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """Compute two penalties [T] of T tasks in nats: orthogonality * mean((C - I)^2), l2 * |decoder matrices|^2 / 2.

        C is the matrix of cosines between the columns of the first decoder matrix, one column per latent dimension.
        """
        terms = {
            "orthogonality": self.orthogonality * correlation_penalty(next(self.decoder.parameters())),
            "decoder_l2": self.l2 * half_square(self.decoder),
        }
        return {name: value.expand(episodes.num_tasks) for name, value in terms.items()}


def correlation_penalty(weight: Tensor) -> Tensor:
    """Compute mean((C - I)^2) for the matrix C of cosines between the columns of the matrix `weight`."""
    columns = functional.normalize(weight, dim=0)
    return (columns.mT @ columns - torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)).square().mean()
