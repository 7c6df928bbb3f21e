"""`TextPreparation`: how texts in tables become ids of words."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from lightning_meta import arguments
from lightning_meta.data.preparation import Preparation
from lightning_meta.data.tables import check_columns, read_table
from lightning_meta.data.text.tokenizer import Tokenizer
from lightning_meta.data.text.vocabulary import Vocabulary

_NAMED_ROWS = 5
_LONGEST = 2**16  # words of a text


class TextPreparation(Preparation):
    """How texts in tables become ids of words.

    Args:
        text_column: The column of texts.
        max_length: Words of a text that are kept; shorter texts are padded.
        vocabulary: The arguments of a `Vocabulary`; None: a tokenizer is used.
        tokenizer: The JSON text of a tokenizer of Hugging Face; None: a vocabulary is used.
        **options: As in `Preparation`.

    Raises:
        ValueError: If an argument is out of its range, or the vocabulary or the tokenizer cannot be used.
    """

    kind = "text"

    def __init__(
        self,
        text_column: str,
        max_length: int,
        vocabulary: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not isinstance(text_column, str):
            raise ValueError("text_column must be a text")
        arguments.check_count("max_length", max_length)
        if max_length > _LONGEST:
            raise ValueError(f"max_length={max_length} must be at most {_LONGEST}")
        self.text_column = text_column
        self.max_length = max_length
        self._encoder: Vocabulary | Tokenizer
        if vocabulary is not None and tokenizer is None:
            self._encoder = Vocabulary(**vocabulary)
        elif vocabulary is None and tokenizer is not None:
            self._encoder = Tokenizer(tokenizer)
        else:
            raise ValueError("texts need either a vocabulary or a tokenizer")

    @property
    def vocabulary_size(self) -> int:
        """The ids are less than this number."""
        return self._encoder.size

    def read(self, source: str | Path, labelled: bool) -> pl.DataFrame:
        """Read a table of texts; arguments and errors as in `Preparation.read`."""
        names = {"target_column": self.target_column}
        further = [] if self.task_column is None else [self.task_column]
        return read_texts(source, self.text_column, names if labelled else {}, [*names.values(), *further])

    def inputs(self, rows: pl.DataFrame) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask``, both ``[rows, max_length]`` of dtype int64."""
        return self._encoder.encode(rows[self.text_column].to_list(), self.max_length)

    def texts_of(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Return the texts of inputs as their words; words that were cut off or are not known are lost."""
        ids, mask = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu()
        return [self._encoder.decode(row[own > 0].tolist()) for row, own in zip(ids, mask, strict=True)]

    def _own_state(self) -> dict[str, Any]:
        return {"text_column": self.text_column, "max_length": self.max_length, **self._encoder.state()}


def read_texts(
    source: str | Path, text_column: str, further: Mapping[str, str], as_written: Iterable[str] = ()
) -> pl.DataFrame:
    """Read a table with a column of texts, and turn that column and further ones into text.

    Args:
        source: A file, as in `read_table`.
        text_column: The column of texts.
        further: The names of arguments, and the columns that they name.
        as_written: Columns that are not needed, but hold no numbers either.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the source is a folder, lacks a column, or a text or a value of the others is missing.
    """
    if Path(source).is_dir():
        raise ValueError(
            f"{str(source)!r} is a folder, and text data are read from a table: name a .csv, .parquet or .json file"
        )
    columns = {"text_column": text_column, **further}
    table = read_table(source, texts=[*columns.values(), *as_written])
    check_columns(table, columns.items(), source)
    for argument, column in columns.items():
        dtype = table[column].dtype
        if dtype.is_nested() or dtype == pl.Binary:
            raise ValueError(f"{argument}={column!r} of {str(source)!r} holds {dtype}, not text")
        texts = table[column].cast(pl.String)
        empty = (texts.str.strip_chars() == "").fill_null(True).arg_true().to_list()
        if empty:
            named = ", ".join(str(row + 1) for row in empty[:_NAMED_ROWS]) + (
                ", ..." if len(empty) > _NAMED_ROWS else ""
            )
            raise ValueError(
                f"{argument}={column!r} of {str(source)!r} is empty in {len(empty)} of {len(table)} rows (rows "
                f"{named}; the first below the header is 1): fill or remove them"
            )
        table = table.with_columns(texts.alias(column))
    return table
