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
from lightning_meta.algorithms.processes.attentive_np import AttentiveNP
from lightning_meta.algorithms.processes.cnp import CNP
from lightning_meta.algorithms.processes.tnp import TNP

__all__ = [
    "ABML",
    "ANIL",
    "BOIL",
    "CNP",
    "MAML",
    "TNP",
    "AmortizedMAML",
    "AttentiveNP",
    "BayesianMAML",
    "ImplicitMAML",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
]
