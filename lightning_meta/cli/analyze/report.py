"""What an analysis says: a table, sentences of advice, values for JSON, and pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILE = "report.json"


@dataclass(frozen=True)
class Report:
    """The result of an analysis.

    Attributes:
        table: What is printed, one row for each line.
        advice: Whole sentences; each stands on its own.
        values: Further results for ``report.json``: numbers, texts, and lists and dictionaries of them.
        pictures: Functions that draw, by the name of the file without its ending.
    """

    table: pl.DataFrame
    advice: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)

    def show(self) -> None:
        """Print the table and the advice."""
        console = Console()
        shown = Table(*self.table.columns)
        for row in self.table.iter_rows():
            shown.add_row(*map(_printed, row))
        console.print(shown)
        for sentence in self.advice:
            console.print(sentence, markup=False, highlight=False)

    def save(self, folder: Path, **settings: Any) -> None:
        """Write ``report.json`` and the pictures into a folder.

        Args:
            folder: An empty folder, or one to overwrite.
            **settings: What the analysis was of, for the file.
        """
        for name, draw in self.pictures.items():
            draw().savefig(folder / f"{name}.png", dpi=110)
        content = {**settings, "advice": self.advice, "table": self.table.to_dicts(), "values": self.values}
        part = folder / f".{_FILE}.{os.getpid()}.part"
        try:
            part.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")
            os.replace(part, folder / _FILE)
        finally:
            part.unlink(missing_ok=True)


def check_folder(output: str, overwrite: bool) -> Path:
    """Return the folder to write a report into, which is made if it does not exist.

    Raises:
        FileExistsError: If it is a file, or holds anything and ``overwrite`` is False.
    """
    folder = Path(output)
    if folder.is_file():
        raise FileExistsError(f"output={output!r} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"output={output!r} is not empty: name another folder, or pass --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
