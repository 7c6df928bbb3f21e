"""A small network of texts, and word counts without a network."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_meta.arguments import check_count

_SMALL = 1e-6  # added to squared lengths, which are 0 for texts without words


class TextEncoder(nn.Module):
    """A weighted mean of word embeddings scaled to length 1, linear layers with ReLU between them, and a linear head.

    The weight of a word is the softmax, over the words of a text, of a number learned for each word. At first all are
    equal. Learned weights take the place of inverse document frequencies: common words get small ones. The
    scaling makes short and long texts comparable, whose means differ in length.

    Texts are dictionaries of ``input_ids`` and ``attention_mask``, ``[examples, length]``, as text data modules give
    them; the mask is 1 for words and 0 for padding. A text without words has the vector 0.

    A learner computes a gradient of the whole table of embeddings for each task: with much more than 32 MiB in all
    (tasks × ``vocabulary_size`` × ``embedding_size`` numbers), fewer tasks at once are faster.

    Args:
        num_classes: Outputs; the ways of the episodes, or for metric learners the size of the embedding.
        vocabulary_size: The number of ids, as in the data module.
        embedding_size: Size of a word's embedding.
        hidden: Sizes of the hidden layers.

    Raises:
        ValueError: If a size is not a positive integer, or an id is not less than ``vocabulary_size``.

    Example:
        >>> import torch
        >>> texts = {"input_ids": torch.tensor([[5, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> TextEncoder(num_classes=5, vocabulary_size=10)(texts).shape  # logits of one text
        torch.Size([1, 5])
    """

    def __init__(
        self,
        num_classes: int = 5,
        vocabulary_size: int = 4096,
        embedding_size: int = 128,
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        sizes = [embedding_size, *hidden]
        for name, value in {"num_classes": num_classes, "vocabulary_size": vocabulary_size}.items():
            check_count(name, value)
        for size in sizes:
            check_count("a layer's size", size)
        self.num_classes = num_classes
        self.vocabulary_size = vocabulary_size
        self.embedding_size = embedding_size
        self.hidden = tuple(hidden)
        self.weights = nn.Embedding(vocabulary_size, 1)
        self.embedding = nn.Embedding(vocabulary_size, embedding_size)
        with torch.no_grad():
            self.weights.weight.zero_()
            # Small, so that Adam's steps, which do not depend on the scale, soon make a difference.
            self.embedding.weight.mul_(0.1)
        self.layers = nn.Sequential(*[m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())])
        self.head = nn.Linear(sizes[-1], num_classes)

    def forward(self, texts: Mapping[str, Tensor]) -> Tensor:
        """Return outputs ``[examples, num_classes]`` for texts ``[examples, length]``."""
        ids, mask = texts["input_ids"], texts["attention_mask"] != 0
        embedded, scores = embedded_words(self.embedding, ids), self.weights(ids)[..., 0]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=1) * mask  # [examples, length]; 0 for padding, in texts without words too
        mean = (weights[:, None] @ embedded)[:, 0]  # [examples, embedding_size]
        unit = mean * (mean.square().sum(1, keepdim=True) + _SMALL).rsqrt()
        return self.head(self.layers(unit))


def embedded_words(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """Return the rows ``[..., size]`` of a table for ids ``[...]``.

    Raises:
        ValueError: If an id has no row.
    """
    try:
        return embedding(ids)
    except IndexError as error:
        raise ValueError(
            f"an id of the texts is not in [0, {embedding.num_embeddings}): set the model's vocabulary_size to the "
            "data module's"
        ) from error


class BagOfWords(nn.Module):
    """The logarithm of one plus a text's word counts, scaled to length 1: a baseline without parameters.

    Nearest prototypes and closed-form classifiers take it as it is. A text without words gives zeros.

    Args:
        vocabulary_size: The number of ids, as in the data module.

    Raises:
        ValueError: If the number is not a positive integer.

    Example:
        >>> import torch
        >>> texts = {"input_ids": torch.tensor([[2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> BagOfWords(vocabulary_size=5)(texts)
        tensor([[0.0000, 0.0000, 0.7071, 0.7071, 0.0000]])
    """

    def __init__(self, vocabulary_size: int = 4096) -> None:
        super().__init__()
        check_count("vocabulary_size", vocabulary_size)
        self.vocabulary_size = vocabulary_size

    def forward(self, texts: Mapping[str, Tensor]) -> Tensor:
        """Return ``[examples, vocabulary_size]`` for texts ``[examples, length]``."""
        ids = texts["input_ids"]
        mask = (texts["attention_mask"] != 0).to(torch.get_default_dtype())
        counts = mask.new_zeros(ids.shape[0], self.vocabulary_size).scatter_add(1, ids, mask)
        return nn.functional.normalize(counts.log1p(), dim=1)
