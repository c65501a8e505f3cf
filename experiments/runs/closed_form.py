"""The log likelihood of a learned linear mixed model, and the largest one that the model has."""

from __future__ import annotations

import torch
from torch.distributions import MultivariateNormal, Normal

from pyro_metabayes.data.sources.groups import Groups
from pyro_metabayes.experiments.runs.setup import RunSetup
from pyro_metabayes.inference.capabilities import IntegratesGaussian
from pyro_metabayes.inference.divergences import innermost


@torch.no_grad()
def log_likelihoods(setup: RunSetup) -> dict[str, float] | None:
    """log p(y) of the training groups in nats of standardised columns: of the run, and the maximum in closed form.

    The prior is that of a group without points. None where model or prior have no closed form, or the data no groups.
    """
    source, model = setup.tasks.source, setup.learner.model
    if not isinstance(source, Groups) or not isinstance(model, IntegratesGaussian) or not model.canonical:
        return None
    episodes = source.whole().to(setup.device)
    prior = model.prior(episodes.observed())
    if not isinstance(innermost(prior), Normal | MultivariateNormal):
        return None
    best = source.estimates(diagonal=isinstance(innermost(prior), Normal))
    if best is None:
        return None
    learned = model.log_predictive(prior, episodes).double().sum().item()
    return {"learned": learned, "closed_form": best.log_likelihood}
