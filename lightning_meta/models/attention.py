"""Transformer blocks whose derivatives exist to every order, whatever torch's settings of attention are.

Paper: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762. For heads of size d (equation 1):

    attention(Q, K, V) = softmax(Q Kᵀ / √d) V

Torch's fused kernels for it have no second derivative, which meta-gradients need; so it is written out here.

Difference from the paper: normalization comes before attention and the feed-forward layers, which are added to their
input as they are (Xiong et al., 2020, arXiv 2002.04745: it trains without a warm-up); GELU takes the place of ReLU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.arguments import check_count, check_fraction
from lightning_meta.models.drop_block import dropout
from lightning_meta.models.norm import TaskLayerNorm


class SelfAttention(nn.Module):
    """Attention of several heads, from each position of a sequence to all that count.

    Args:
        size: Size of a position's vector.
        heads: The number of heads, which divides the size.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.size = size
        self.heads = heads
        self.inputs = nn.Linear(size, 3 * size)
        self.outputs = nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[examples, length, size]`` for the same and a mask ``[examples, length]``, True where it counts."""
        split = self.inputs(x).unflatten(-1, (3, self.heads, -1))  # [examples, length, 3, heads, size / heads]
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind()  # each [examples, heads, length, size / heads]
        scores = queries @ keys.mT / (self.size / self.heads) ** 0.5  # [examples, heads, length, length]
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        found = scores.softmax(-1) @ values
        return self.outputs(found.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and two linear layers with GELU between them, each added to its input.

    Args:
        size: Size of a position's vector.
        heads: The number of heads.
        hidden: Size of the layer between the linear ones.
        drop_rate: The rate of dropout in training, of what is added.
    """

    def __init__(self, size: int, heads: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.attention_norm = TaskLayerNorm(size)
        self.attention = SelfAttention(size, heads)
        self.linear_norm = TaskLayerNorm(size)
        self.linear1 = nn.Linear(size, hidden)
        self.linear2 = nn.Linear(hidden, size)
        self.drop = dropout(drop_rate)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[examples, length, size]`` for the same and a mask ``[examples, length]``."""
        x = x + self.drop(self.attention(self.attention_norm(x), mask))
        return x + self.drop(self.linear2(F.gelu(self.linear1(self.linear_norm(x)))))


class SequenceEncoder(nn.Module):
    """Transformer blocks and a last normalization.

    Args:
        size: Size of a position's vector.
        depth: The number of blocks.
        heads: The number of heads of a block.
        hidden: Size of the layer between a block's linear ones.
        drop_rate: The rate of dropout in training.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, size: int, depth: int, heads: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        for name, value in {"embedding_size": size, "depth": depth, "heads": heads, "hidden": hidden}.items():
            check_count(name, value)
        if size % heads:
            raise ValueError(f"heads={heads} must divide embedding_size={size}")
        check_fraction("drop_rate", drop_rate)
        self.blocks = nn.ModuleList(TransformerBlock(size, heads, hidden, drop_rate) for _ in range(depth))
        self.norm = TaskLayerNorm(size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[examples, length, size]`` for the same and a mask ``[examples, length]``."""
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
