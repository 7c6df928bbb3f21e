"""Models for few-shot learning; any other module works too."""

from lightning_meta.models.conv4 import Conv4
from lightning_meta.models.mlp import MLP
from lightning_meta.models.norm import TaskBatchNorm2d

__all__ = ["MLP", "Conv4", "TaskBatchNorm2d"]
