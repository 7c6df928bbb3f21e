"""The algorithms, one readable file each."""

from lightning_meta.algorithms.closed_form.meta_opt_net import MetaOptNet
from lightning_meta.algorithms.closed_form.r2d2 import R2D2
from lightning_meta.algorithms.gradient.anil import ANIL, BOIL
from lightning_meta.algorithms.gradient.cavia import CAVIA
from lightning_meta.algorithms.gradient.comln import COMLN
from lightning_meta.algorithms.gradient.implicit_maml import ImplicitMAML
from lightning_meta.algorithms.gradient.maml import MAML
from lightning_meta.algorithms.gradient.meta_curvature import MetaCurvature
from lightning_meta.algorithms.gradient.meta_sgd import MetaSGD
from lightning_meta.algorithms.gradient.proto_maml import ProtoMAML
from lightning_meta.algorithms.gradient.reptile import Reptile
from lightning_meta.algorithms.metric.matching_net import MatchingNet
from lightning_meta.algorithms.metric.proto_net import ProtoNet
from lightning_meta.algorithms.metric.relation_net import RelationNet
from lightning_meta.algorithms.probabilistic.abml import ABML
from lightning_meta.algorithms.probabilistic.amortized_maml import AmortizedMAML
from lightning_meta.algorithms.probabilistic.bayesian_maml import BayesianMAML
from lightning_meta.algorithms.probabilistic.dkt import DKT
from lightning_meta.algorithms.probabilistic.pacoh import PACOH
from lightning_meta.algorithms.probabilistic.platipus import PLATIPUS
from lightning_meta.algorithms.probabilistic.versa import VERSA
from lightning_meta.algorithms.processes.attentive_np import AttentiveNP
from lightning_meta.algorithms.processes.cnp import CNP
from lightning_meta.algorithms.processes.tnp import TNP
from lightning_meta.algorithms.transfer.baseline import Baseline
from lightning_meta.algorithms.transfer.baseline_plus_plus import BaselinePlusPlus
from lightning_meta.algorithms.transfer.simple_shot import SimpleShot

__all__ = [
    "ABML",
    "ANIL",
    "BOIL",
    "CAVIA",
    "CNP",
    "COMLN",
    "DKT",
    "MAML",
    "PACOH",
    "PLATIPUS",
    "R2D2",
    "TNP",
    "VERSA",
    "AmortizedMAML",
    "AttentiveNP",
    "Baseline",
    "BaselinePlusPlus",
    "BayesianMAML",
    "ImplicitMAML",
    "MatchingNet",
    "MetaCurvature",
    "MetaOptNet",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "RelationNet",
    "Reptile",
    "SimpleShot",
]
