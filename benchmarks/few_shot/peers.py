"""The peers: guides of the project without training, with their published settings.

Settings without a published value are chosen on tasks of the tuning banks. The temperature is chosen for each way and
shot. Other settings, such as C of the logistic regression, are chosen for each shot on 5-way tasks. For more than 10
shots, the choice for 10 shots is used. The class marginal of the tuning tasks is the one that the method assumes:
balanced, or a mixture of balanced and Dirichlet(2). Features are not centred, since an unseen bank has no base classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from hydra import compose, initialize_config_dir

from benchmarks.few_shot.rows import Row
from benchmarks.few_shot.tasks import Cell
from benchmarks.few_shot.tuning import Answers, Tuning, best_inverse, mean_nll, tempered
from pyro_metabayes import MetaLearner
from pyro_metabayes.experiments.cli.command import CONF
from pyro_metabayes.experiments.cli.config import config_from, register
from pyro_metabayes.experiments.transductive.methods import predict_of

MANY = 5  # number of shots from which `Peer.many` applies
MOST = 10  # largest number of shots of tuning tasks, since classes of tuning banks are small
SETTINGS_WAY = 5  # way of the tasks on which settings are chosen
Settings = tuple[str, ...]
Shapes = tuple[tuple[int, int], ...]  # ways and shots
POOLED: Shapes = ((5, 1), (5, 5))


@dataclass(frozen=True)
class Peer:
    """A guide without training.

    Attributes:
        name: name of the row.
        guide: name of the YAML file of the guide.
        few, many: published settings for fewer than MANY shots, and for at least MANY shots.
        candidates: settings from which those with the smallest negative log-likelihood on tuning tasks are chosen.
        tempered: whether a temperature is fitted on tuning tasks.
        marginal: class marginal of the tuning tasks.
        per_feature: name of a setting whose values are multiplied by the number of features.
        pooled: whether one choice, on 5-way tasks with 1 and 5 shots, is used for all ways and shots.
    """

    name: str
    guide: str
    few: Settings = ()
    many: Settings = ()
    candidates: tuple[Settings, ...] = ((),)
    tempered: bool = True
    marginal: str = "mixed"
    per_feature: str = ""
    pooled: bool = False

    def row(self, num_features: int, cell: Cell, tuning: Tuning) -> Row:
        shot = min(cell.shot, MOST)
        settings = settings_of(self, POOLED if self.pooled else ((SETTINGS_WAY, shot),), tuning)
        inverse = inverse_of(self, settings, POOLED if self.pooled else ((cell.way, shot),), tuning)
        row = self.untempered(num_features, cell, settings)
        return lambda observed: tempered(row(observed), inverse)

    def untempered(self, num_features: int, cell: Cell, settings: Settings) -> Row:
        """Return the predictor with these settings, without a fitted temperature."""
        published = self.many if cell.shot >= MANY else self.few
        scaled = tuple(self._scaled(setting, num_features) for setting in settings)
        specification = specification_of(self.guide, (*published, *scaled))
        shared = {"input_shape": [num_features], "num_classes": cell.way, "num_targets": 0, "particles": 1}
        return predict_of(MetaLearner.from_specification(specification | shared).eval())

    def _scaled(self, setting: str, num_features: int) -> str:
        name, _, value = setting.partition("=")
        return f"{name}={float(value) * num_features}" if name == self.per_feature else setting


@cache
def settings_of(peer: Peer, shapes: Shapes, tuning: Tuning) -> Settings:
    """Return the candidate with the smallest negative log-likelihood on tuning tasks at its best temperature."""
    if len(peer.candidates) == 1:
        return peer.candidates[0]

    def loss(settings: Settings) -> float:
        inverse = inverse_of(peer, settings, shapes, tuning)
        return mean_nll(answers_of(peer, settings, shapes, tuning), inverse)

    return min(peer.candidates, key=loss)


@cache
def inverse_of(peer: Peer, settings: Settings, shapes: Shapes, tuning: Tuning) -> float:
    """Return the best inverse temperature on tuning tasks; 1 for a method without a fitted temperature."""
    return best_inverse(answers_of(peer, settings, shapes, tuning)) if peer.tempered else 1.0


@lru_cache(maxsize=1)  # `loss` needs the same answers twice
def answers_of(peer: Peer, settings: Settings, shapes: Shapes, tuning: Tuning) -> list[Answers]:
    """Return log probabilities before tempering, and labels, of tuning tasks of each (way, shot) and bank."""
    cells = [Cell(way, shot, peer.marginal) for way, shot in shapes]
    return tuning.answers(lambda size, cell: peer.untempered(size, cell, settings), cells)


@cache
def specification_of(guide: str, settings: Settings) -> dict[str, Any]:
    """Return the specification of the learner of `experiments.run guide=NAME SETTINGS`, without dimension and way."""
    register()
    choices = [f"choices.guide={guide}", "choices.data=simulated"]  # Hydra resolves these inside its jobs only
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", [f"guide={guide}", "data=gaussian_features", *settings, *choices])
    return config_from(config).specification()


def _each(name: str, *values: float) -> tuple[Settings, ...]:
    return tuple((f"{name}={value}",) for value in values)


SCALES = _each("head.scale", 5.0, 10.0, 20.0, 40.0)
PEERS = {
    peer.name: peer
    for peer in (
        Peer("class_means", "proto", ("head=cosine",), ("head=cosine",)),
        Peer("class_means_one", "proto", ("head=cosine",), ("head=cosine",), pooled=True),
        Peer(
            "logistic_regression",
            "logistic_regression",
            candidates=_each("head.scale", 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),  # C is the square of head.scale
            tempered=False,
        ),
        Peer(
            "lda",
            "lda",
            candidates=tuple(
                (f"guide.shrinkage={a}", f"guide.variance={v}") for a in (0.5, 0.9) for v in (0.02, 0.08, 0.32)
            ),
            per_feature="guide.variance",  # its unit is 1 / D, so the product does not depend on D
        ),
        Peer(
            "soft_kmeans",
            "soft_kmeans",
            candidates=tuple((*scale, f"guide.balance={b}") for scale in SCALES for b in ("unknown", "estimated")),
        ),
        Peer("bd_cspn", "bd_cspn", candidates=_each("guide.sharpness", 1.0, 10.0)),
        Peer(
            "laplacian_shot",
            "laplacian_shot",
            candidates=tuple((*scale, f"model.smoothness={s}") for scale in SCALES for s in (0.3, 1.0)),
        ),
        Peer(
            "pt_map",
            "pt_map",
            many=("guide.num_steps=20", "guide.step_size=0.4"),
            candidates=SCALES,
            marginal="balanced",
        ),
        Peer("ilpc", "ilpc", marginal="balanced"),
        Peer("tim", "tim", marginal="balanced"),
        Peer("alpha_tim", "alpha_tim", many=("guide.alpha=7.0",)),
    )
}
