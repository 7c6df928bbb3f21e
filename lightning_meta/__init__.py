"""Meta-learning as a PyTorch Lightning plugin."""

from lightning_meta.adapted_task import AdaptedTask, Prediction
from lightning_meta.algorithms import ANIL, BOIL, MAML, MetaSGD
from lightning_meta.episode import Episode, collate_episodes
from lightning_meta.learner import MetaLearner
from lightning_meta.version import __version__

__all__ = [
    "ANIL",
    "BOIL",
    "MAML",
    "AdaptedTask",
    "Episode",
    "MetaLearner",
    "MetaSGD",
    "Prediction",
    "__version__",
    "collate_episodes",
]
