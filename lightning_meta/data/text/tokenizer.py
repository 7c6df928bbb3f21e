"""Tokenizers of Hugging Face."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lightning_meta.data.text.tokenizer_checks import checked


class Tokenizer:
    """A fast tokenizer, kept as the text of its JSON file: nothing else is needed to use it again.

    Args:
        text: The JSON text, as ``tokenizers.Tokenizer.to_str`` returns it. The padding in it names the padding's id.

    Raises:
        ValueError: If the text describes no tokenizer, or one that makes texts so long that they fill the memory.
        ImportError: If the package ``tokenizers`` is not installed.
    """

    def __init__(self, text: str) -> None:
        try:
            from tokenizers import Tokenizer as FastTokenizer
        except ImportError as error:
            raise ImportError("tokenizers of Hugging Face need: pip install 'lightning-meta[text]'") from error
        written = checked(text, FastTokenizer)
        try:
            self._tokenizer: Any = FastTokenizer.from_str(written)
        except Exception as error:  # the only type that it raises
            raise ValueError(f"the tokenizer cannot be read: {error}") from error
        self.text = text
        self._padding: dict[str, Any] = self._tokenizer.padding or {}

    @classmethod
    def load(cls, name: str, download: bool = False) -> Self:
        """Load a tokenizer by the name of its model, or from a folder.

        Only its files are read; code beside them is never run.

        Args:
            name: A folder, or a name on Hugging Face's hub.
            download: Whether to download what this computer lacks.

        Raises:
            FileNotFoundError: If this computer lacks it and ``download`` is False.
            ValueError: If it is of a kind that cannot be kept as one text.
            ImportError: If the package ``transformers`` is not installed.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ImportError(
                f"tokenizer={name!r} is one of Hugging Face and needs: pip install 'lightning-meta[text]'"
            ) from error
        try:
            loaded = AutoTokenizer.from_pretrained(name, local_files_only=not download, trust_remote_code=False)
        except OSError as error:
            raise FileNotFoundError(
                f"tokenizer={name!r} is neither a folder with a tokenizer nor downloaded: correct it, or set "
                "download=True"
            ) from error
        fast = getattr(loaded, "backend_tokenizer", None)
        if fast is None:
            raise ValueError(f"tokenizer={name!r} is a {type(loaded).__name__}, which is no fast tokenizer")
        padding = loaded.pad_token_id
        fast.no_truncation()
        fast.enable_padding(pad_id=padding or 0, pad_token=loaded.pad_token or "[PAD]")
        return cls(fast.to_str())

    @property
    def size(self) -> int:
        """The number of ids."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1

    def state(self) -> dict[str, Any]:
        """Return what a `TextPreparation` needs to build it again, as plain values."""
        return {"vocabulary": None, "tokenizer": self.text}

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has."""
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def encode(self, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
        """Return the ids of texts, cut off or padded at the end to one length.

        Returns:
            ``input_ids`` and ``attention_mask``, both ``[texts, max_length]`` of dtype int64.

        Raises:
            ValueError: If its template of special tokens does not fit into ``max_length``.
        """
        self._tokenizer.enable_truncation(max_length)
        padding = {name: self._padding[name] for name in ("pad_id", "pad_token") if name in self._padding}
        self._tokenizer.enable_padding(length=max_length, **padding)
        encodings = self._tokenizer.encode_batch(list(texts))
        if any(len(encoding.ids) != max_length for encoding in encodings):
            raise ValueError(f"the tokenizer's special tokens do not fit into max_length={max_length}: raise it")
        rows = [encoding.ids for encoding in encodings], [encoding.attention_mask for encoding in encodings]
        ids, mask = (torch.tensor(row, dtype=torch.int64).reshape(len(texts), max_length) for row in rows)
        return {"input_ids": ids, "attention_mask": mask}
