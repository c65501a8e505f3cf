"""Metrics of collapse, computed from spreads.

A spread is a named quantity of the prior or the posterior, with one value per task. `collapse.py` computes the spreads.
A new metric is a function of the spreads with an entry in METRICS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_metabayes.prediction.moments import pooled_error

# A prior is collapsed if the labels of all queries of a task have less information about w than this.
COLLAPSED_NATS = 0.05
ACTIVE_NATS = 0.01  # a weight is active if its mean KL(q, p) exceeds this

Spread = dict[str, Tensor]  # by name, [T] or [T, weights]
SITE = " of site "  # separates a spread from the name of a latent site, as in "kl of site w"
Metrics = dict[str, Any]
Metric = Callable[[Mapping[str, Tensor]], float | int | bool | dict[str, float] | None]  # function of all spreads

COLLAPSE = {True: "collapsed", False: "alive", None: "-"}  # verdicts in tables


def _mean(spread: Mapping[str, Tensor], name: str) -> float | None:
    return spread[name].mean().item() if name in spread else None


def _mean_of(name: str) -> Metric:
    """Return a metric that computes the mean over tasks of the spread `name`."""
    return lambda spread: _mean(spread, name)


def _rms(numerator: str, denominator: str = "") -> Metric:
    """Return a metric that computes sqrt(mean of the spread `numerator` / mean of the spread `denominator`).

    The means are over tasks. Without `denominator`, the metric is sqrt(mean of the spread `numerator`).
    """

    def metric(spread: Mapping[str, Tensor]) -> float | None:
        above, below = _mean(spread, numerator), _mean(spread, denominator) if denominator else 1.0
        return math.sqrt(above / below) if above is not None and below else None

    return metric


def _mean_error(name: str) -> Metric:
    """Return a metric that computes the Monte-Carlo standard error of the mean over tasks of the spread `name`."""

    return lambda spread: _pooled(spread, name)


def _pooled(spread: Mapping[str, Tensor], name: str) -> float | None:
    error = spread.get(f"{name}_error")
    return None if error is None else pooled_error(error)


def _rms_error(name: str) -> Metric:
    """Return a metric that computes the first-order Monte-Carlo standard error of sqrt(mean of the spread `name`)."""

    def metric(spread: Mapping[str, Tensor]) -> float | None:
        error, mean = _pooled(spread, name), _mean(spread, name)
        return None if error is None or not mean else error / (2 * math.sqrt(mean))

    return metric


def _by_site(name: str, function: Callable[[float], float] = float) -> Metric:
    """Return a metric {latent site: function(mean over tasks of the spread `name` of the site)}; None for one site."""

    def metric(spread: Mapping[str, Tensor]) -> dict[str, float] | None:
        sites = [key.removeprefix(name + SITE) for key in spread if key.startswith(name + SITE)]
        return {site: function(spread[name + SITE + site].mean().item()) for site in sites} or None

    return metric


def _active_dimensions(spread: Mapping[str, Tensor]) -> int | None:
    kl = spread.get("kl_by_dimension")
    return None if kl is None else int((kl.mean(0) > ACTIVE_NATS).sum())


def _collapsed(name: str) -> Metric:
    """Return a metric that says whether the mean over tasks of the mutual information `name` is below 0.05 nats."""

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

    "rms" stands for root mean square. The test posterior is the posterior at test time.

    Args:
        spread: spreads by name, [T] or [T, weights].

    Returns:
        Metrics by name; None for a metric without its spread. Among them are:
        prior_information: mutual information of label and weights under the prior, in nats per task, summed over the
            queries of a task.
        posterior_information: the same sum under the test posterior.
        collapsed: whether prior_information is below 0.05 nats.
        posterior_collapsed: whether posterior_information is below 0.05 nats.
        relative_sd: rms sd of the prior, divided by the rms mean of the prior.
        sd_ratio: rms sd of the test posterior, divided by the rms sd of the exact posterior.
        training_sd_ratio: sd_ratio of the training posterior, if the training posterior depends on query labels.
        NAME_monte_carlo_error: standard error of NAME due to draws of w, without the variation between tasks.
        kl_by_site, posterior_sd_by_site: values by latent site, if there are several sites.
    """
    return {name: metric(spread) for name, metric in METRICS.items()}


def with_information(verdict: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Format a verdict on the prior with the mutual information of labels and weights, such as "collapsed, 0.046".

    Args:
        verdict: the verdict, such as "alive".
        results: the runs of the verdict. For several runs the range of the information is given, in nats per task.
    """
    found = (run.get("prior_information") for run in results)  # absent in results of version 0.1
    values = [float(value) for value in found if value is not None]
    if len(values) < len(results):
        return verdict
    bounds = [f"{value:.{3 if value < 1 else 1}f}" for value in (min(values), max(values))]
    return f"{verdict}, {' to '.join(dict.fromkeys(bounds))}"


def without_information(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the rows of table.csv: in the column "prior" the verdict alone, without the information."""
    return [{name: cell.partition(",")[0] if name == "prior" else cell for name, cell in row.items()} for row in rows]
