"""Scores of one method on the tasks of one cell, with 95% intervals over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pyro_metabayes.diagnostics.calibration import Estimate, bin_sums, reliability
from pyro_metabayes.episodes import Episodes
from pyro_metabayes.prediction.averages import masked_mean


@dataclass(frozen=True)
class Scores:
    """Accuracy and negative log-likelihood (nats per query) of each task [T], and bin sums of confidences [T, B, 3]."""

    accuracy: Tensor
    nll: Tensor
    bins: Tensor

    @classmethod
    def of(cls, log_probs: Tensor, episodes: Episodes) -> Self:
        """Compute the scores of predicted log probabilities [T, Q, C]."""
        labels, mask = episodes.query_y, episodes.query_mask
        hits = (log_probs.argmax(-1) == labels).to(log_probs.dtype)
        log_prob = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return cls(masked_mean(hits, mask), -masked_mean(log_prob, mask), bin_sums(log_probs.exp(), labels, mask))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("accuracy", "nll", "bins")))

    def summary(self, reference: Self) -> dict[str, Any]:
        """Return means and half widths of 95% intervals of the scores, and of paired differences to the reference."""
        values = {
            "accuracy": Estimate.over_tasks(self.accuracy.double()),
            "nll": Estimate.over_tasks(self.nll.double()),
            "ece": reliability(self.bins).ece,
            "accuracy_difference": Estimate.over_tasks((self.accuracy - reference.accuracy).double()),
            "nll_difference": Estimate.over_tasks((self.nll - reference.nll).double()),
        }
        return {name: {"mean": float(value.mean), "ci95": float(value.ci95)} for name, value in values.items()}
