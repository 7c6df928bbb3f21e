"""The columns of a file as they are written in it."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from lightning_meta.data.tables import SEPARATORS


def as_written(rows: pl.DataFrame, source: str | Path) -> pl.DataFrame:
    """Return a table's rows so that writing them to a CSV file repeats the source's texts.

    Reading a CSV file turns ``007`` into 7 and ``1.10`` into 1.1. Such columns become the texts of the file; others
    keep their type.

    Args:
        rows: All rows of the source, in its order.
        source: The file; other formats than CSV keep their types anyway.
    """
    separator = SEPARATORS.get(Path(source).suffix.lower())
    if separator is None or not Path(source).is_file():
        return rows
    texts = pl.read_csv(source, separator=separator, infer_schema=False)

    def unchanged(column: str) -> bool:
        return column in rows.columns and rows[column].cast(pl.String, strict=False).equals(
            texts[column], null_equal=True
        )

    return texts.with_columns(rows[column] for column in texts.columns if unchanged(column))
