"""SIB: descend on the unlabelled query set with gradients that a network makes up.

Hu et al., "Empirical Bayes Transductive Meta-Learning with Synthetic Gradients", ICLR 2020
(arXiv 2004.12696), and its NeurIPS 2019 MetaLearn workshop version, whose equation numbers we cite.
"""

from __future__ import annotations

import torch
from pyro.distributions import Delta, Normal, TorchDistribution
from torch import Tensor, nn
from torch.func import grad

import pyro_metabayes
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.descent import descend, output_gradient
from pyro_metabayes.inference.divergences import differentiable_divergence
from pyro_metabayes.inference.gradient_networks import EquivariantNet, MarginalNet, OrderedNet
from pyro_metabayes.inference.rotation import RotationHead

FAMILIES = ("normal", "amortized", "delta")
NETWORKS = {"ordered": OrderedNet, "equivariant": EquivariantNet, "marginal_aware": MarginalNet}


class Guide(pyro_metabayes.Guide):
    """q(w | support, x_query) = N(theta^K, diag(sigma^2)), theta^0 = lambda(support),

        theta^{k+1} = theta^k - eta { E_eps[ sum_i (d yhat_i / d w)^T xi(yhat_i) ]
                                      + inner_kl d KL(q_{theta^k}, p_psi) / d theta },

    with yhat = outputs(w, x_query) and w = theta^k + sigma eps: eq. 9 with the sum over queries in
    place of the mean, as in the ICLR version. No query label enters. lambda scales the prototypes
    by a learned vector (`initialisation: support`), or is learned itself and needs no support set
    (`global`); where tasks share their classes it starts at the classifier of the pretraining. sigma is learned,
    shared by the classes (`posterior: normal`), or a learned function of theta^0 (`amortized`), or 0 (`delta`, the
    released code). inner_samples: draws of eps in a step; 0 takes the gradient at theta^k itself, as released. xi:
    `ordered` or `equivariant`, its channels normalised over the queries of a task unless `normalise` is false, or
    `marginal_aware`: equivariant, and told how the queries share out among the classes as the logits have it. Trained
    with task.query_concentration it bears unbalanced queries, of which the published network makes less than theta^0.
    learn_scale: false keeps sigma.
    Ablations: `reduction: mean` takes the mean over queries (eq. 9 as printed), and over_batch normalises over the
    queries of all tasks of a batch, as released with more than one: tasks then see each other.
    rotation_step_size > 0 puts a step on a self-supervised loss first, for `global` and tasks with turned views of
    their queries: theta^0 = lambda - rotation_step_size d L_rot(lambda) / d lambda, L_rot that of RotationHead, whose
    network the loss trains, and rotation_weight L_rot(lambda), which joins it. learn_step_size is of this rate, too.
    true_gradient: training_posterior, which the ELBO of an evaluation is of, takes the gradient of -log p of the
    query labels in xi's place (eq. 8): an oracle for a trained run. `posterior` never sees a label.
    """

    log_step_size: Tensor
    log_rotation_step_size: Tensor

    def __init__(
        self,
        model: pyro_metabayes.Model,
        num_classes: int,
        num_weights: int,
        num_steps: int = 3,
        step_size: float = 1e-3,
        learn_step_size: bool = False,
        posterior: str = "normal",
        scale: float = 0.01,
        initialisation: str = "support",
        synthetic_gradient: str = "ordered",
        inner_kl: float = 0.0,
        inner_samples: int = 0,
        normalise: bool = True,
        learn_scale: bool = True,
        true_gradient: bool = False,
        reduction: str = "sum",
        over_batch: bool = False,
        rotation_step_size: float = 0.0,
        rotation_weight: float = 1.0,
    ) -> None:
        super().__init__(model)
        choose("guide.posterior", posterior, FAMILIES)
        choose("guide.initialisation", initialisation, ("support", "global"))
        choose("guide.synthetic_gradient", synthetic_gradient, tuple(NETWORKS))
        choose("guide.reduction", reduction, ("sum", "mean"))
        if num_steps < 0 or step_size <= 0 or scale <= 0 or inner_kl < 0 or inner_samples < 0:
            raise UsageError(
                "expected guide.num_steps, inner_kl, inner_samples >= 0 and step_size, scale > 0, got "
                f"{num_steps}, {inner_kl}, {inner_samples}, {step_size}, {scale}"
            )
        self.num_steps, self.inner_kl, self.inner_samples = num_steps, inner_kl, inner_samples
        self.transductive = num_steps > 0 or rotation_step_size > 0  # lambda sees the support set at most
        self.family, self.initialisation, self.sees_query_labels = posterior, initialisation, true_gradient
        ordered, self.mean = synthetic_gradient == "ordered", reduction == "mean"
        size = {"num_classes": model.num_seen(num_classes)} if ordered else {}  # the others serve any number of classes
        self.xi = NETWORKS[synthetic_gradient](normalise=normalise, over_batch=over_batch, **size)
        self.num_classes = num_classes if ordered or initialisation == "global" else None
        self._set_step_size("log_step_size", step_size, learn_step_size)
        self._set_rotation(num_classes, rotation_step_size, rotation_weight, learn_step_size)
        if initialisation == "support":
            self.initial_scale = nn.Parameter(torch.ones(num_weights))
        else:
            start = torch.randn if num_classes > 1 else torch.zeros  # one output has no symmetry to break
            self.initial = nn.Parameter(start(num_classes, num_weights) * num_weights**-0.5)
        self._set_scale(scale, num_weights, learn_scale)

    def _set_step_size(self, name: str, step_size: float, learned: bool) -> None:
        value = torch.tensor(step_size).log()
        if learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _set_rotation(self, num_classes: int, step_size: float, weight: float, learned: bool) -> None:
        if step_size < 0 or weight < 0 or (step_size and self.initialisation != "global"):
            raise UsageError(
                "expected guide.rotation_step_size, rotation_weight >= 0, and a step only with "
                f"guide.initialisation=global, got {step_size}, {weight} and {self.initialisation}"
            )
        self.rotation, self.rotation_weight = RotationHead(num_classes) if step_size else None, weight
        if step_size:
            self._set_step_size("log_rotation_step_size", step_size, learned)

    def _set_scale(self, scale: float, num_weights: int, learned: bool) -> None:
        start = torch.full((num_weights,), scale).log()
        self.log_scale: Tensor
        if self.family != "delta" and learned:
            self.log_scale = nn.Parameter(start)
        elif self.family != "delta":
            self.register_buffer("log_scale", start)
        if self.family == "amortized":
            last = nn.Linear(num_weights, num_weights)
            nn.init.zeros_(last.weight)  # starts as `normal` does
            nn.init.zeros_(last.bias)
            self.scale_net = nn.Sequential(nn.Linear(num_weights, num_weights), nn.ELU(), last)

    def start_at_classes(self, weights: Tensor) -> None:
        """Before training, move a global lambda to the weights [C, D] of a cosine classifier of the shared classes."""
        if self.initialisation == "global":
            self.initial.data.copy_(self.model.of_classifier(weights))

    def regulariser(self, episodes: Episodes) -> dict[str, Tensor]:
        """rotation_weight L_rot(lambda) [T], which keeps the head of the rotation step one that tells rotations."""
        if self.rotation is None or not self.rotation_weight:
            return {}
        start = self.initial.expand(episodes.num_tasks, -1, -1)
        return {"rotation": self.rotation_weight * self.rotation.loss(self.model, start, episodes)}

    def posterior(self, observed: Observed) -> TorchDistribution:
        return self._descended(observed)

    def training_posterior(self, episodes: Episodes) -> TorchDistribution:
        return self._descended(episodes.observed(), episodes.query_y if self.sees_query_labels else None)

    def _descended(self, observed: Observed, labels: Tensor | None = None) -> TorchDistribution:
        self.check(observed)
        start = self._initial(observed)
        scale = self._scale(start)
        prior = self.model.prior(observed) if self.inner_kl and self.num_steps else None

        def gradient(theta: Tensor) -> Tensor:
            direction = self._synthetic_gradient(theta, scale, observed, labels)
            return direction if prior is None else direction + self.inner_kl * self._kl_gradient(theta, scale, prior)

        return self._q(descend(start, gradient, self.log_step_size.exp(), self.num_steps), scale)

    def _q(self, theta: Tensor, scale: Tensor | None) -> TorchDistribution:
        return Delta(theta, event_dim=2) if scale is None else Normal(theta, scale).to_event(2)

    def _initial(self, observed: Observed) -> Tensor:
        """theta^0 = lambda(support), or lambda, less the step on the rotation loss where there is one [T, C, W]."""
        if self.initialisation == "support":
            return self.initial_scale * self.model.prototypes(observed)
        start = self.initial.expand(observed.num_tasks, -1, -1)
        if self.rotation is None:
            return start
        return start - self.log_rotation_step_size.exp() * self.rotation.gradient(self.model, start, observed)

    def _scale(self, theta: Tensor) -> Tensor | None:
        """sigma [W] or [T, C, W]; None for a point mass."""
        if self.family == "delta":
            return None
        amortized = self.scale_net(theta) if self.family == "amortized" else 0.0
        return (self.log_scale + amortized).clamp(-10, 4).exp()

    def _synthetic_gradient(
        self, theta: Tensor, scale: Tensor | None, observed: Observed, labels: Tensor | None = None
    ) -> Tensor:
        """E_eps[sum_i (d yhat_i / d w)^T xi(yhat_i)] [T, C, W]; d w / d theta is the identity. With labels: no xi."""
        w = theta
        if self.inner_samples and scale is not None:
            w = theta + scale * torch.randn(self.inner_samples, *theta.shape, device=theta.device)
        logits, pullback = self.model.query_outputs_and_pullback(w, observed)
        mask = observed.query_mask
        if labels is None:
            cotangent = self.model.synthetic_gradient(self.xi, logits, observed) * mask.unsqueeze(-1)
        else:
            cotangent = output_gradient(self.model, logits, labels, mask)
        if self.mean:
            cotangent = cotangent / mask.sum(-1).clamp(min=1).view(-1, 1, 1)
        gradient = pullback(cotangent)
        return gradient if w is theta else gradient.mean(0)

    def _kl_gradient(self, theta: Tensor, scale: Tensor | None, prior: TorchDistribution) -> Tensor:
        """d/d theta of KL(q_theta, p_psi), of its bound for a mixture, of -log p_psi(theta) for a point."""
        return grad(lambda loc: differentiable_divergence(self._q(loc, scale), prior).sum())(theta)


def choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"expected {key} to be one of {', '.join(choices)}, got '{value}'")
