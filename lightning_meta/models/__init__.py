"""Models for few-shot learning; any other module works too."""

from lightning_meta.models.conv4 import Conv4
from lightning_meta.models.hugging_face import HuggingFaceEncoder, pretrained_encoder
from lightning_meta.models.low_rank import LowRankAdapted, add_low_rank_adapters
from lightning_meta.models.mlp import MLP
from lightning_meta.models.norm import TaskBatchNorm2d
from lightning_meta.models.relation import Conv4Maps, RelationConv, RelationMLP
from lightning_meta.models.text_encoder import BagOfWords, TextEncoder

__all__ = [
    "MLP",
    "BagOfWords",
    "Conv4",
    "Conv4Maps",
    "HuggingFaceEncoder",
    "LowRankAdapted",
    "RelationConv",
    "RelationMLP",
    "TaskBatchNorm2d",
    "TextEncoder",
    "add_low_rank_adapters",
    "pretrained_encoder",
]
