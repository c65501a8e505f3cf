"""Logarithmic scores in nats, defined for predictions of every family."""

from __future__ import annotations

from torch import Tensor

from pyro_metabayes.evaluation.score import Score, Weights
from pyro_metabayes.evidence.joint import JointPredictive
from pyro_metabayes.likelihoods.predictions import Predictions
from pyro_metabayes.prediction.averages import log_mean_exp, masked_mean, variance_of_samples


def nll(predictions: Predictions) -> Tensor:
    """Compute the negative log-likelihood -log (1/L) sum_l p(y_i | x_i, w_l), mean over the queries i.

    For labels that are numbers, p is the density. (Good 1952.)

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], in nats per query.
    """
    return -masked_mean(log_mean_exp(predictions.log_prob), predictions.mask)


def nll_bias(predictions: Predictions) -> Tensor:
    """Estimate the Monte-Carlo bias of `nll` with L draws w_l, mean over the queries i.

        bias = (1 / 2L) var_l(p_l) / (mean_l p_l)^2,   where p_l = p(y_i | x_i, w_l)

    To first order in 1 / L, the expected nll of L independent draws exceeds the nll of infinitely many draws by this
    bias. nll is not corrected for it. Draws of a Latin square (`distributions/latin_square.py`) have a smaller bias.

    Args:
        predictions: predictions of L samples for T tasks.

    Returns:
        Tensor [T], in nats per query; 0 if L = 1, as for a point estimate or a closed form.
    """
    log_prob = predictions.log_prob
    num_samples = len(log_prob)
    if num_samples == 1:
        return 0.0 * nll(predictions)
    relative = (log_prob - log_mean_exp(log_prob)).exp()
    return masked_mean(variance_of_samples(relative) / (2 * num_samples), predictions.mask)


def joint_nll(joint: JointPredictive) -> Tensor:
    """Compute the joint NLL of the Q query labels of each task.

        joint NLL = -(1/Q) log ∫ prod_i p(y_i | x_i, w) q(w) dw

    The joint NLL is small only if the predictions model the dependence between the labels (Osband et al. 2022). Without
    a closed form, the result is the middle of the bounds of `evidence/joint.py`.

    Args:
        joint: joint predictive density of the query labels of T tasks.

    Returns:
        Tensor [T], in nats per query.
    """
    return _per_query(joint.value, joint)


def joint_nll_lower(joint: JointPredictive) -> Tensor:
    """Return a lower bound on joint_nll for each task, [T] in nats per query."""
    return _per_query(joint.upper, joint)


def joint_nll_upper(joint: JointPredictive) -> Tensor:
    """Return an upper bound on joint_nll for each task, [T] in nats per query."""
    return _per_query(joint.lower, joint)


def _per_query(log_prob: Tensor, joint: JointPredictive) -> Tensor:
    return -log_prob / joint.num_queries.clamp(min=1)


FAMILY = (Predictions,)
JOINT = (JointPredictive,)
LOG_SCORES = (
    Score("nll", nll, FAMILY, "nats per query", logged=2, by_step=2),
    Score("nll_monte_carlo_bias", nll_bias, FAMILY, "nats per query"),
    Score("joint_nll", joint_nll, JOINT, "nats per query", Weights.INTEGRATED),
    Score("joint_nll_lower", joint_nll_lower, JOINT, "nats per query", Weights.INTEGRATED),
    Score("joint_nll_upper", joint_nll_upper, JOINT, "nats per query", Weights.INTEGRATED),
    Score("joint_pareto_k", lambda joint: joint.pareto_k, JOINT, "", Weights.INTEGRATED),
    Score("joint_effective_size", lambda joint: joint.effective_size, JOINT, "draws", Weights.INTEGRATED),
    Score("joint_trusted", lambda joint: joint.trusted, JOINT, "share", Weights.INTEGRATED),
)
