"""A vocabulary of words."""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lightning_meta import arguments

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2
_MOST_IDS = 2**31

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words_of(text: str) -> list[str]:
    r"""Return the words of a text, in lower case, and its punctuation marks.

    A word matches ``\w+(?:['’]\w+)*``: letters, digits and underscores, with apostrophes inside. Any other character
    that is not white space is a word of its own. Characters of the same meaning become one by Unicode's form NFKC.

    Example:
        >>> words_of("Don't panic!")
        ["don't", 'panic', '!']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class Vocabulary:
    """Words with the ids 2, 3, ...; 0 is padding and 1 an unknown word.

    With ``hash_buckets`` an unknown word has one of the last ids, chosen by a hash of its letters, so that two
    different unknown words mostly differ.

    Args:
        words: The words, in the order of their ids.
        size: Ids are less than this.
        hash_buckets: How many of the last ids are for unknown words.

    Raises:
        ValueError: If a number is out of its range, there are more words than ids, or a word is there twice.
        TypeError: If a word is no text.
    """

    def __init__(self, words: Sequence[str], size: int, hash_buckets: int) -> None:
        check_sizes(size, hash_buckets)
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise TypeError("a vocabulary's words must be texts")
        if FIRST_WORD + len(words) + hash_buckets > size:
            raise ValueError(f"vocabulary_size={size} has no room for {len(words)} words and {hash_buckets} buckets")
        self.size = size
        self.hash_buckets = hash_buckets
        self._ids = {word: number for number, word in enumerate(words, start=FIRST_WORD)}
        self._words: dict[int, str] | None = None
        if len(self._ids) < len(words):
            raise ValueError("the words of a vocabulary must be different from each other")

    @classmethod
    def of_texts(cls, texts: Iterable[str], size: int, min_count: int, hash_buckets: int) -> Self:
        """Take the most frequent words of texts, those that occur ``min_count`` times or more."""
        check_sizes(size, hash_buckets)
        counts = Counter(word for text in texts for word in words_of(text))
        frequent = sorted((word for word in counts if counts[word] >= min_count), key=lambda w: (-counts[w], w))
        return cls(frequent[: size - hash_buckets - FIRST_WORD], size, hash_buckets)

    def state(self) -> dict[str, Any]:
        """Return what a `TextPreparation` needs to build it again, as plain values."""
        return {
            "vocabulary": {"words": list(self._ids), "size": self.size, "hash_buckets": self.hash_buckets},
            "tokenizer": None,
        }

    def ids_of(self, text: str) -> list[int]:
        """Return the ids of a text's words."""
        return [self._ids.get(word) or self._unknown(word) for word in words_of(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words of ids, with a space between them; words that the vocabulary lacks are [unknown]."""
        if self._words is None:
            self._words = {number: word for word, number in self._ids.items()}
        return " ".join(self._words.get(number, "[unknown]") for number in ids if number != PADDING)

    def lengths(self, texts: Iterable[str]) -> list[int]:
        """Return how many words each text has."""
        return [len(words_of(text)) for text in texts]

    def encode(self, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
        """Return the ids of texts, cut off or padded to one length.

        Returns:
            ``input_ids`` and ``attention_mask``, both ``[texts, max_length]`` of dtype int64; the mask is 1 for words
            and 0 for padding, as Hugging Face's models take it.
        """
        ids = np.full((len(texts), max_length), PADDING, dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            own = self.ids_of(text)[:max_length]
            row[: len(own)] = own
        numbers = torch.from_numpy(ids)
        return {"input_ids": numbers, "attention_mask": (numbers != PADDING).long()}

    def _unknown(self, word: str) -> int:
        if not self.hash_buckets:
            return UNKNOWN
        return self.size - self.hash_buckets + zlib.crc32(word.encode(errors="surrogatepass")) % self.hash_buckets


def check_sizes(size: int, hash_buckets: int) -> None:
    """Raise a ValueError unless ids for words are left, of which there are fewer than 2**31."""
    arguments.check_count("hash_buckets", hash_buckets, least=0)
    arguments.check_count("vocabulary_size", size, least=FIRST_WORD + 1)
    if size >= _MOST_IDS:
        raise ValueError(f"vocabulary_size={size} must be less than 2**31")
    if hash_buckets > size - FIRST_WORD - 1:
        raise ValueError(f"hash_buckets={hash_buckets} leaves no ids for words: raise vocabulary_size={size}")
