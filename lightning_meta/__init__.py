"""Meta-learning as a PyTorch Lightning plugin."""

from lightning_meta.adapted_task import AdaptedTask
from lightning_meta.algorithms import (
    ABML,
    ANIL,
    BOIL,
    MAML,
    AmortizedMAML,
    BayesianMAML,
    ImplicitMAML,
    MetaSGD,
    Reptile,
)
from lightning_meta.bayesian_learner import BayesianLearner
from lightning_meta.data import EpisodicDataModule, OmniglotDataModule, SinusoidDataModule
from lightning_meta.episode import Episode, Support, collate_episodes
from lightning_meta.learner import MetaLearner
from lightning_meta.models import MLP, Conv4
from lightning_meta.predictive import Prediction, Samples
from lightning_meta.version import __version__

__all__ = [
    "ABML",
    "ANIL",
    "BOIL",
    "MAML",
    "MLP",
    "AdaptedTask",
    "AmortizedMAML",
    "BayesianLearner",
    "BayesianMAML",
    "Conv4",
    "Episode",
    "EpisodicDataModule",
    "ImplicitMAML",
    "MetaLearner",
    "MetaSGD",
    "OmniglotDataModule",
    "Prediction",
    "Reptile",
    "Samples",
    "SinusoidDataModule",
    "Support",
    "__version__",
    "collate_episodes",
]
