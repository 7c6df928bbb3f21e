"""Reading and writing of tables: CSV, Parquet and JSON files."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

_EXACT = 2.0**53  # floats of this size and more stand for several whole numbers
SEPARATORS = {".csv": ",", ".data": ",", ".tsv": "\t"}
_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".json": pl.read_json,
    ".jsonl": pl.read_ndjson,
    ".ndjson": pl.read_ndjson,
}
_WRITERS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    ".csv": pl.DataFrame.write_csv,
    ".parquet": pl.DataFrame.write_parquet,
    ".json": pl.DataFrame.write_json,
    ".jsonl": pl.DataFrame.write_ndjson,
    ".ndjson": pl.DataFrame.write_ndjson,
}


def read_table(file: str | Path, missing: Sequence[str] = ("",), texts: Iterable[str] = ()) -> pl.DataFrame:
    """Read a table; the file's ending names its format.

    Args:
        file: A file that ends in .csv, .data (commas), .tsv, .parquet, .json (a list of records), .jsonl or .ndjson.
        missing: The texts that stand for a missing value in a CSV file.
        texts: Columns of a CSV file whose values are kept as they are written, such as the code 07; only an empty one
            is missing. Other columns are numbers or truth values if all rows are. Columns that are not there are
            ignored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the ending is another, the file cannot be read, has no rows, or several columns of one name.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    ending = path.suffix.lower()
    if ending not in SEPARATORS and ending not in _READERS:
        raise ValueError(f"{str(path)!r} does not end in one of {', '.join([*SEPARATORS, *_READERS])}")
    try:
        table = _read_csv(path, missing, set(texts)) if ending in SEPARATORS else _READERS[ending](path)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        hint = _hint(path, error) if ending in SEPARATORS else ""
        raise ValueError(f"{str(path)!r} cannot be read as a {ending} table: {hint or error}") from error
    if table.is_empty():
        raise ValueError(f"{str(path)!r} has no rows")
    _check_unique(table.columns, path)
    return table


def _read_csv(path: Path, missing: Sequence[str], texts: set[str]) -> pl.DataFrame:
    separator = SEPARATORS[path.suffix.lower()]
    kept = dict.fromkeys(texts, pl.String)
    table = pl.read_csv(
        path, separator=separator, null_values=list(missing), infer_schema_length=None, schema_overrides=kept
    )
    if hint := _hint(path) if table.width == 1 or "\0" in "".join(table.columns) else "":
        raise ValueError(f"{str(path)!r} cannot be read as a table: {hint}")
    columns = [column for column in table.columns if column in texts]
    if columns and set(missing) != {""}:  # which polars cannot have apart for each column
        exact = pl.read_csv(path, separator=separator, null_values=[""], columns=columns, schema_overrides=kept)
        table = table.with_columns(exact.get_columns())
    return table


def _hint(path: Path, error: object = "") -> str:
    """Return the likely reason why a CSV file cannot be read; empty if there is none."""
    with path.open("rb") as file:
        header = file.readline(2**16)
    if header.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in header:
        return "the file is in UTF-16: save it in UTF-8"
    if "utf-8" in str(error).lower():
        return f"the file is not in UTF-8 ({error}): save it in UTF-8"
    separator = SEPARATORS[path.suffix.lower()]
    if b";" in header and separator.encode() not in header:
        return f"is it separated by ';'? save it with {'tabs' if separator != ',' else 'commas'}"
    return ""


def _check_unique(columns: list[str], path: Path) -> None:
    """Raise a ValueError for a name that several columns have, which reading has made different by a suffix."""
    for column in columns:
        first = re.sub(r"_duplicated_\d+$", "", column)
        if first != column and first in columns:
            raise ValueError(f"{str(path)!r} has several columns {first!r}: give each a name of its own")


def texts_of(values: pl.Series) -> pl.Series:
    """Return a column as texts; whole numbers have no decimal point, whatever the type of the column.

    Raises:
        ValueError: If the values are lists, records or bytes.
    """
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        raise ValueError(f"column {values.name!r} holds {values.dtype}: turn its values into numbers or texts")
    if values.dtype.is_float():
        values = values.fill_nan(None)
        known = values.drop_nulls()
        if ((known % 1 == 0) & (known.abs() < _EXACT)).all():
            values = values.cast(pl.Int64)
    return values.cast(pl.String)


def names_of(values: pl.Series) -> pl.Series:
    """Return a whole column of classes or tasks as texts; if all are texts such as 1.0, without the decimal point."""
    texts = texts_of(values)
    return texts.str.strip_suffix(".0") if texts.drop_nulls().str.contains(r"^-?(0|[1-9]\d*)\.0$").all() else texts


def check_output(file: str | Path, overwrite: bool) -> Path:
    """Return the path of a table to write; of a symbolic link, the path that it leads to.

    Raises:
        FileExistsError: If it exists and ``overwrite`` is False.
        FileNotFoundError: If its folder does not exist.
        ValueError: If its ending names no format that `write_table` writes.
    """
    path = Path(file)
    if path.is_symlink():
        try:
            path = path.resolve()
        except (OSError, RuntimeError) as error:  # a circle; which of them depends on the version of Python
            raise ValueError(f"output={str(file)!r} is a symbolic link that leads nowhere: {error}") from error
    if path.suffix.lower() not in _WRITERS:
        raise ValueError(f"output={str(path)!r} does not end in one of {', '.join(_WRITERS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output={str(path)!r}: there is no folder {str(path.parent)!r}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"output={str(path)!r} exists: name another file, or pass --overwrite")
    return path


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table in the format that the file's ending names; an interrupted write leaves the old file.

    Raises:
        ValueError: If the format cannot hold the table, such as lists in CSV.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _WRITERS[path.suffix.lower()](table, part)
        os.replace(part, path)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{str(path)!r} cannot be written: {error}; leave out such columns, or write .json") from error
    finally:
        part.unlink(missing_ok=True)


def check_columns(table: pl.DataFrame, columns: Iterable[tuple[str, str]], source: Any) -> None:
    """Raise a ValueError that names the first column that a table lacks.

    Args:
        table: The table.
        columns: Pairs of an argument's name and the column that it names.
        source: The file, for the message.
    """
    for argument, column in columns:
        if column not in table.columns:
            close = difflib.get_close_matches(column, table.columns, n=1, cutoff=0.5)
            guess = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"{argument}={column!r}, but {str(source)!r} has no such column: {guess}its columns are "
                f"{', '.join(map(repr, table.columns))}"
            )
