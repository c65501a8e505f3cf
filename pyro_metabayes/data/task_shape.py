"""The shape of a task: way, shots and queries, and the distribution of the queries over the classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Generator, Tensor

from pyro_metabayes.data.bank import SPLITS
from pyro_metabayes.errors import UsageError

BLOCK = 64  # tasks drawn together (data=groups: all groups); no setting, since another value would change the tasks


@dataclass
class TaskShape:
    """Shape of a task: `way` classes with `shot` support points and `query` query points each.

    In domain adaptation, shot is 0, and a task has way * query queries of any class.

    Args:
        way: number of classes; 1 in a regression.
        shot: number of support points per class.
        query: number of query points per class.
        query_counts: numbers of query points of the `way` classes, in place of `query`. Every task has a new random
            order of these numbers. query_concentration and query_balanced are then ignored.
        query_concentration: 0: balanced. a > 0: draws the numbers of queries from Multinomial(way * query, Dirichlet(a,
            ..., a)), limited by the sizes of the classes (Veilleux et al., NeurIPS 2021, with a = 2).
        query_balanced: fraction of tasks that stay balanced if query_concentration is set.
        feature_noise: length of the noise added to a feature vector, relative to the vector (perturbed.py).
        unknown: number of further classes in evaluation tasks, each with `query` unlabelled queries and no support.
    """

    way: int = 5
    shot: int = 1
    query: int = 15
    query_counts: list[int] = field(default_factory=list)
    query_concentration: float = 0.0
    query_balanced: float = 0.0
    feature_noise: float = 0.0
    base_query: int = 0  # additional queries of base classes, for learning without forgetting (model=lwof)
    unknown: int = 0
    train_query: int = 0  # replaces query in training tasks (base_query changes in proportion); 0: no replacement
    vary: bool = False  # training tasks of a bank have random ways, shots and numbers of queries (mixture/varied.py)

    def __post_init__(self) -> None:
        if not 0 <= self.feature_noise < math.inf:
            raise UsageError(f"expected task.feature_noise to be finite and >= 0, got {self.feature_noise}")
        if negative := [name for name in ("base_query", "train_query", "unknown") if getattr(self, name) < 0]:
            raise UsageError(f"expected task.{negative[0]} >= 0, got {getattr(self, negative[0])}")

    def __str__(self) -> str:
        return f"way {self.way}, shot {self.shot}, query {self.query}"

    def of(self, split: str, evaluation: bool = False) -> TaskShape:
        """Return the shape of the tasks of a split; only tasks of an evaluation have unknown classes."""
        shape = self if evaluation else replace(self, unknown=0)
        if split != "train" or not self.train_query:
            return shape
        return replace(shape, query=self.train_query, base_query=self.base_query * self.train_query // self.query)

    def labels(self, points_per_class: int, num_tasks: int) -> Tensor:
        """Return labels [T, way * points_per_class] of T tasks with equally many points per class, sorted by class."""
        return torch.arange(self.way).repeat_interleave(points_per_class).expand(num_tasks, -1)

    def twice(self) -> TaskShape:
        """Return the shape with twice as many queries of each class, and without unknown classes."""
        return replace(self, unknown=0, query=2 * self.query, query_counts=[2 * count for count in self.query_counts])

    @property
    def most_queries(self) -> int:
        """Largest number of query points that a class can have."""
        most = self.way * self.query if self.query_concentration else self.query
        return max(self.query_counts, default=most)

    def check_classes(self, split: str) -> None:
        """Check that the split exists and that the task shape is valid in classification, else raise a UsageError."""
        if split not in SPLITS:
            raise UsageError(f"expected a split among {', '.join(SPLITS)}, got '{split}'")
        if self.way < 2 or self.shot < 1 or self.query < 1:
            raise UsageError(f"expected task.way >= 2, task.shot >= 1 and task.query >= 1, got {self}; change task.*")
        counts, concentration = self.query_counts, self.query_concentration
        if counts and (len(counts) != self.way or min(counts) < 0 or sum(counts) < 1):
            raise UsageError(f"expected task.query_counts to be {self.way} numbers >= 0, one per class, got {counts}")
        if not 0 <= concentration < math.inf:
            raise UsageError(f"expected task.query_concentration to be finite and >= 0, got {concentration}")
        if not 0 <= self.query_balanced <= 1 or (self.query_balanced and not concentration):
            raise UsageError(
                "expected task.query_balanced from 0 to 1, and equal to 0 if task.query_concentration is 0, got "
                f"query_balanced={self.query_balanced} and query_concentration={concentration}"
            )

    def refuse_small_classes(self, sizes: Tensor, names: Sequence[str], split: str) -> None:
        """Check that every class has enough inputs for a task, else raise a UsageError.

        With query_concentration, any `way` classes must together have inputs for the support points and for way * query
        queries.

        Args:
            sizes: [G], number of inputs of each class.
            names: [G], names of the classes.
            split: name of the split.
        """
        together = bool(self.query_concentration and not self.query_counts)
        each = self.query * (self.query_balanced > 0) if together else self.most_queries
        each = max(each, self.query * (self.unknown > 0))
        needed = self.shot + each
        if (smallest := int(sizes.min())) < needed:
            queries = {0: "task.shot", self.query: "task.shot + task.query"}
            raise UsageError(
                f"expected at least {queries.get(each, 'task.shot + the most queries per class')} = {needed} inputs "
                f"in every class of the {split} split, got {smallest} in class '{names[int(sizes.argmin())]}'; lower "
                "task.shot or task.query"
            )
        room = int((sizes - self.shot).sort().values[: self.way].sum())
        if together and room < self.way * self.query:
            raise UsageError(
                f"expected at least task.way * task.query = {self.way * self.query} inputs besides the support set in "
                f"any {self.way} classes of the {split} split, got {room} in the {self.way} smallest; lower task.shot "
                "or task.query"
            )

    def query_points(self, generator: Generator, room: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw the sorted classes [BLOCK, Q] of Q queries in BLOCK tasks, and the index of each query in its class.

        Args:
            generator: random generator.
            room: [BLOCK, way], largest possible number of queries of each class; None: no limit.
        """
        counts = self._query_counts(generator, room)
        point = torch.arange(int(counts[0].sum())).expand(BLOCK, -1).contiguous()
        labels = torch.searchsorted(counts.cumsum(1), point, right=True)
        return labels, point - (counts.cumsum(1) - counts).gather(1, labels)

    def _query_counts(self, generator: Generator, room: Tensor | None) -> Tensor:
        """Draw the number of queries per class, [BLOCK, way] for BLOCK tasks. All tasks have the same sum."""
        if self.query_counts:
            # In random order; otherwise the label of a class would reveal its number of queries.
            order = torch.rand(BLOCK, self.way, generator=generator).argsort(1)
            return torch.tensor(self.query_counts)[order]
        if self.query_concentration:
            numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
            counts = self._unbalanced_counts(numbers, room)
            counts[numbers.random(BLOCK) < self.query_balanced] = self.query
            return counts
        return torch.full((BLOCK, self.way), self.query)

    def _unbalanced_counts(self, numbers: np.random.Generator, room: Tensor | None) -> Tensor:
        total = self.way * self.query
        marginals = numbers.dirichlet([self.query_concentration] * self.way, BLOCK)
        counts = torch.from_numpy(numbers.multinomial(total, marginals))
        if room is not None and (over := (counts > room).any(1)).any():
            # Counts within the limits already have the conditional distribution; the others are drawn from it (slow).
            uniform = torch.from_numpy(numbers.random((int(over.sum()), self.way)))
            counts[over] = bounded_counts(total, self.query_concentration, room[over], uniform)
        return counts


def bounded_counts(total: int, concentration: float, room: Tensor, uniform: Tensor) -> Tensor:
    """Draw counts n_1, ..., n_C from Multinomial(N, Dirichlet(a, ..., a)), given that n_c <= room_c for every class c.

    The counts are drawn class by class. If m queries remain for the classes c, ..., C,
        p(n_c = n) = w(n) Z_{c+1}(m - n) / Z_c(m),    w(n) = Gamma(n + a) / n!,
    where Z_c(m) is the sum of prod_{j >= c} w(n_j) over all counts n_c, ..., n_C with sum m. Z_c follows from Z_{c+1}.

    Args:
        total: N, the sum of the counts.
        concentration: a > 0.
        room: upper limits [B, C] of B tasks, integers whose sum over the classes is at least N.
        uniform: random numbers [B, C] from Uniform(0, 1), float64, which determine the draw.

    Returns:
        Counts [B, C] with the sum N over the classes.
    """
    most = min(int(room.max()), total)
    n = torch.arange(most + 1, dtype=torch.float64)
    weight = torch.lgamma(n + concentration) - torch.lgamma(n + 1)
    weights = weight.masked_fill(n > room.unsqueeze(-1), -math.inf)  # [B, C, most + 1]
    rest = torch.full((len(room), total + 1), -math.inf, dtype=torch.float64)
    rest[:, 0] = 0.0  # no class is left
    sums = [rest]
    for c in range(room.shape[1] - 1, 0, -1):
        sums.append((weights[:, c].unsqueeze(1) + _shifted(sums[-1], most)).logsumexp(-1))
    left, counts = torch.full((len(room),), total), []
    for c, rest in enumerate(reversed(sums)):
        terms = weights[:, c] + _shifted(rest, most)[torch.arange(len(room)), left]
        shares = terms.softmax(-1).cumsum(-1)
        counts.append((shares <= uniform[:, c : c + 1] * shares[:, -1:]).sum(-1))
        left = left - counts[-1]
    return torch.stack(counts, 1)


def _shifted(rest: Tensor, most: int) -> Tensor:
    """Return rest[:, m - n] at [:, m, n] for n = 0, ..., most, given rest [B, N + 1]; -inf where m < n."""
    return torch.nn.functional.pad(rest, (most, 0), value=-math.inf).unfold(1, most + 1, 1).flip(-1)
