"""Learning without forgetting: the novel classes of a task are told apart from each other and from all base classes.

Protocol and metrics: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018 (arXiv
1804.09458). The prior: Hu et al., NeurIPS 2019 MetaLearn workshop, which leaves open the components' variances, what
the inner loop sees and how base weights are used at test: choices here, named below and measured in docs/lwof.md.
"""

from __future__ import annotations

import torch
from pyro.distributions import Categorical, Independent, MixtureSameFamily, Normal, TorchDistribution
from torch import Size, Tensor, nn

from pyro_metabayes.build import FromSource
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError
from pyro_metabayes.inference.capabilities import Pullback
from pyro_metabayes.models import few_shot_classifier
from pyro_metabayes.models.heads import Head
from pyro_metabayes.models.priors import Flat
from pyro_metabayes.prior import Prior
from pyro_metabayes.seeding import task_noise

INNER = ("novel", "gated", "pooled", "all")


class BaseClasses(Prior):
    """p_psi(w_c) = (1/B) sum_j N(w_c; loc_j, diag(scale_j^2)), one component for each of the B base classes.

    The component is also what the weights of its base class are drawn from: b_j ~ N(loc_j, diag(scale_j^2)).
    """

    def __init__(self, num_base_classes: int, num_weights: int, scale: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(num_base_classes, num_weights) * num_weights**-0.5)
        self.log_scale = nn.Parameter(torch.full((num_base_classes, num_weights), scale).log())

    def forward(self, observed: Observed, event_shape: Size) -> TorchDistribution:
        components = Normal(self.loc, self.log_scale.exp()).to_event(1)
        mixture = MixtureSameFamily(Categorical(logits=self.loc.new_zeros(len(self.loc))), components)
        return Independent(mixture.expand(Size((observed.num_tasks, event_shape[0]))), 1)

    def means(self, observed: Observed) -> Tensor:
        """loc of the base classes of each task [T, B', W]: those of auxiliary["base"], or all of them."""
        base = observed.auxiliary.get("base")
        return self.loc.expand(observed.num_tasks, -1, -1) if base is None else self.loc[base]

    def draws(self, observed: Observed, leading: Size) -> Tensor:
        """Weights of the base classes of each task, drawn anew for each of the `leading` samples [..., T, B', W]."""
        loc, scale = self.means(observed), self.log_scale.exp()
        base = observed.auxiliary.get("base")
        noise = task_noise((*leading, *loc.shape), loc, task_dim=len(leading))
        return loc + (scale if base is None else scale[base]) * noise


class Model(few_shot_classifier.Model):
    """p(y_i = c | x_i, w, b) = softmax over C + B classes of head([w; b], x_i): w [C, W] of the novel classes, the
    latent, from the mixture of BaseClasses; b [B, W] of the base classes, drawn from its components.

    b is drawn in the likelihood, anew for each task and sample in training (an Episodes); predictions take the means,
    unless sample_at_test. The labels are 0 to C - 1 for the novel classes and C + i for base class i of the task
    (`pyro_metabayes/data/base_novel.py`). The components start at the weights of the pretrained classifier, brought to
    unit length, with the standard deviation `scale` in each weight. prior=flat, which the point masses ask for, takes
    the mixture from w and leaves it to b; every other prior gives way to it. learn_offset: a learned number, from 0, on
    the logits of all base classes, for what prototypes and the weights of a classifier differ in; it moves Both alone.

    `outputs` are logits of the novel classes alone: what adapts to the support set sees these. inner: what a synthetic
    gradient network sees of a query. novel: the C novel logits. gated: the same, and its answer is multiplied by
    p(novel | x_i) under the current weights, so that queries of base classes do not pull. pooled: the C novel logits
    and the log-sum-exp of the base logits, which together are the softmax over all with "a base class" as one. all:
    all C + B logits, for a network that serves any number of classes.
    """

    prior_over_weights: BaseClasses

    def __init__(
        self,
        head: Head,
        num_weights: int,
        num_base_classes: FromSource = 0,
        prior: Prior | None = None,
        inner: str = "pooled",
        scale: float = 0.02,
        sample_at_test: bool = False,
        learn_offset: bool = True,
        observe: str = "query",
    ) -> None:
        if num_base_classes < 1:
            raise UsageError(
                "expected tasks with base classes for model=lwof, got none; take a bank of classes and "
                "task.base_query > 0"
            )
        if inner not in INNER:
            raise UsageError(f"expected model.inner to be one of {', '.join(INNER)}, got '{inner}'")
        if scale <= 0:
            raise UsageError(f"expected model.scale > 0, got {scale}")
        super().__init__(head, BaseClasses(num_base_classes, num_weights, scale), observe)
        self.inner, self.sample_at_test = inner, sample_at_test
        self._set_offset(learn_offset)
        self.flat = prior if isinstance(prior, Flat) else None

    @property
    def num_base_classes(self) -> int:
        return len(self.prior_over_weights.loc)

    def _set_offset(self, learned: bool) -> None:
        self.base_offset: Tensor
        if learned:
            self.base_offset = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("base_offset", torch.zeros(()), persistent=False)

    def start_at_classes(self, weights: Tensor) -> None:
        """Before training, move the components to the weights [B, D] of a cosine classifier of the base classes."""
        self.prior_over_weights.loc.data.copy_(self.of_classifier(weights))

    def prior(self, observed: Observed) -> TorchDistribution:
        return super().prior(observed) if self.flat is None else self.flat(observed, self.event_shape(observed))

    def base_weights(self, observed: Observed) -> Tensor:
        """Means of the weights of the base classes of each task [T, B', W]."""
        return self.prior_over_weights.means(observed)

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        drawn = self.sample_at_test or isinstance(observed, Episodes)
        leading = w.shape[:-3]
        base = self.prior_over_weights.draws(observed, leading) if drawn else self.base_weights(observed)
        return self.likelihood_of(self._beside(self.head.outputs(w, x), base, x))

    def _beside(self, novel: Tensor, base: Tensor, x: Tensor) -> Tensor:
        """Logits [..., T, N, C + B'] of novel classes and, behind them, of base classes with the given weights."""
        logits = self.head.outputs(base, x) + self.base_offset
        return torch.cat((novel, logits.expand(*novel.shape[:-1], logits.shape[-1])), dim=-1)

    def num_seen(self, num_classes: int) -> int:
        if self.inner == "all":
            raise UsageError(
                "expected guide.synthetic_gradient=equivariant for model.inner=all (a training task has fewer base "
                "classes than a test task), got a network for a fixed number of classes; set it, or another model.inner"
            )
        return num_classes + (self.inner == "pooled")

    def query_view(self, w: Tensor, observed: Observed) -> tuple[Tensor, Pullback]:
        """The logits that `inner` names, at the means of the base weights, which no inner step moves."""
        novel, pullback = self.outputs_and_pullback(w, observed.query_x)
        if self.inner == "novel":
            return novel, pullback
        logits = self._beside(novel, self.base_weights(observed), observed.query_x)
        num_novel = observed.num_classes
        if self.inner == "gated":
            gate = logits.softmax(-1)[..., :num_novel].sum(-1, keepdim=True)
            return novel, lambda cotangent: pullback(cotangent * gate)
        if self.inner == "pooled":
            logits = torch.cat((novel, logits[..., num_novel:].logsumexp(-1, keepdim=True)), -1)
        return logits, lambda cotangent: pullback(cotangent[..., :num_novel])
