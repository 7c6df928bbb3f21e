"""The algorithms, one readable file each."""

from lightning_meta.algorithms.abml import ABML
from lightning_meta.algorithms.amortized_maml import AmortizedMAML
from lightning_meta.algorithms.anil import ANIL, BOIL
from lightning_meta.algorithms.bayesian_maml import BayesianMAML
from lightning_meta.algorithms.implicit_maml import ImplicitMAML
from lightning_meta.algorithms.maml import MAML
from lightning_meta.algorithms.meta_sgd import MetaSGD
from lightning_meta.algorithms.reptile import Reptile

__all__ = ["ABML", "ANIL", "BOIL", "MAML", "AmortizedMAML", "BayesianMAML", "ImplicitMAML", "MetaSGD", "Reptile"]
