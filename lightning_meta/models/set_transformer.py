"""Transformers of sets, with masks for padding."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_meta.arguments import check_count
from lightning_meta.models.attention import attend
from lightning_meta.models.mlp import MLP
from lightning_meta.models.norm import TaskLayerNorm


class MultiheadAttention(nn.Module):
    """Multihead attention (Vaswani et al., 2017, section 3.2) of one set to another, without dropout.

    Args:
        width: Size of queries, keys, values and outputs.
        heads: The number of heads, which divides ``width``.

    Raises:
        ValueError: If it does not.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_count("heads", heads)
        if width % heads:
            raise ValueError(f"heads={heads} does not divide the width {width}: take a divisor")
        self.width = width
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[queries, width]``.

        Args:
            queries: ``[queries, width]``.
            keys: ``[keys, width]``.
            values: ``[keys, width]``.
            mask: ``[keys]``, True where a key counts; None where all do. At least one must.
        """
        attended = attend(self.query(queries), self.key(keys), self.value(values), self.heads, mask)
        return self.mix(attended)


class SetTransformerBlock(nn.Module):
    """A layer of a transformer (Vaswani et al., 2017), normalized after each sublayer, without dropout.

    Args:
        width: Size of a token.
        heads: The number of heads.
        hidden: Size of the hidden layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.hidden = hidden
        self.attention = MultiheadAttention(width, heads)
        self.attention_norm = TaskLayerNorm(width)
        self.feed_forward = MLP(width, width, [hidden])
        self.feed_forward_norm = TaskLayerNorm(width)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[tokens, width]`` for tokens that attend to ``[context, width]``, whose mask is ``[context]``."""
        tokens = self.attention_norm(tokens + self.attention(tokens, context, context, mask))
        return self.feed_forward_norm(tokens + self.feed_forward(tokens))


class SetTransformer(nn.Module):
    """An embedding of a set's elements and layers in which all attend to the set's, in any order.

    Args:
        in_features: Size of an element.
        width: Size of a token.
        embedding_layers: Hidden layers of the embedding, a perceptron.
        blocks: The number of layers with attention.
        heads: The number of heads.

    Raises:
        ValueError: If a size is out of its range, or the heads do not divide the width.
    """

    def __init__(self, in_features: int, width: int, embedding_layers: int, blocks: int, heads: int) -> None:
        super().__init__()
        check_count("blocks", blocks, least=0)
        self.in_features = in_features
        self.width = width
        self.embedding_layers = embedding_layers
        self.heads = heads
        self.embedding = MLP(in_features, width, [width] * embedding_layers)
        self.blocks = nn.ModuleList(SetTransformerBlock(width, heads, 2 * width) for _ in range(blocks))

    def forward(
        self, elements: Tensor, mask: Tensor | None = None, contexts: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the tokens after the last layer, ``[elements, width]``, and what they attended to in each layer.

        Args:
            elements: ``[elements, in_features]``.
            mask: Which elements of the set are real, ``[set]``; None: all.
            contexts: What to attend to in each layer, ``[set, width]``, as returned for a set; None: ``elements`` are
                the set. With them, no token has an influence on another.
        """
        tokens, attended = self.embedding(elements), []
        for index, block in enumerate(self.blocks):
            context = tokens if contexts is None else contexts[index]
            attended.append(context)
            tokens = block(tokens, context, mask)
        return tokens, attended
