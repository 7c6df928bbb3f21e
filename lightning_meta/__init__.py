"""Meta-learning as a PyTorch Lightning plugin."""

from lightning_meta.adapted_task import AdaptedTask, Prediction
from lightning_meta.algorithms import ANIL, BOIL, MAML, ImplicitMAML, MetaSGD, Reptile
from lightning_meta.data import EpisodicDataModule, OmniglotDataModule, SinusoidDataModule
from lightning_meta.episode import Episode, Support, collate_episodes
from lightning_meta.learner import MetaLearner
from lightning_meta.models import MLP, Conv4
from lightning_meta.version import __version__

__all__ = [
    "ANIL",
    "BOIL",
    "MAML",
    "MLP",
    "AdaptedTask",
    "Conv4",
    "Episode",
    "EpisodicDataModule",
    "ImplicitMAML",
    "MetaLearner",
    "MetaSGD",
    "OmniglotDataModule",
    "Prediction",
    "Reptile",
    "SinusoidDataModule",
    "Support",
    "__version__",
    "collate_episodes",
]
