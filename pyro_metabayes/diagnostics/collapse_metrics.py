"""Metrics of collapse. Each metric is a function of spreads, i.e. numbers per task that measure prior and posterior.

`collapse.py` computes the spreads by name. To add a metric, write its function and add it to METRICS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_metabayes.prediction.moments import pooled_error

# A prior is collapsed if the labels of all queries of a task have less information about w than this.
COLLAPSED_NATS = 0.05
ACTIVE_NATS = 0.01  # a weight is active if its mean KL(q, p) exceeds this

Spread = dict[str, Tensor]  # by name, [T] or [T, weights]
SITE = " of site "  # separates a spread from the name of a latent site, as in "kl of site w"
Metrics = dict[str, Any]
Metric = Callable[[Mapping[str, Tensor]], float | int | bool | dict[str, float] | None]  # from spreads


def _mean(spread: Mapping[str, Tensor], name: str) -> float | None:
    return spread[name].mean().item() if name in spread else None


def _mean_of(name: str) -> Metric:
    """Return the metric: mean over tasks of the spread `name` (a quantity of collapse.py with one value per task)."""
    return lambda spread: _mean(spread, name)


def _rms(numerator: str, denominator: str = "") -> Metric:
    """Return the metric: root of the mean of a spread over tasks, or of the ratio of two such means."""

    def metric(spread: Mapping[str, Tensor]) -> float | None:
        above, below = _mean(spread, numerator), _mean(spread, denominator) if denominator else 1.0
        return math.sqrt(above / below) if above is not None and below else None

    return metric


def _mean_error(name: str) -> Metric:
    """Return the metric: Monte-Carlo standard error of the mean of the spread `name` over tasks."""

    return lambda spread: _pooled(spread, name)


def _pooled(spread: Mapping[str, Tensor], name: str) -> float | None:
    error = spread.get(f"{name}_error")
    return None if error is None else pooled_error(error)


def _rms_error(name: str) -> Metric:
    """Return the metric: Monte-Carlo standard error, to first order, of sqrt(mean of the spread `name` over tasks)."""

    def metric(spread: Mapping[str, Tensor]) -> float | None:
        error, mean = _pooled(spread, name), _mean(spread, name)
        return None if error is None or not mean else error / (2 * math.sqrt(mean))

    return metric


def _by_site(name: str, function: Callable[[float], float] = float) -> Metric:
    """Return the metric {site: function(mean over tasks of the spread `name` of the site)}; None for a single site."""

    def metric(spread: Mapping[str, Tensor]) -> dict[str, float] | None:
        sites = [key.removeprefix(name + SITE) for key in spread if key.startswith(name + SITE)]
        return {site: function(spread[name + SITE + site].mean().item()) for site in sites} or None

    return metric


def _active_dimensions(spread: Mapping[str, Tensor]) -> int | None:
    kl = spread.get("kl_by_dimension")
    return None if kl is None else int((kl.mean(0) > ACTIVE_NATS).sum())


def _collapsed(name: str) -> Metric:
    """Return the metric: whether the mutual information `name`, averaged over tasks, is below 0.05 nats."""

    def metric(spread: Mapping[str, Tensor]) -> bool | None:
        information = _mean(spread, name)
        return None if information is None else information < COLLAPSED_NATS

    return metric


METRICS: dict[str, Metric] = {  # in the order of results.json
    "prior_sd": _rms("prior_variance"),
    "prior_sd_monte_carlo_error": _rms_error("prior_variance"),
    "relative_sd": _rms("prior_variance", "prior_mean_square"),
    "prior_entropy": _mean_of("prior_entropy"),
    "logit_sd": _rms("logit_variance"),
    "disagreement": _mean_of("disagreement"),
    "prior_information": _mean_of("information"),
    "prior_information_monte_carlo_error": _mean_error("information"),
    "collapsed": _collapsed("information"),
    "posterior_logit_sd": _rms("posterior_logit_variance"),
    "posterior_disagreement": _mean_of("posterior_disagreement"),
    "posterior_information": _mean_of("posterior_information"),
    "posterior_information_monte_carlo_error": _mean_error("posterior_information"),
    "posterior_collapsed": _collapsed("posterior_information"),
    "elbo": _mean_of("elbo"),
    "kl": _mean_of("kl"),
    "kl_monte_carlo_error": _mean_error("kl"),
    "kl_by_site": _by_site("kl"),
    "kl_variational_bound": _mean_of("kl_variational_bound"),
    "kl_convexity_bound": _mean_of("kl_convexity_bound"),
    "active_dimensions": _active_dimensions,
    "posterior_sd": _rms("posterior_variance"),
    "posterior_sd_monte_carlo_error": _rms_error("posterior_variance"),
    "posterior_sd_by_site": _by_site("posterior_variance", math.sqrt),
    "posterior_entropy": _mean_of("posterior_entropy"),
    "sd_ratio": _rms("fit_variance", "true_variance"),
    "training_sd_ratio": _rms("training_fit_variance", "training_true_variance"),
    "coverage90_of_truth": _mean_of("coverage90_of_truth"),
    "kl_from_truth": _mean_of("kl_from_truth"),
    "kl_to_truth": _mean_of("kl_to_truth"),
}


def summary(spread: Mapping[str, Tensor]) -> Metrics:
    """Compute all metrics of collapse from the spreads of T tasks, as Python numbers.

    Args:
        spread: spreads by name, [T] or [T, weights].

    Returns:
        Metrics by name; None for a metric whose spread is missing. Among them are:
        prior_information, posterior_information: mutual information of label and weights, summed over the queries of
            a task, in nats per task, under the prior and under the posterior at test time.
        collapsed, posterior_collapsed: whether prior_information and posterior_information are below 0.05 nats.
        relative_sd: root mean square (rms) sd of the prior, divided by the rms of its mean.
        sd_ratio: rms sd of the posterior at test time, divided by the rms sd of the exact posterior.
        training_sd_ratio: sd_ratio of the training posterior, if this posterior depends on the query labels.
        NAME_monte_carlo_error: standard error of NAME due to draws of w, not due to the choice of tasks.
        kl_by_site, posterior_sd_by_site: values by name of the latent site, if there are several.
    """
    return {name: metric(spread) for name, metric in METRICS.items()}
