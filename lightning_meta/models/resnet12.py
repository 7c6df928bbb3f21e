"""The residual network of the few-shot literature.

Papers: Oreshkin, Rodriguez, Lacoste, "TADAM: Task dependent adaptive metric for improved few-shot learning", NeurIPS
2018, arXiv 1805.10123; Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex Optimization", CVPR
2019, arXiv 1904.03758, whose network most later work takes.

A block is three 3 × 3 convolutions, each with batch normalization, leaky ReLU of slope 0.1 after the first two and
after the sum with a 1 × 1 convolution of the block's input, then 2 × 2 max-pooling and dropout. There are four blocks;
Lee et al. use dropout of single values in the first two, and DropBlock in the last two.

Differences from the papers:

- The rate of DropBlock is constant; Lee et al. raise it linearly over 40,000 batches.
- Oreshkin et al. use the activation swish-1 in place of the leaky ReLU, and no dropout.
- Batch normalization has no running statistics unless ``running_statistics`` is set.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.arguments import check_choice, check_count
from lightning_meta.models.drop_block import dropout
from lightning_meta.models.head import make_head
from lightning_meta.models.norm import batch_norm_2d

Pooling = Literal["average", "flatten"]

_SLOPE = 0.1


class ResNet12(nn.Module):
    """Four residual blocks of three convolutions, and a linear head.

    Convolutions are initialized as by He et al. (2015): normal, with variance 2 / (1 + 0.1²) / (outputs · kernel
    positions). They have no biases. Scales of the normalization are 1 and shifts 0; the head is initialized as torch
    does it.

    Args:
        num_classes: Outputs: the ways of the episodes, or for metric learners the size of the embedding; None: the
            features themselves, without a head.
        in_channels: Channels of the images.
        widths: Filters of the four blocks. (64, 160, 320, 640) is the network of Lee et al. (2019) with 12.4 million
            parameters, (64, 128, 256, 512) that of Oreshkin et al. (2018) with 8.0 million.
        pooling: "average": the features are the means over positions. "flatten": they are all positions, as in the
            closed-form and convex learners of Lee et al.
        image_size: Height and width of the images in pixels; "flatten" sizes its head by it.
        drop_rate: The rate of dropout in training: of single values in the first two blocks, of squares
            (`DropBlock2d`) in the last two. Lee et al. take 0.1. Inner steps draw a new mask each.
        block_size: The size of the squares; Lee et al. take 5 for pictures of 84 pixels, 2 for those of 32.
        running_statistics: Whether batch normalization keeps running statistics, for a model that is trained as an
            ordinary network first. A learner uses them with ``batch_statistics="running"``.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> ResNet12(num_classes=5, widths=(8, 16, 32, 64))(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        num_classes: int | None = 5,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 160, 320, 640),
        pooling: Pooling = "average",
        image_size: int = 84,
        drop_rate: float = 0.0,
        block_size: int = 5,
        running_statistics: bool = False,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        if len(widths) != 4:
            raise ValueError(f"widths={list(widths)} must be four numbers, one for each block")
        for width in widths:
            check_count("a block's width", width)
        check_choice("pooling", pooling, Pooling)
        check_count("image_size", image_size, least=16)
        check_count("block_size", block_size)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.widths = tuple(widths)
        self.pooling = pooling
        self.image_size = image_size
        self.drop_rate = drop_rate
        self.block_size = block_size
        self.running_statistics = running_statistics
        drops = [dropout(drop_rate), dropout(drop_rate), dropout(drop_rate, block_size), dropout(drop_rate, block_size)]
        sizes = itertools.pairwise([in_channels, *widths])
        self.blocks = nn.Sequential(
            *(_Block(i, o, drop, running_statistics) for (i, o), drop in zip(sizes, drops, strict=True))
        )
        positions = 1 if pooling == "average" else (image_size // 16) ** 2
        self.head = make_head(widths[-1] * positions, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs ``[examples, num_classes]`` for images ``[examples, in_channels, height, width]``."""
        x = self.blocks(x)  # [examples, widths[-1], height // 16, width // 16]
        return self.head(x.mean((2, 3)) if self.pooling == "average" else x.flatten(1))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, drop: nn.Module, running_statistics: bool) -> None:
        super().__init__()
        sizes = [inputs, outputs, outputs]
        self.convolutions = nn.ModuleList(nn.Conv2d(i, outputs, 3, padding=1, bias=False) for i in sizes)
        self.norms = nn.ModuleList(batch_norm_2d(outputs, running_statistics) for _ in sizes)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.shortcut_norm = batch_norm_2d(outputs, running_statistics)
        self.drop = drop
        for convolution in [*self.convolutions, self.shortcut]:
            nn.init.kaiming_normal_(convolution.weight, _SLOPE, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        total = self.shortcut_norm(self.shortcut(x))
        last = len(self.convolutions) - 1
        for position, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(x))
            if position < last:
                x = F.leaky_relu(x, _SLOPE)
        return self.drop(F.max_pool2d(F.leaky_relu(x + total, _SLOPE), 2))
