"""Tokenizers in checkpoints that would fill the memory."""

from __future__ import annotations

import base64
import json

import pytest

from lightning_meta.data.text.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")

BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
SPECIAL = {"SpecialToken": {"id": "a", "type_id": 0}}


def written(**steps) -> str:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return json.dumps({**json.loads(made.to_str()), **steps})


def replace(content: str) -> dict:
    return {"type": "Replace", "pattern": {"Regex": "."}, "content": content}


def sequence(*steps, name: str = "normalizers") -> dict:
    return {"type": "Sequence", name: list(steps)}


def template(*pieces, ids=(0,)) -> dict:
    special = {"a": {"id": "a", "ids": list(ids), "tokens": ["a"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": list(pieces), "pair": [SEQUENCE] * 2, "special_tokens": special}


def charsmap(text: bytes) -> dict:
    """A character map with an index of one empty entry, and one text."""
    content = (4).to_bytes(4, "little") + bytes(4) + text + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


@pytest.mark.parametrize(
    "steps",
    [
        {"normalizer": sequence(*[replace("a" * 20)] * 7)},
        {"normalizer": sequence(*[sequence(*[replace("aa")] * 4)] * 2)},
        {"normalizer": replace("a" * 65)},
        {"normalizer": {"pattern": {"String": "a"}, "content": "a" * 65}},  # forms without a type are read too
        {"normalizer": ["a" * 65]},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 65}},
        {"normalizer": sequence(*[{"type": "ByteLevel"}] * 7)},
        {"normalizer": replace("a" * 20), "pre_tokenizer": sequence(*[BYTES] * 3, name="pretokenizers")},
        {"normalizer": charsmap(b"a" * 65)},
        {"normalizer": sequence(*[charsmap(b"a" * 20)] * 2)},
        {"post_processor": template(SPECIAL, *[SEQUENCE] * 65)},
        {"post_processor": sequence(*[template(SEQUENCE, SEQUENCE)] * 7, name="processors")},
    ],
)
def test_texts_may_not_grow_without_limit(steps):
    with pytest.raises(ValueError, match="makes texts up to [0-9]+ times as long: at most 64"):
        Tokenizer(written(**steps))


@pytest.mark.parametrize("post_processor", [template(*[SPECIAL] * 17, SEQUENCE), template(SPECIAL, ids=[0] * 17)])
def test_special_tokens_are_few(post_processor):
    with pytest.raises(ValueError, match="adds more than 16 special tokens"):
        Tokenizer(written(post_processor=post_processor))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({"normalizer": sequence(replace("b"), {"type": "Prepend", "prepend": "a"})}, [2, 0, 0]),
        ({"normalizer": {"type": "Lowercase"}, "pre_tokenizer": BYTES, "post_processor": BYTES}, [2, 0, 0]),
        ({"post_processor": template(SPECIAL, SEQUENCE, SPECIAL)}, [0, 1, 0]),
    ],
)
def test_usual_steps_are_kept(steps, expected):
    assert Tokenizer(written(**steps)).encode(["b"], 3)["input_ids"][0].tolist() == expected


def test_usual_character_maps_are_read():  # one sign of Unicode's form NFKC becomes 18
    assert Tokenizer(written(normalizer=charsmap("\u0635".encode() * 18))).size == 3


@pytest.mark.parametrize("text", ["{", "5", "[]", 5, None, "[" * 200_000, written(normalizer={"type": "Other"})])
def test_other_texts_are_no_tokenizers(text):
    with pytest.raises(ValueError, match="the tokenizer cannot be read"):
        Tokenizer(text)


def test_the_longest_text_has_room_for_special_tokens():
    tokenizer = Tokenizer(written(post_processor=template(SPECIAL, SEQUENCE, SPECIAL)))
    assert tokenizer.encode(["b"], 2)["input_ids"].tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="special tokens do not fit into max_length=1: raise it"):
        tokenizer.encode(["b", "a b"], 1)
