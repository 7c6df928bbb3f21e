"""Whether the steps of a tokenizer keep texts at a reasonable length."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator
from typing import Any

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_LONGEST = 64  # as many times longer may a text become
_MOST_SPECIAL = 16  # tokens that a template adds
_OF_BYTES = 2  # a letter of two bytes becomes two letters
_WITHOUT_WORDS: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],  # to read them, texts are prepared by the very steps that are to be checked
    "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""},
}


def checked(text: str, tokenizer_class: Any) -> str:
    """Return a tokenizer's JSON text with its steps in one form, after a check that texts stay short.

    Steps that replace texts multiply their length, one after the other, until they fill the memory. Published
    tokenizers replace single characters, and add a few special tokens.

    Args:
        text: The JSON text of a tokenizer of Hugging Face.
        tokenizer_class: ``tokenizers.Tokenizer``.

    Raises:
        ValueError: If it describes no tokenizer, one that makes texts more than 64 times as long, or adds more than 16
            special tokens to each.
    """
    try:
        content = json.loads(text)
        given = {name: content.get(name) for name in _STEPS}
        alone = tokenizer_class.from_str(json.dumps({**_WITHOUT_WORDS, **given}))
    except Exception as error:  # the only type that from_str raises
        raise ValueError(f"the tokenizer cannot be read: {error}") from error
    written = json.loads(alone.to_str())  # the package reads each step in several forms, and writes it in one
    steps = {name: written[name] for name in _STEPS}
    growth = math.prod(_growth(step) for step in _objects(steps))
    if growth > _LONGEST:
        raise ValueError(f"the tokenizer makes texts up to {growth} times as long: at most {_LONGEST} times is safe")
    return json.dumps({**content, **steps})


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects inside a JSON value."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _growth(step: dict[str, Any]) -> int:
    """Return how many times longer a step can make a text, at least 1."""
    kind = step.get("type")
    if kind == "Replace":
        return max(1, len(step["content"]))
    if kind == "Prepend":
        return max(1, len(step["prepend"]))
    if kind == "Precompiled":
        return _longest_replacement(step["precompiled_charsmap"])
    if kind == "TemplateProcessing":
        return _growth_by_template(step)
    return _OF_BYTES if kind == "ByteLevel" else 1


def _longest_replacement(charsmap: str) -> int:
    """Return the length of the longest text in a character map of SentencePiece, behind its index of known size."""
    try:
        content = base64.b64decode(charsmap)
    except binascii.Error as error:
        raise ValueError(f"the tokenizer's character map cannot be read: {error}") from error
    texts = content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")
    return max(1, *(len(text.decode(errors="replace")) for text in texts))


def _growth_by_template(step: dict[str, Any]) -> int:
    pieces = step["single"]
    most_ids = max((len(token["ids"]) for token in step["special_tokens"].values()), default=0)
    if most_ids * sum("SpecialToken" in piece for piece in pieces) > _MOST_SPECIAL:
        raise ValueError(f"the tokenizer adds more than {_MOST_SPECIAL} special tokens to each text")
    return max(1, sum("Sequence" in piece for piece in pieces))
