"""Words, and their ids."""

import zlib

import pytest
import torch

from lightning_meta.data.text.vocabulary import Vocabulary, words_of

TEXTS = ["the cat saw the dog", "The cat's dog, the dog!", "a bird"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP, now.", ["don't", "stop", ",", "now", "."]),
        ("rate: 3.5%", ["rate", ":", "3", ".", "5", "%"]),
        ("'quoted' rock’n’roll", ["'", "quoted", "'", "rock’n’roll"]),
        ("Cafe\u0301 \ufb01ne\tÜBER", ["café", "fine", "über"]),
        ("?!", ["?", "!"]),
        (" \n", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_frequent_words_come_first_and_ties_are_in_alphabetical_order():
    vocabulary = Vocabulary.of_texts(TEXTS, size=100, min_count=1, hash_buckets=0)
    words = ["the", "dog", "!", ",", "a", "bird", "cat", "cat's", "saw"]
    assert vocabulary.state()["vocabulary"] == {"words": words, "size": 100, "hash_buckets": 0}
    assert vocabulary.ids_of("A fish saw THE dog") == [6, 1, 10, 2, 3]


def test_limits():
    def words(*limits):
        return Vocabulary.of_texts(TEXTS, *limits).state()["vocabulary"]["words"]

    assert words(100, 2, 0) == ["the", "dog"]
    assert words(5, 1, 0) == ["the", "dog", "!"]
    assert words(5, 1, 2) == ["the"]


def test_unknown_words_fall_into_buckets_after_all_words():
    vocabulary = Vocabulary.of_texts(TEXTS, size=20, min_count=2, hash_buckets=7)
    ids = vocabulary.ids_of("the fish and the fish")
    assert ids == [2, ids[1], 13 + zlib.crc32(b"and") % 7, 2, 13 + zlib.crc32(b"fish") % 7]
    assert ids[1] == ids[4] != ids[2]


def test_texts_are_cut_off_and_padded():
    found = Vocabulary.of_texts(TEXTS, 100, 2, 0).encode(["the dog", "dog the dog the", ""], max_length=3)
    torch.testing.assert_close(found["input_ids"], torch.tensor([[2, 3, 0], [3, 2, 3], [0, 0, 0]]))
    torch.testing.assert_close(found["attention_mask"], torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 2}, "vocabulary_size=2 must be an integer of at least 3"),
        ({"size": 4}, "has no room for 3 words"),
        ({"hash_buckets": -1}, "hash_buckets=-1"),
        ({"hash_buckets": 9}, "hash_buckets=9 leaves no ids for words: raise vocabulary_size=10"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(**{"words": ["a", "b", "c"], "size": 10, "hash_buckets": 0, **change})


def test_words_must_be_texts():
    with pytest.raises(TypeError, match="must be texts"):
        Vocabulary([1], 10, 0)
