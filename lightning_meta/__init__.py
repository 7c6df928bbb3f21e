"""Meta-learning as a PyTorch Lightning plugin."""

from lightning_meta.algorithms import (
    ABML,
    ANIL,
    BOIL,
    MAML,
    R2D2,
    AmortizedMAML,
    BayesianMAML,
    ImplicitMAML,
    MetaOptNet,
    MetaSGD,
    ProtoMAML,
    ProtoNet,
    Reptile,
)
from lightning_meta.data import (
    CIFARFSDataModule,
    CLINC150DataModule,
    EpisodicDataModule,
    FC100DataModule,
    ImageFolderDataModule,
    MiniImagenetDataModule,
    OmniglotDataModule,
    PhysioNet2012DataModule,
    SinusoidDataModule,
    SP500DataModule,
    TabularTasksDataModule,
    TextDataModule,
    TieredImagenetDataModule,
)
from lightning_meta.episodes import Episode, Support, TaskResult, collate_episodes
from lightning_meta.learners import AdaptedTask, BayesianLearner, GradientLearner, SupportClassLearner, TaskLearner
from lightning_meta.likelihoods import Prediction, Samples
from lightning_meta.models import (
    MLP,
    BagOfWords,
    Conv4,
    HuggingFaceEncoder,
    TextEncoder,
    add_low_rank_adapters,
    pretrained_encoder,
)
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
    "R2D2",
    "AdaptedTask",
    "AmortizedMAML",
    "BagOfWords",
    "BayesianLearner",
    "BayesianMAML",
    "CIFARFSDataModule",
    "CLINC150DataModule",
    "Conv4",
    "Episode",
    "EpisodicDataModule",
    "FC100DataModule",
    "FewShotPredictor",
    "GradientLearner",
    "HuggingFaceEncoder",
    "ImageFolderDataModule",
    "ImplicitMAML",
    "MetaLearner",
    "MetaOptNet",
    "MetaSGD",
    "MiniImagenetDataModule",
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
    "TieredImagenetDataModule",
    "__version__",
    "add_low_rank_adapters",
    "collate_episodes",
    "pretrained_encoder",
]
