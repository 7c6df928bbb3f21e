"""What meta-learning must beat: learners that learn from one task alone, or from all tasks as one data set.

They run on the same episodes, metrics and intervals as the algorithms. All but `PooledModel` are tested without
training, and those for classes take any number of ways. Classification by the nearest prototype is `ProtoNet` with a
model without parameters, ``ProtoNet(nn.Flatten())``, or with a frozen one.
"""

from lightning_meta.algorithms.baselines.constant import LastTarget, MeanTarget
from lightning_meta.algorithms.baselines.logistic import LogisticRegression
from lightning_meta.algorithms.baselines.pooled import PooledModel, PooledRidge
from lightning_meta.algorithms.baselines.ridge import RidgeClassifier, RidgeRegression

__all__ = [
    "LastTarget",
    "LogisticRegression",
    "MeanTarget",
    "PooledModel",
    "PooledRidge",
    "RidgeClassifier",
    "RidgeRegression",
]
