"""A small transformer of texts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_meta.arguments import check_count
from lightning_meta.models.head import make_head
from lightning_meta.models.sequence_encoder import SequenceEncoder
from lightning_meta.models.text_encoder import embedded_words

_SMALL = 0.02  # as in BERT


class TextTransformer(nn.Module):
    """A transformer of word embeddings, the mean of its outputs over a text's words, and a linear head.

    `TextEncoder` weighs words one by one; this takes their order and company into account. Normalization comes before
    attention and linear layers. All derivatives exist, whatever torch's settings of attention are. Texts are as
    `TextEncoder` takes them: dictionaries of ``input_ids`` and ``attention_mask``, ``[examples, length]``. What
    padding holds, and where it is, makes no difference. A text without words has the vector 0.

    Embeddings of words and positions are normal with standard deviation 0.02 at first; linear layers are initialized as
    torch does it.

    Args:
        num_classes: Outputs: the ways of the episodes, or for metric learners the size of the embedding; None: the
            mean vectors themselves, without a head.
        vocabulary_size: The number of ids, as in the data module.
        max_length: The most words of a text; the data module's ``max_length`` may not be larger.
        embedding_size: Size of a word's vector.
        depth: The number of blocks.
        heads: The number of heads of a block; it divides ``embedding_size``.
        hidden: Size of the layer between a block's linear ones; None: four times ``embedding_size``.
        drop_rate: The rate of dropout in training. Inner steps draw a new mask each.

    Raises:
        ValueError: If an argument is out of its range, an id is not less than ``vocabulary_size``, or texts are longer
            than ``max_length``.

    Example:
        >>> import torch
        >>> texts = {"input_ids": torch.tensor([[5, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> TextTransformer(num_classes=5, vocabulary_size=10)(texts).shape  # logits of one text
        torch.Size([1, 5])
    """

    def __init__(
        self,
        num_classes: int | None = 5,
        vocabulary_size: int = 4096,
        max_length: int = 64,
        embedding_size: int = 128,
        depth: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_count("vocabulary_size", vocabulary_size)
        check_count("max_length", max_length)
        self.num_classes = num_classes
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.embedding_size = embedding_size
        self.depth = depth
        self.heads = heads
        self.hidden = hidden
        self.drop_rate = drop_rate
        self.encoder = SequenceEncoder(embedding_size, depth, heads, hidden, drop_rate)
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        self.positions = nn.Embedding(max_length, embedding_size)
        with torch.no_grad():
            self.embedding.weight.mul_(_SMALL)
            self.positions.weight.mul_(_SMALL)
        self.head = make_head(embedding_size, num_classes)

    def forward(self, texts: Mapping[str, Tensor]) -> Tensor:
        """Return outputs ``[examples, num_classes]`` for texts ``[examples, length]``."""
        mask = texts["attention_mask"] != 0
        if mask.shape[1] > self.max_length:
            raise ValueError(
                f"the texts have {mask.shape[1]} places for words and max_length={self.max_length}: set the model's "
                "max_length to the data module's"
            )
        places = (mask.cumsum(1) - 1).clamp(min=0)  # a word's number in its text, wherever padding is
        x = embedded_words(self.embedding, texts["input_ids"]) + self.positions(places)
        x = self.encoder(x, mask)  # [examples, length, embedding_size]
        real = mask[..., None].to(x.dtype)
        return self.head((x * real).sum(1) / real.sum(1).clamp(min=1))
