"""What an analysis says: tables, sentences of advice, values for JSON, and pictures."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_meta.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "report.json"


@dataclass(frozen=True)
class Report:
    """The result of an analysis.

    Attributes:
        table: What is printed, one row for each line.
        advice: Whole sentences; each stands on its own.
        values: Further results for ``report.json``: numbers, texts, tensors, arrays; lists and dictionaries of
            them.
        pictures: Functions that draw, by the name of the file without its ending.
        more_tables: Further tables by title, printed after the first.
    """

    table: pl.DataFrame
    advice: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    more_tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)

    def show(self, console: Console | None = None) -> None:
        """Print the tables and the advice.

        Args:
            console: Where to; None: the process's output. Columns that do not fit its width follow in further tables.
        """
        console = Console() if console is None else console
        _print_table(self.table, console)
        for title, table in self.more_tables.items():
            console.print(f"\n{title}", markup=False, highlight=False)
            _print_table(table, console)
        for sentence in self.advice:
            console.print(f"\n{sentence}", markup=False, highlight=False)

    def save(self, folder: Path, **settings: Any) -> None:
        """Write the pictures and ``report.json`` into a folder: all or nothing.

        An earlier ``report.json`` is gone before the first picture is replaced, and the new one comes last, so that it
        never stands beside half of another report's pictures. Pictures of other names stay.

        Args:
            folder: An existing folder.
            **settings: What the analysis was of, for the file.
        """
        tables = {title: table.to_dicts() for title, table in self.more_tables.items()}
        content = {"lightning_meta": __version__, **settings, "advice": self.advice, "table": self.table.to_dicts()}
        content |= {"more_tables": tables, "values": self.values}
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as name:
            part = Path(name)
            (part / FILE).write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")
            for picture, draw in self.pictures.items():
                draw().savefig(part / f"{picture}.png", dpi=110)
            (folder / FILE).unlink(missing_ok=True)
            for picture in self.pictures:
                os.replace(part / f"{picture}.png", folder / f"{picture}.png")
            os.replace(part / FILE, folder / FILE)


@contextmanager
def output_folder(output: str | None, overwrite: bool) -> Iterator[Path | None]:
    """Make the folder for a report, which is removed again if it was made and nothing was written.

    Args:
        output: The folder; None: there is none.
        overwrite: Whether it may hold anything.

    Raises:
        FileExistsError: If it is a file, or holds anything and ``overwrite`` is False.
    """
    if output is None:
        yield None
        return
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"output={output!r} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"output={output!r} is not empty: name another folder, or pass --overwrite")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _print_table(table: pl.DataFrame, console: Console) -> None:
    """Print a table; what does not fit into the console's width is printed below, each part with the first column."""
    cells = {name: [_printed(value) for value in table[name]] for name in table.columns}
    first, *others = table.columns
    while True:
        count = len(others)
        while count > 1 and _least_width(cells, [first, *others[:count]]) > console.width:
            count -= 1
        console.print(_part(table, cells, [first, *others[:count]], console.width))
        others = others[count:]
        if not others:
            return


def _part(table: pl.DataFrame, cells: Mapping[str, list[str]], columns: list[str], room: int) -> Table:
    """Return some columns as a table; the first has the width that the others leave."""
    spare = room - _least_width(cells, columns)
    shown = Table()
    for name in columns:
        texts = (name, *cells[name])
        width = min(_longest_word(texts) + max(0, spare), max(map(cell_len, texts)))
        spare -= width - _longest_word(texts)
        justify: Literal["left", "right"] = "right" if table[name].dtype.is_numeric() else "left"
        shown.add_column(Text(name), justify=justify, width=width)
    for row in zip(*(cells[name] for name in columns), strict=True):
        shown.add_row(*map(Text, row))
    return shown


def _least_width(cells: Mapping[str, list[str]], columns: list[str]) -> int:
    """The least width of a table, with its lines, at which no word and no number is broken."""
    return 1 + sum(3 + _longest_word((name, *cells[name])) for name in columns)


def _longest_word(texts: Iterable[str]) -> int:
    return max(cell_len(word) for text in texts for word in text.split(" "))


def _printed(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Return values as JSON has them; numbers that are not finite become texts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    if hasattr(value, "tolist"):  # tensors and arrays, and their numbers
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value
