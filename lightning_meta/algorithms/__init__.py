"""The algorithms, one readable file each."""

from lightning_meta.algorithms.gradient.anil import ANIL, BOIL
from lightning_meta.algorithms.gradient.implicit_maml import ImplicitMAML
from lightning_meta.algorithms.gradient.maml import MAML
from lightning_meta.algorithms.gradient.meta_sgd import MetaSGD
from lightning_meta.algorithms.gradient.proto_maml import ProtoMAML
from lightning_meta.algorithms.gradient.reptile import Reptile
from lightning_meta.algorithms.metric.proto_net import ProtoNet
from lightning_meta.algorithms.probabilistic.abml import ABML
from lightning_meta.algorithms.probabilistic.amortized_maml import AmortizedMAML
from lightning_meta.algorithms.probabilistic.bayesian_maml import BayesianMAML
from lightning_meta.algorithms.probabilistic.dkt import DKT
from lightning_meta.algorithms.probabilistic.platipus import PLATIPUS
from lightning_meta.algorithms.probabilistic.versa import VERSA

__all__ = [
    "ABML",
    "ANIL",
    "BOIL",
    "DKT",
    "MAML",
    "PLATIPUS",
    "VERSA",
    "AmortizedMAML",
    "BayesianMAML",
    "ImplicitMAML",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
]
