"""Models for few-shot learning; any other module works too."""

from lightning_meta.models.conv4 import Conv4
from lightning_meta.models.mlp import MLP
from lightning_meta.models.norm import TaskBatchNorm2d
from lightning_meta.models.text_encoder import BagOfWords, TextEncoder

__all__ = ["MLP", "BagOfWords", "Conv4", "TaskBatchNorm2d", "TextEncoder"]
