"""The algorithms, one readable file each."""

from lightning_meta.algorithms.anil import ANIL, BOIL
from lightning_meta.algorithms.implicit_maml import ImplicitMAML
from lightning_meta.algorithms.maml import MAML
from lightning_meta.algorithms.meta_sgd import MetaSGD
from lightning_meta.algorithms.reptile import Reptile

__all__ = ["ANIL", "BOIL", "MAML", "ImplicitMAML", "MetaSGD", "Reptile"]
