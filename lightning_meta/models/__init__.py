"""Models for few-shot learning; any other module works too."""

from lightning_meta.models.conv4 import Conv4
from lightning_meta.models.drop_block import DropBlock2d
from lightning_meta.models.hugging_face import HuggingFaceEncoder, pretrained_encoder
from lightning_meta.models.low_rank import LowRankAdapted, add_low_rank_adapters
from lightning_meta.models.mlp import MLP
from lightning_meta.models.norm import RunningBatchNorm2d, TaskBatchNorm2d, TaskLayerNorm
from lightning_meta.models.relation import Conv4Maps, RelationConv, RelationMLP
from lightning_meta.models.resnet12 import ResNet12
from lightning_meta.models.text_encoder import BagOfWords, TextEncoder
from lightning_meta.models.text_transformer import TextTransformer
from lightning_meta.models.vision_transformer import VisionTransformer
from lightning_meta.models.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "BagOfWords",
    "Conv4",
    "Conv4Maps",
    "DropBlock2d",
    "HuggingFaceEncoder",
    "LowRankAdapted",
    "RelationConv",
    "RelationMLP",
    "ResNet12",
    "RunningBatchNorm2d",
    "TaskBatchNorm2d",
    "TaskLayerNorm",
    "TextEncoder",
    "TextTransformer",
    "VisionTransformer",
    "WideResNet",
    "add_low_rank_adapters",
    "pretrained_encoder",
]
