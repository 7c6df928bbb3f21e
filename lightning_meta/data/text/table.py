"""Classified texts in a table."""

from pathlib import Path
from typing import Any

import polars as pl

from lightning_meta.data.episodes import Split
from lightning_meta.data.text.base import ClassifiedTextDataModule
from lightning_meta.data.text.preparation import read_texts

_SPLITS: tuple[Split, ...] = ("train", "val", "test")


class TextDataModule(ClassifiedTextDataModule):
    """N-way K-shot tasks over texts in a table, such as requests with their intents.

    Classes with too few texts for a task are left out, with a warning that counts them.

    Args:
        file: The table, with one text in each row: a .csv, .tsv, .parquet, .json (a list of records) or .jsonl file.
        text_column: The column of texts.
        label_column: The column of classes; values of any type are taken as text.
        split_column: The column that says to which split a row belongs: "train", "val" or "test". All rows of a class
            must be in the same split. None: classes are shared out at random, always in the same way, by
            ``val_classes`` and ``test_classes``, which are not used otherwise.
        **options: As in `ClassifiedTextDataModule`, `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range; in `setup` if the table lacks a column, a text or label is
            empty, or a class is in two splits.
        FileNotFoundError: In `setup`, if there is no such file.

    Example:
        >>> data = TextDataModule("requests.csv", text_column="request", label_column="intent", ways=5, shots=5)
    """

    def __init__(
        self,
        file: str,
        text_column: str = "text",
        label_column: str = "label",
        *,
        split_column: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(text_column, label_column, **options)
        self.file = Path(file)
        self.split_column = split_column

    def texts(self) -> dict[Split, pl.DataFrame | None]:
        """Return the rows of each split."""
        columns = {"label_column": self.label_column}
        if self.split_column is not None:
            columns["split_column"] = self.split_column
        table = read_texts(self.file, self.text_column, columns)
        if self.split_column is not None:
            return self._given_splits(table, self.split_column)
        return self.share_out(table, self.label_column)

    def _given_splits(self, table: pl.DataFrame, column: str) -> dict[Split, pl.DataFrame | None]:
        found = set(table[column].unique().to_list())
        if not found <= set(_SPLITS) or "train" not in found:
            raise ValueError(
                f"split_column={column!r} of {str(self.file)!r} holds {', '.join(map(repr, sorted(found)[:10]))}: its "
                "values must be 'train', 'val' and 'test', and some 'train'"
            )
        splits = table.group_by(self.label_column).agg(pl.col(column).unique())
        several = splits.filter(pl.col(column).list.len() > 1).sort(self.label_column)
        if len(several):
            name, places = several.row(0)
            raise ValueError(
                f"{len(several)} classes of {str(self.file)!r} are in several splits, {name!r} in "
                f"{' and '.join(sorted(places))}: test classes must be new, so each class needs one split"
            )
        return {split: table.filter(pl.col(column) == split) if split in found else None for split in _SPLITS}
