"""Transformer blocks of sequences, for models of texts and pictures.

Paper: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762.

Difference from the paper: normalization comes before attention and the feed-forward layers, which are added to their
input as they are (Xiong et al., 2020, arXiv 2002.04745: it trains without a warm-up); GELU takes the place of ReLU.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.arguments import check_count
from lightning_meta.models.attention import attend
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
        queries, keys, values = self.inputs(x).chunk(3, dim=-1)  # each [examples, length, size]
        return self.outputs(attend(queries, keys, values, self.heads, mask))


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
        hidden: Size of the layer between a block's linear ones; None: four times the size.
        drop_rate: The rate of dropout in training.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, size: int, depth: int, heads: int, hidden: int | None, drop_rate: float) -> None:
        super().__init__()
        hidden = 4 * size if hidden is None else hidden
        for name, value in {"embedding_size": size, "depth": depth, "heads": heads, "hidden": hidden}.items():
            check_count(name, value)
        if size % heads:
            raise ValueError(f"heads={heads} must divide embedding_size={size}")
        self.blocks = nn.ModuleList(TransformerBlock(size, heads, hidden, drop_rate) for _ in range(depth))
        self.norm = TaskLayerNorm(size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[examples, length, size]`` for the same and a mask ``[examples, length]``."""
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
