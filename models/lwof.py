"""Learning without forgetting: classification among the novel classes of a task and all base classes.

Protocol and metrics: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018 (arXiv
1804.09458). The prior: Hu et al., NeurIPS 2019 MetaLearn workshop. docs/lwof.md compares settings that the workshop
paper does not specify.
"""

from __future__ import annotations

import torch
from pyro.distributions import Categorical, Independent, MixtureSameFamily, Normal, TorchDistribution
from torch import Size, Tensor, nn

from pyro_metabayes.build import FromSource
from pyro_metabayes.episodes import Episodes, Observed
from pyro_metabayes.errors import UsageError, check_choice
from pyro_metabayes.inference.capabilities import Pullback
from pyro_metabayes.models import few_shot_classifier
from pyro_metabayes.models.heads import Head
from pyro_metabayes.models.priors import Flat
from pyro_metabayes.prior import Prior
from pyro_metabayes.seeding import task_noise

INNER = ("novel", "gated", "pooled", "all")


class BaseClasses(Prior):
    """Mixture prior over class weights w_c, with one component for each of B base classes (the training classes).

        p_psi(w_c) = (1/B) sum_j N(w_c; loc_j, diag(scale_j^2)).

    The weights of base class j itself are drawn from component j: b_j ~ N(loc_j, diag(scale_j^2)).

    Args:
        num_base_classes: B, the number of base classes.
        num_weights: number of weights per class.
        scale: standard deviation of each weight before training.
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
        """Return the means of the weights of the base classes of each task.

        auxiliary["base"] lists the B' base classes of each task. Without this list, each task has all base classes.

        Returns:
            Tensor [T, B', W] for T tasks and W weights per class.
        """
        base = observed.auxiliary.get("base")
        return self.loc.expand(observed.num_tasks, -1, -1) if base is None else self.loc[base]

    def draws(self, observed: Observed, leading: Size) -> Tensor:
        """Draw samples, of shape `leading`, of the weights of the base classes of each task.

        Returns:
            Tensor [*leading, T, B', W] for T tasks, B' base classes per task and W weights per class.
        """
        loc, scale = self.means(observed), self.log_scale.exp()
        base = observed.auxiliary.get("base")
        noise = task_noise((*leading, *loc.shape), loc, task_dim=len(leading))
        return loc + (scale if base is None else scale[base]) * noise


class Model(few_shot_classifier.Model):
    """Classifier over the C novel classes of a task and B base classes (the training classes).

        p(y_i = c | x_i, w, b) = softmax_c(head([w; b], x_i))

    The latent variable w [C, W] are the weights of the novel classes. Their prior is the mixture `BaseClasses`. b [B,
    W] are the weights of the base classes. In training (called with Episodes) the likelihood draws b for each task and
    sample. Predictions use the means of b. Before training, a run sets these means to the weights of the pretrained
    classifier at unit length. Labels are 0 to C - 1 for novel classes, and C + i for base class i of the task
    (`pyro_metabayes/data/base_novel.py`). `outputs` are the logits of the novel classes.

    Args:
        head: a head with a weight vector per class.
        num_base_classes: B.
        num_weights: W, the number of weights per class.
        prior: a Flat prior replaces the mixture as the prior of w (not of b), for point estimates. Any other prior is
            ignored.
        inner: input of a synthetic-gradient network per query.
            `novel`: the C novel logits.
            `gated`: the C novel logits. The output of the network is multiplied by p(novel | x_i), so that queries of
                base classes have little effect.
            `pooled`: also the log-sum-exp of the base logits, the logit of "any base class".
            `all`: all C + B logits.
        scale: standard deviation of each weight in the components of the mixture, before training.
        sample_at_test: whether predictions draw b too.
        learn_offset: whether an offset added to all base logits is learned, starting at 0; if not, the offset is
            0. The offset corrects a difference between logits of class means and of classifier weights.
        observe: the set whose labels are in the likelihood: "query", "support" or "all" (both).

    Raises:
        UsageError: a setting is out of range, or the tasks have no base classes.
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
                "expected tasks with base classes for model=lwof, got tasks without base classes; set "
                "task.base_query > 0, and choose data with classes"
            )
        check_choice("model.inner", inner, INNER)
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
        """Set the means of the mixture components to the weights of a cosine classifier of the base classes.

        Args:
            weights: weights of B base classes for D features [B, D].
        """
        self.prior_over_weights.loc.data.copy_(self.of_classifier(weights))

    def prior(self, observed: Observed) -> TorchDistribution:
        return super().prior(observed) if self.flat is None else self.flat(observed, self.event_shape(observed))

    def base_weights(self, observed: Observed) -> Tensor:
        """Return the means of the weights of the base classes of each task; see `BaseClasses.means`."""
        return self.prior_over_weights.means(observed)

    def likelihood(self, w: Tensor, x: Tensor, observed: Observed) -> TorchDistribution:
        drawn = self.sample_at_test or isinstance(observed, Episodes)
        leading = w.shape[:-3]
        base = self.prior_over_weights.draws(observed, leading) if drawn else self.base_weights(observed)
        return self.likelihood_of(self._beside(self.head.outputs(w, x), base, x))

    def _beside(self, novel: Tensor, base: Tensor, x: Tensor) -> Tensor:
        """Append the logits of points x for base classes with weights `base` to the `novel` logits of these points."""
        logits = self.head.outputs(base, x) + self.base_offset
        return torch.cat((novel, logits.expand(*novel.shape[:-1], logits.shape[-1])), dim=-1)

    def num_seen(self, num_classes: int) -> int:
        """Return the input width of a synthetic-gradient network for a fixed number of classes.

        Raises:
            UsageError: `inner` is "all", whose number of logits differs between tasks.
        """
        if self.inner == "all":
            raise UsageError(
                "expected a synthetic-gradient network for any number of classes with model.inner=all, got one for a "
                "fixed number; set guide.synthetic_gradient=equivariant or another model.inner"
            )
        return num_classes + (self.inner == "pooled")

    def query_view(self, w: Tensor, observed: Observed) -> tuple[Tensor, Pullback]:
        """Compute the logits of the queries that `inner` selects, and their vector-Jacobian product with respect to w.

        The weights of the base classes are fixed at their means.
        """
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
