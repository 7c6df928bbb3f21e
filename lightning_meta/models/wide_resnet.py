"""Wide residual networks.

Paper: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146.

A 3 × 3 convolution of 16 filters, three groups of blocks with 16k, 32k and 64k filters for the width factor k (table
1), of which the last two begin with stride 2, then batch normalization, ReLU, and the mean over positions. A block is
normalization, ReLU and 3 × 3 convolution, twice, with dropout between the two convolutions (section 2.4), and adds its
input. Where the shape changes, the input passes the first normalization and ReLU and a 1 × 1 convolution. The depth
counts the convolutions of n blocks per group: 6n + 4.

Differences from the paper: batch normalization has no running statistics unless ``running_statistics`` is set.
"""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.arguments import check_count
from lightning_meta.models.drop_block import dropout
from lightning_meta.models.head import make_head
from lightning_meta.models.norm import batch_norm_2d


class WideResNet(nn.Module):
    """A wide residual network (Zagoruyko and Komodakis, 2016); by default WRN-28-10, with 36.5 million parameters.

    Convolutions are initialized as by He et al. (2015): normal, with variance 2 / (outputs · kernel positions). They
    have no biases. Scales of the normalization are 1 and shifts 0; the head is initialized as torch does it, with
    biases 0.

    Args:
        num_classes: Outputs: the ways of the episodes, or for metric learners the size of the embedding; None: the
            features themselves, without a head.
        in_channels: Channels of the images.
        depth: The number of layers, 6n + 4: 10, 16, 22, 28, ...
        width_factor: k, by which the filters are multiplied.
        drop_rate: The rate of dropout in training, between the two convolutions of a block; the paper takes 0.3.
            Inner steps draw a new mask each.
        running_statistics: Whether batch normalization keeps running statistics, for a model that is trained as an
            ordinary network first. A learner uses them with ``batch_statistics="running"``.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> WideResNet(num_classes=5, depth=10, width_factor=1)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        num_classes: int | None = 5,
        in_channels: int = 3,
        depth: int = 28,
        width_factor: int = 10,
        drop_rate: float = 0.0,
        running_statistics: bool = False,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("depth", depth, least=10)
        if (depth - 4) % 6:
            raise ValueError(f"depth={depth} must be 6n + 4 for a whole number n, such as 10, 16, 22 or 28")
        check_count("width_factor", width_factor)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.depth = depth
        self.width_factor = width_factor
        self.drop_rate = drop_rate
        self.running_statistics = running_statistics
        widths = [16, 16 * width_factor, 32 * width_factor, 64 * width_factor]
        self.stem = _convolution(in_channels, widths[0], 3)
        blocks = []
        for (inputs, outputs), stride in zip(itertools.pairwise(widths), (1, 2, 2), strict=True):
            for number in range((depth - 4) // 6):
                first = number == 0
                shape = (inputs if first else outputs, outputs, stride if first else 1)
                blocks.append(_Block(*shape, drop_rate, running_statistics))
        self.blocks = nn.Sequential(*blocks)
        self.norm = batch_norm_2d(widths[-1], running_statistics)
        self.head = make_head(widths[-1], num_classes)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs ``[examples, num_classes]`` for images ``[examples, in_channels, height, width]``."""
        x = F.relu(self.norm(self.blocks(self.stem(x))))  # [examples, filters, height / 4, width / 4]
        return self.head(x.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, drop_rate: float, running_statistics: bool) -> None:
        super().__init__()
        self.norm1 = batch_norm_2d(inputs, running_statistics)
        self.convolution1 = _convolution(inputs, outputs, 3, stride)
        self.norm2 = batch_norm_2d(outputs, running_statistics)
        self.drop = dropout(drop_rate)
        self.convolution2 = _convolution(outputs, outputs, 3)
        self.shortcut = None if (inputs, stride) == (outputs, 1) else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        change = self.convolution2(self.drop(F.relu(self.norm2(self.convolution1(active)))))
        return change + (x if self.shortcut is None else self.shortcut(active))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
