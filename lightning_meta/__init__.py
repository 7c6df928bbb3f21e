"""Meta-learning as a PyTorch Lightning plugin."""

from lightning_meta.algorithms import (
    ABML,
    ANIL,
    BOIL,
    MAML,
    AmortizedMAML,
    BayesianMAML,
    ImplicitMAML,
    MetaSGD,
    ProtoMAML,
    ProtoNet,
    Reptile,
)
from lightning_meta.data import (
    CLINC150DataModule,
    EpisodicDataModule,
    ImageFolderDataModule,
    OmniglotDataModule,
    SinusoidDataModule,
    TabularTasksDataModule,
    TextDataModule,
    EpisodicDataModule,
    OmniglotDataModule,
    PhysioNet2012DataModule,
    SinusoidDataModule,
    SP500DataModule,
    TabularTasksDataModule,
)
from lightning_meta.episodes import Episode, Support, TaskResult, collate_episodes
from lightning_meta.learners import AdaptedTask, BayesianLearner, GradientLearner, SupportClassLearner, TaskLearner
from lightning_meta.likelihoods import Prediction, Samples
from lightning_meta.models import MLP, BagOfWords, Conv4, TextEncoder
from lightning_meta.prediction import FewShotPredictor
from lightning_meta.version import __version__

MetaLearner = GradientLearner
"""The former name of `GradientLearner`."""

__all__ = [
    "ABML",
    "ANIL",
    "BOIL",
    "MAML",
    "MLP",
    "AdaptedTask",
    "AmortizedMAML",
    "BagOfWords",
    "BayesianLearner",
    "BayesianMAML",
    "CLINC150DataModule",
    "Conv4",
    "Episode",
    "EpisodicDataModule",
    "FewShotPredictor",
    "GradientLearner",
    "ImageFolderDataModule",
    "ImplicitMAML",
    "MetaLearner",
    "MetaSGD",
    "OmniglotDataModule",
    "PhysioNet2012DataModule",
    "Prediction",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "SP500DataModule",
    "Samples",
    "SinusoidDataModule",
    "Support",
    "SupportClassLearner",
    "TabularTasksDataModule",
    "TaskLearner",
    "TaskResult",
    "TextDataModule",
    "TextEncoder",
    "__version__",
    "collate_episodes",
]
