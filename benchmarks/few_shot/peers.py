"""The peers: guides of the project without training, at their published settings.

What is not published is chosen on tasks of other banks: one temperature for each way and shot, C of the logistic
regression, the sharpness of assignments. More than 10 shots take what was chosen for 10. The class marginal of these
tasks is that which the method assumes: balanced, or else a mixture of balanced and Dirichlet(2). Features are not
centred, since an unseen bank has no base classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir

from benchmarks.few_shot.rows import Row, row_of
from benchmarks.few_shot.tasks import Cell
from benchmarks.few_shot.tuning import Tuning, best_inverse, mean_nll, tempered
from pyro_metabayes import MetaLearner
from pyro_metabayes.experiments.cli.command import CONF
from pyro_metabayes.experiments.cli.config import config_from, register

MANY = 5  # shots from which the settings of several shots hold
MOST = 10  # shots of tuning tasks, whose classes are small
Settings = tuple[str, ...]


@dataclass(frozen=True)
class Peer:
    """A guide without training.

    Attributes:
        name: of the row.
        guide: name of its YAML file.
        few, many: settings for fewer than MANY shots, and from there.
        candidates: settings of which the best by the negative log-likelihood on other banks are taken.
        tempered: whether a temperature is fitted.
        marginal: of the tasks on which that is done.
        pooled: whether one choice, on 5-way tasks of 1 and 5 shots, is for all ways and shots.
    """

    name: str
    guide: str
    few: Settings = ()
    many: Settings = ()
    candidates: tuple[Settings, ...] = ((),)
    tempered: bool = True
    marginal: str = "mixed"
    pooled: bool = False

    def row(self, num_features: int, cell: Cell, tuning: Tuning) -> Row:
        shapes = ((5, 1), (5, 5)) if self.pooled else ((cell.way, min(cell.shot, MOST)),)
        settings, inverse = choice(self, shapes, tuning)
        row = self.untempered(num_features, cell, settings)
        return lambda observed: tempered(row(observed), inverse)

    def untempered(self, num_features: int, cell: Cell, settings: Settings) -> Row:
        """The row with some settings, at the temperature of the guide."""
        published = self.many if cell.shot >= MANY else self.few
        specification = specification_of(self.guide, (*published, *settings))
        shared = {"input_shape": [num_features], "num_classes": cell.way, "num_targets": 0, "particles": 1}
        return row_of(MetaLearner.from_specification(specification | shared).eval())


@cache
def choice(peer: Peer, shapes: tuple[tuple[int, int], ...], tuning: Tuning) -> tuple[Settings, float]:
    """The settings and the inverse temperature that are best on other banks, for ways and shots."""
    cells = [Cell(way, shot, peer.marginal) for way, shot in shapes]
    found = []
    for settings in peer.candidates if len(peer.candidates) > 1 or peer.tempered else ():
        answers = tuning.answers(lambda size, cell, s=settings: peer.untempered(size, cell, s), cells)
        inverse = best_inverse(answers) if peer.tempered else 1.0
        found.append((mean_nll(answers, inverse), settings, inverse))
    return min(found)[1:] if found else (peer.candidates[0], 1.0)


@cache
def specification_of(guide: str, settings: Settings) -> dict[str, Any]:
    """The parts of `experiments.run guide=NAME SETTING=VALUE ...`, which are the same for any features."""
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
            candidates=_each("head.scale", 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),  # C from 1 to 1,024
            tempered=False,
        ),
        Peer(
            "lda",
            "lda",
            candidates=tuple((f"guide.shrinkage={a}", f"guide.variance={v}") for a in (0.5, 0.9) for v in (1, 4, 16)),
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
