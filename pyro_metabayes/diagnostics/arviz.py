"""Conversion of posterior and prior predictive draws to ArviZ."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from pyro_metabayes.diagnostics.predictive import PredictiveDraws
from pyro_metabayes.errors import UsageError


def to_arviz(draws: PredictiveDraws) -> Any:
    """Convert posterior and prior predictive draws to an object of ArviZ.

    The object has these groups:

        posterior, prior: the draws of the task weights w, one variable per latent site.
        posterior_predictive, prior_predictive: the drawn query labels.
        observed_data: the observed query labels.
        constant_data: the query mask, True for an unmasked query.

    All draws are independent and form one chain. A flat prior has no draws, so its two groups are absent.

    Args:
        draws: the result of `predictive_draws`.

    Returns:
        InferenceData for ArviZ < 1, DataTree for ArviZ >= 1, with dimensions chain, draw, task, ...

    Raises:
        UsageError: ArviZ is not installed.
    """
    arviz = _arviz()
    groups: dict[str, dict[str, Any]] = {}
    for name in ("posterior", "prior"):
        if (samples := getattr(draws, name)) is not None:
            groups[name] = {site: _array(value.unsqueeze(0)) for site, value in samples.sites.items()}
            groups[f"{name}_predictive"] = {"query_y": _array(samples.y.unsqueeze(0))}
    groups |= {name: {} for name in ("observed_data", "constant_data")}
    groups["observed_data"]["query_y"] = _array(draws.query_y)
    groups["constant_data"]["query_mask"] = _array(draws.query_mask)
    dims = {
        **{
            site: ["task", *_names("row", "weight", count=value.dim() - 2)]
            for site, value in draws.posterior.sites.items()
        },
        "query_y": ["task", "query", *_names("output", count=draws.query_y.dim() - 2)],
        "query_mask": ["task", "query"],
    }
    if int(arviz.__version__.partition(".")[0]) >= 1:
        return arviz.from_dict(groups, dims=dims)
    return arviz.from_dict(**groups, dims=dims)


def _names(*names: str, count: int) -> list[str]:
    """Return the last `count` of `names`; if there are fewer names, return axis0, axis1, ..."""
    return list(names[len(names) - count :]) if count <= len(names) else [f"axis{i}" for i in range(count)]


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 warns of changes in 1.0, supported here
            import arviz
    except ImportError as error:
        if error.name != "arviz":
            raise  # ArviZ is installed, but one of its dependencies is missing
        raise UsageError(
            "expected the package arviz for to_arviz, not found; run: pip install -c constraints.txt -e '.[arviz]'"
        ) from None
    return arviz
