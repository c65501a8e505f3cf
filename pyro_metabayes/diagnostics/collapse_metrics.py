"""The collapse metrics, each a function of spreads. To add a metric, write its function and add it to METRICS."""

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
    """The mean of a spread over tasks."""
    return lambda spread: _mean(spread, name)


def _rms(numerator: str, denominator: str = "") -> Metric:
    """Square root of the mean of a spread, or of the ratio of two means; None if the denominator is 0."""

    def metric(spread: Mapping[str, Tensor]) -> float | None:
        above, below = _mean(spread, numerator), _mean(spread, denominator) if denominator else 1.0
        return math.sqrt(above / below) if above is not None and below else None

    return metric


def _mean_error(name: str) -> Metric:
    """Monte-Carlo standard error of the mean of a spread over tasks; None for a closed form."""

    return lambda spread: _pooled(spread, name)


def _pooled(spread: Mapping[str, Tensor], name: str) -> float | None:
    error = spread.get(f"{name}_error")
    return None if error is None else pooled_error(error)


def _rms_error(name: str) -> Metric:
    """Monte-Carlo standard error, to first order, of the square root of the mean of a spread."""

    def metric(spread: Mapping[str, Tensor]) -> float | None:
        error, mean = _pooled(spread, name), _mean(spread, name)
        return None if error is None or not mean else error / (2 * math.sqrt(mean))

    return metric


def _by_site(name: str, function: Callable[[float], float] = float) -> Metric:
    """A function of the mean over tasks for each latent site; None for a latent of one site."""

    def metric(spread: Mapping[str, Tensor]) -> dict[str, float] | None:
        sites = [key.removeprefix(name + SITE) for key in spread if key.startswith(name + SITE)]
        return {site: function(spread[name + SITE + site].mean().item()) for site in sites} or None

    return metric


def _active_dimensions(spread: Mapping[str, Tensor]) -> int | None:
    kl = spread.get("kl_by_dimension")
    return None if kl is None else int((kl.mean(0) > ACTIVE_NATS).sum())


def _collapsed(name: str) -> Metric:
    """Whether an information is below COLLAPSED_NATS."""

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
    """All METRICS from the spreads of any number of tasks, read on the host.

    prior_information, posterior_information: sum over the queries of a task of the mutual information of label and
        weights, in nats per task, under the prior and under the posterior at test time.
    collapsed, posterior_collapsed: whether these are below 0.05 nats.

    Args:
        spread: spreads by name, [T] or [T, weights].

    Returns:
        Metrics by name, None if a spread is missing. Among them are:
        relative_sd: root mean square (rms) sd of the prior over its rms mean.
        sd_ratio: rms sd of the posterior at test time over that of the exact posterior.
        training_sd_ratio: the same for the training posterior, if it depends on the query labels.
        NAME_monte_carlo_error: standard error of NAME due to draws of w, not due to the choice of tasks.
        kl_by_site, posterior_sd_by_site: by name of the site, for a latent of several sites.
        collapsed: whether draws from the prior leave the predictions unchanged.
    """
    return {name: metric(spread) for name, metric in METRICS.items()}
