"""The algorithms, one readable file each."""

from lightning_meta.algorithms.anil import ANIL, BOIL
from lightning_meta.algorithms.maml import MAML
from lightning_meta.algorithms.meta_sgd import MetaSGD

__all__ = ["ANIL", "BOIL", "MAML", "MetaSGD"]
