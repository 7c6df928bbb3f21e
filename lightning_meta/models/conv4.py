"""The four-block convolutional network of the few-shot literature."""

import itertools
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.arguments import check_choice, check_count
from lightning_meta.models.norm import TaskBatchNorm2d

Downsampling = Literal["stride", "max_pool"]


class Conv4(nn.Module):
    """Four blocks of 3 × 3 convolution, batch normalization and ReLU, then a linear head.

    Args:
        num_classes: Outputs; the ways of the episodes.
        in_channels: Channels of the images.
        filters: Filters of every convolution; 64 for Omniglot, 32 is usual for miniImageNet.
        downsampling: "stride": convolutions of stride 2 and a mean over positions before the head, as in the
            MAML paper for Omniglot. "max_pool": stride 1, 2 × 2 max-pooling, and the head over all positions, as
            in the matching-networks paper (Vinyals et al., 2016) and most later work; about four times the arithmetic.
        image_size: Height and width of the images in pixels; "max_pool" sizes its head by it.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> Conv4(num_classes=5)(torch.rand(8, 1, 28, 28)).shape  # logits of eight images
        torch.Size([8, 5])
    """

    def __init__(
        self,
        num_classes: int = 5,
        in_channels: int = 1,
        filters: int = 64,
        downsampling: Downsampling = "stride",
        image_size: int = 28,
    ) -> None:
        super().__init__()
        for name, value in {"num_classes": num_classes, "in_channels": in_channels, "filters": filters}.items():
            check_count(name, value)
        check_count("image_size", image_size, least=16 if downsampling == "max_pool" else 1)
        check_choice("downsampling", downsampling, Downsampling)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.filters = filters
        self.downsampling = downsampling
        self.image_size = image_size
        stride = 2 if downsampling == "stride" else 1
        channels = [in_channels, filters, filters, filters, filters]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, kernel_size=3, stride=stride, padding=1) for i, o in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(TaskBatchNorm2d(filters) for _ in range(4))
        positions = 1 if downsampling == "stride" else (image_size // 16) ** 2
        self.head = nn.Linear(filters * positions, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[examples, num_classes]`` for images ``[examples, in_channels, height, width]``."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
            if self.downsampling == "max_pool":
                x = F.max_pool2d(x, 2)
        features = x.mean((2, 3)) if self.downsampling == "stride" else x.flatten(1)  # [examples, features]
        return self.head(features)
