"""A permutation-invariant encoder of sets."""

import torch
from torch import Tensor, nn


class SetEncoder(nn.Module):
    """Deep sets (Zaheer et al., NeurIPS 2017, theorem 2): a network of the mean of the elements' embeddings.

    Args:
        in_features: Size of an element.
        out_features: Size of the output, which is close to 0 at initialization.
        hidden: Size of the hidden layers and of the embedding.
    """

    def __init__(self, in_features: int, out_features: int, hidden: int = 64) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.hidden = hidden
        self.embed = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.read = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out_features))
        last = self.read[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, elements: Tensor) -> Tensor:
        """Return ``[out_features]`` for a set ``[elements, in_features]``."""
        return self.read(self.embed(elements).mean(0))  # [hidden] to [out_features]
