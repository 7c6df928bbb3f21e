"""Networks that score how well a class and a query belong together, and an embedding that gives feature maps."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.arguments import check_count
from lightning_meta.models.norm import TaskBatchNorm2d


class RelationMLP(nn.Module):
    """Scores of pairs of feature vectors: one hidden layer with ReLU.

    Args:
        features: The features of a class or a query; a pair has twice as many.
        hidden: Size of the hidden layer.

    Raises:
        ValueError: If a size is not a positive integer.

    Example:
        >>> import torch
        >>> RelationMLP(features=16)(torch.randn(8, 32)).shape  # eight pairs
        torch.Size([8])
    """

    def __init__(self, features: int, hidden: int = 64) -> None:
        super().__init__()
        check_count("features", features)
        check_count("hidden", hidden)
        self.features = features
        self.first = nn.Linear(2 * features, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the scores ``[pairs]`` of pairs ``[pairs, 2 * features]``, before the sigmoid."""
        if pairs.ndim != 2 or pairs.shape[1] != 2 * self.features:
            raise ValueError(_expected(self, pairs, f"[pairs, {2 * self.features}]"))
        return self.last(F.relu(self.first(pairs)))[:, 0]


class RelationConv(nn.Module):
    """Scores of pairs of feature maps: two blocks of convolution, batch normalization, ReLU and max-pooling.

    A mean over positions and one hidden layer with ReLU follow.

    Args:
        channels: The channels of a class's or a query's map, at least 4 × 4 pixels large; a pair has twice as many.
        filters: Filters of both convolutions.
        hidden: Size of the hidden layer.

    Raises:
        ValueError: If a size is not a positive integer.

    Example:
        >>> import torch
        >>> RelationConv(channels=16)(torch.randn(8, 32, 7, 7)).shape  # eight pairs
        torch.Size([8])
    """

    def __init__(self, channels: int, filters: int = 64, hidden: int = 8) -> None:
        super().__init__()
        for name, value in {"channels": channels, "filters": filters, "hidden": hidden}.items():
            check_count(name, value)
        self.channels = channels
        inputs = (2 * channels, filters)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, filters, kernel_size=3, padding=1) for i in inputs)
        self.norms = nn.ModuleList(TaskBatchNorm2d(filters) for _ in inputs)
        self.first = nn.Linear(filters, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the scores ``[pairs]`` of pairs ``[pairs, 2 * channels, height, width]``, before the sigmoid."""
        if pairs.ndim != 4 or pairs.shape[1] != 2 * self.channels or min(pairs.shape[2:]) < 4:
            raise ValueError(_expected(self, pairs, f"[pairs, {2 * self.channels}, at least 4, at least 4]"))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            pairs = F.max_pool2d(F.relu(norm(convolution(pairs))), 2)
        return self.last(F.relu(self.first(pairs.mean((2, 3)))))[:, 0]


class Conv4Maps(nn.Module):
    """Four blocks of 3 × 3 convolution, batch normalization and ReLU, which give feature maps.

    The first two blocks end with 2 × 2 max-pooling, as the embedding of relation networks (Sung et al., 2018), whose
    first two convolutions are without padding.

    Args:
        in_channels: Channels of the images.
        filters: Filters of every convolution.

    Raises:
        ValueError: If a size is not a positive integer.

    Example:
        >>> import torch
        >>> Conv4Maps()(torch.rand(8, 1, 28, 28)).shape
        torch.Size([8, 64, 7, 7])
    """

    def __init__(self, in_channels: int = 1, filters: int = 64) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("filters", filters)
        self.in_channels = in_channels
        self.filters = filters
        inputs = (in_channels, filters, filters, filters)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, filters, kernel_size=3, padding=1) for i in inputs)
        self.norms = nn.ModuleList(TaskBatchNorm2d(filters) for _ in inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``[examples, filters, height / 4, width / 4]`` for images ``[examples, channels, ...]``."""
        for block, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            x = F.max_pool2d(x, 2) if block < 2 else x
        return x


def relation_for(model: nn.Module) -> RelationMLP | RelationConv:
    """Return a network for the features that a model gives, told by its last linear or convolutional layer.

    Raises:
        ValueError: If the model has no such layer, or turns the maps of a convolution into vectors.
    """
    cure = "set relation, such as RelationMLP(features=64)"
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Flatten)]
    learned = [module for module in layers if not isinstance(module, nn.Flatten)]
    if not learned:
        raise ValueError(
            f"relation=None, and {type(model).__name__} has no nn.Linear or nn.Conv2d that would tell the number of "
            f"features that it gives: {cure}"
        )
    last = learned[-1]
    if isinstance(last, nn.Linear):
        return RelationMLP(last.out_features)
    # This package's models without a head give vectors, too.
    if layers[-1] is not last or getattr(model, "num_classes", 0) is None:
        raise ValueError(
            f"relation=None, and {type(model).__name__} gives vectors of a size that none of its layers tells: {cure}, "
            "or end the model in an nn.Linear, as num_classes=64 does for this package's models"
        )
    return RelationConv(last.out_channels)


def _expected(relation: nn.Module, pairs: Tensor, shape: str) -> str:
    return (
        f"{type(relation).__name__} takes pairs {shape}, got {tuple(pairs.shape)}: set relation to a module for the "
        "features that the model gives"
    )
