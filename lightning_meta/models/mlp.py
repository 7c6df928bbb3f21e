"""The multilayer perceptron."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_meta.arguments import check_count


class MLP(nn.Module):
    """Linear layers with ReLU between them; by default the MAML paper's network for sinusoids, 1-40-40-1.

    Args:
        in_features: Size of an input.
        out_features: Size of an output.
        hidden: Sizes of the hidden layers.

    Raises:
        ValueError: If a size is not a positive integer.

    Example:
        >>> import torch
        >>> MLP(in_features=3, out_features=2, hidden=[16])(torch.randn(8, 3)).shape
        torch.Size([8, 2])
    """

    def __init__(self, in_features: int = 1, out_features: int = 1, hidden: Sequence[int] = (40, 40)) -> None:
        super().__init__()
        sizes = [in_features, *hidden, out_features]
        for size in sizes:
            check_count("a layer's size", size)
        self.in_features = in_features
        self.out_features = out_features
        self.hidden = tuple(hidden)
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise(sizes):
            layers += [nn.Linear(i, o), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., out_features]`` for inputs ``[..., in_features]``."""
        return self.layers(x)
